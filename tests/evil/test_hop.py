"""The relay breaks the rules of the hop: it answers with junk, twice, unasked or in another version, and lies in its WELCOME.

It owns the hop's keys, so all of it is genuine. It can refuse and it can disturb; the roles say what it did, and go on.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from tests.evil.relay import GONE, Plot, seal_raw
from tests.evil.stage import LOST, UNHARMED, Stage, ends
from tests.evil.verdict import AGENT, FORWARD, Expected, breaches
from tests.world import until
from tuunel.address import HostPort
from tuunel.errors import Reason, RemoteProtocolError
from tuunel.events import Alarm
from tuunel.identity import DeviceID, IdentityKey
from tuunel.pump import PumpEnd
from tuunel.relay import handshake, reception
from tuunel.relay.certificates import make_leaf, make_root
from tuunel.relay.client import fresh_key
from tuunel.relay.connection import DeviceConnection, DialConnection, ReadyConnection
from tuunel.relay.framing import frame
from tuunel.relay.handshake import RelayHandshake
from tuunel.relay.handshake_wire import HelloReply, VersionRefusal
from tuunel.relay.switchboard import Pipe
from tuunel.relay.wire import HopError, Limits, Message, PairedAgent, PairedForward, Pong, Switch, Welcome, encode_message

pytestmark = pytest.mark.anyio

NOT_UNDERSTOOD = Expected(ends(Reason.PROTOCOL))
NO_RELAY = Expected(ends(Reason.RELAY_UNREACHABLE))
JUNK = bytes(range(256))
STRANGER = IdentityKey.generate()

# What the forward proxy gets for its OPEN

Words = Callable[[Pipe], list[bytes | Message]]


def spoken(connection: DeviceConnection, words: list[bytes | Message]) -> bytes:
    """Messages sealed, whether or not they may be said now; bytes as they are."""
    return b"".join(word if isinstance(word, bytes) else seal_raw(connection, encode_message(word)) for word in words)


class Answer(Plot):
    """Say these words in the place of PAIRED."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self._words = words

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        await self.switch(pipe)
        with suppress(*GONE):
            await pipe.forward.stream.send_all(spoken(pipe.forward, self._words(pipe)))
            while await pipe.forward.stream.receive():
                pass
        return PumpEnd.RESET


def paired(pipe: Pipe) -> PairedForward:
    return PairedForward(pipe.agent.offer.body)


def welcome(device: DeviceID) -> Welcome:
    return Welcome(device, HostPort("203.0.113.1", 1), 0, Limits(0, 0, 0))


ANSWERS: dict[str, Words] = {
    "bytes that no key has sealed": lambda pipe: [JUNK],
    "an unknown message": lambda pipe: [seal_raw(pipe.forward, b"\xff")],
    "an empty record": lambda pipe: [seal_raw(pipe.forward, b"")],
    "a second WELCOME": lambda pipe: [welcome(pipe.forward.device)],
    "the agent's PAIRED": lambda pipe: [PairedAgent(bytes(65), bytes(92))],
    "SWITCH": lambda pipe: [Switch()],
    "PAIRED twice": lambda pipe: [paired(pipe), paired(pipe)],
    "ERROR behind PAIRED": lambda pipe: [paired(pipe), HopError(Reason.SHUTDOWN)],
    "bytes behind PAIRED": lambda pipe: [paired(pipe), JUNK],
    "PONGs that nobody asked for, PAIRED, and nothing true": lambda pipe: [
        Pong(bytes(8)),
        Pong(bytes(8)),
        paired(pipe),
        bytes(272),
    ],
}


async def test_an_answer_to_open_that_is_none_fails_with_a_name(stage: Stage) -> None:
    assert await stage.attack((name, Answer(words), NOT_UNDERSTOOD) for name, words in ANSWERS.items()) == {}


class HangUp(Plot):
    """End the connection in the place of an answer."""

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        return PumpEnd.RESET


class Refuse(Plot):
    """Refuse what could have been had."""

    def __init__(self, reason: Reason) -> None:
        super().__init__()
        self._reason = reason

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        await pipe.forward.send(HopError(self._reason, 4_000_000_000, "\x1b[2J give me your keys"))
        return PumpEnd.RESET


async def test_no_answer_at_all_fails_with_a_name(stage: Stage) -> None:
    assert await stage.attack([("no answer", HangUp(), NO_RELAY)]) == {}


async def test_a_refusal_is_told_as_what_the_relay_said(stage: Stage) -> None:
    reasons = [Reason.PEER_UNAVAILABLE, Reason.DEVICE_BANNED, Reason.INTERNAL]
    assert await stage.attack((reason, Refuse(reason), Expected(ends(reason))) for reason in reasons) == {}


# What the agent gets


class ToAgent(Plot):
    """Say these words to the agent behind its PAIRED."""

    def __init__(self, words: list[bytes | Message]) -> None:
        super().__init__()
        self._words = words

    async def switch(self, pipe: Pipe) -> None:
        self.struck += 1
        with suppress(*GONE):
            await pipe.agent.stream.send_all(spoken(pipe.agent, self._words))
            await super().switch(pipe)


async def test_what_follows_paired_at_the_agent_is_no_client(stage: Stage) -> None:
    second: list[bytes | Message] = [PairedAgent(bytes(65), bytes(92)), HopError(Reason.SHUTDOWN), JUNK]
    assert await stage.attack((str(word), ToAgent([word]), LOST) for word in second) == {}


# What comes unasked


UNASKED: dict[str, tuple[type[DeviceConnection], list[bytes | Message]]] = {
    "PAIRED on a connection that has not opened": (DialConnection, [PairedForward(bytes(1419))]),
    "ERROR on a connection that has not opened": (DialConnection, [HopError(Reason.INTERNAL)]),
    "junk on a connection that waits to open": (DialConnection, [JUNK]),
    "an unknown message on a connection that waits for a client": (ReadyConnection, [PairedForward(bytes(1419))]),
    "junk on a connection that waits for a client": (ReadyConnection, [JUNK]),
}


@pytest.mark.parametrize("name", UNASKED)
async def test_what_nobody_asked_for_costs_a_connection_and_no_more(stage: Stage, name: str) -> None:
    kind, words = UNASKED[name]
    relay = stage.relay.role
    await until(lambda: relay.connections(kind))
    plot = Plot()
    for connection in relay.connections(kind):
        plot.struck += 1
        await connection.stream.send_all(spoken(connection, words))
    assert await stage.attack([(name, plot, UNHARMED)]) == {}


# What the handshake says


@asynccontextmanager
async def lying(stage: Stage, patch: pytest.MonkeyPatch, lie: Callable[[pytest.MonkeyPatch], object]) -> AsyncIterator[Plot]:
    """A relay that lies in every handshake from now on, when no connection waits for the next request."""
    plot = Plot()
    await stage.forget_dials()
    with patch.context() as lies:
        lie(lies)
        plot.struck += 1
        yield plot


def version(number: int) -> Callable[[pytest.MonkeyPatch], None]:
    class Reply(HelloReply):
        def __new__(cls, chosen: int, random: bytes, point: bytes) -> "Reply":
            return HelloReply(number, random, point)  # type: ignore[return-value]

        @classmethod
        def decode(cls, data: bytes) -> HelloReply:  # type: ignore[override]
            return HelloReply.decode(data)

    return lambda patch: patch.setattr(handshake, "HelloReply", Reply)


class OldRelay(RelayHandshake):
    """Says that it speaks nothing newer."""

    def _read_hello(self) -> None:
        if super()._read_hello() is not None:
            self._out = frame(VersionRefusal(0, 0, 0).encode())
            raise RemoteProtocolError("refused")


class Liar(RelayHandshake):
    """Lies about the device's address and the time."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings | {"observed": HostPort("203.0.113.66", 1), "now": 2**63})


class Renamer(RelayHandshake):
    """Issues somebody else's device ID."""

    def welcome(self) -> bytes:
        self._claim = self._claim.__class__(*(STRANGER.device_id if isinstance(x, DeviceID) else x for x in fields_of(self._claim)))
        return super().welcome()


def fields_of(claim: object) -> list[object]:
    return [getattr(claim, name) for name in claim.__dataclass_fields__]  # type: ignore[attr-defined]


def as_handshake(kind: type[RelayHandshake]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(reception, "RelayHandshake", kind)


LIES: dict[str, tuple[Callable[[pytest.MonkeyPatch], object], Expected]] = {
    "version 0": (version(0), NOT_UNDERSTOOD),
    "version 2": (version(2), NOT_UNDERSTOOD),
    "no version that fits": (as_handshake(OldRelay), Expected(ends(Reason.VERSION))),
    "another device ID": (as_handshake(Renamer), NOT_UNDERSTOOD),
    "another address and time": (as_handshake(Liar), UNHARMED),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_in_the_hop_handshake_opens_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    lie, expected = LIES[name]
    async with lying(stage, monkeypatch, lie) as plot:
        assert await stage.endure(plot, expected) == []
    assert await stage.serves_honestly()


async def test_lies_about_address_and_time_reach_the_agent_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lying(stage, monkeypatch, as_handshake(Liar)) as plot:
        stage.relay.role.hang_up(ReadyConnection)
        assert await stage.endure(plot, UNHARMED) == []


async def test_another_relay_in_its_place_is_an_alarm(stage: Stage) -> None:
    role, now = stage.relay.role._reception, int(time.time())
    genuine = role.credentials
    role.credentials = make_leaf(make_root(fresh_key(), now), fresh_key(), now)
    try:
        await stage.forget_dials()
        plot = Plot()
        plot.struck += 1
        stage.begin(plot)
        stage.relay.role.hang_up(ReadyConnection)
        await stage.agent.until(Alarm)  # it finds another relay where its tunnels wait, too
        story = await stage.story(await stage.ask())
        assert breaches(story, Expected(ends(Reason.RELAY_UNTRUSTED), frozenset({FORWARD, AGENT}))) == []
    finally:
        role.credentials = genuine
    assert await stage.serves_honestly()
