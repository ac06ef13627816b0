"""The relay breaks the rules of CONTROL, where agents and forward proxies stand by: with junk, with repeats, with floods of words.

The role that hears it names the fault once, stays up, and is there again; tunnels need no more than the next connection.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.evil.relay import seal_raw
from tests.evil.stage import Stage
from tests.world import Running, until
from tuunel.backoff import Backoff
from tuunel.errors import Reason
from tuunel.events import Alarm, Notice, RelayStateChanged
from tuunel.journal import sentence
from tuunel.relay.connection import ControlConnection
from tuunel.relay.framing import frame
from tuunel.relay.wire import (
    DETAIL_CEILING,
    Admission,
    Demand,
    HopError,
    Message,
    Offer,
    Open,
    PairedAgent,
    PairedForward,
    Role,
    Switch,
    encode_message,
)
from tuunel.relay.wire import Notice as RelayNotice

pytestmark = pytest.mark.anyio

Word = Callable[[ControlConnection], bytes]
HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202egnorw\u202c\r\ngive me your keys"
NOTICE = 0x26


def sealed(message: Message) -> Word:
    return lambda control: seal_raw(control, encode_message(message))


def notice(tunnel_id: bytes, detail: bytes) -> Word:
    """A NOTICE in any spelling."""
    reason = encode_message(RelayNotice(Reason.QUOTA))[1:2]
    fields = len(tunnel_id).to_bytes(1) + tunnel_id + len(detail).to_bytes(1) + detail
    return lambda control: seal_raw(control, bytes([NOTICE]) + reason + fields)


def twice(control: ControlConnection) -> bytes:
    return 2 * sealed(Demand(2))(control)


def out_of_place(control: ControlConnection) -> bytes:
    first, second = sealed(Demand(2))(control), sealed(Demand(2))(control)
    return second + first


def spoilt(control: ControlConnection) -> bytes:
    record = bytearray(sealed(Demand(2))(control))
    record[-1] ^= 1
    return bytes(record)


JUNK: dict[str, Word] = {
    "a length that no record has": lambda _: bytes(64),
    "a record longer than any": lambda _: b"\xff\xff" + bytes(64),
    "a record that no key has sealed": lambda _: frame(bytes(64)),
    "a changed record": spoilt,
    "a record twice": twice,
    "records out of order": out_of_place,
    "an unknown message": lambda control: seal_raw(control, b"\xff"),
    "an empty record": lambda control: seal_raw(control, b""),
    "bytes behind a message": lambda control: seal_raw(control, encode_message(Demand(2)) + b"x"),
    "a notice in words longer than any": notice(b"", bytes(DETAIL_CEILING + 1)),
    "a notice that is no text": notice(b"", b"\xff\xfe"),
    "a reason that there is not": lambda control: seal_raw(control, bytes([NOTICE, 0xFF, 0, 0])),
    "a client for the agent": sealed(PairedAgent(bytes(65), bytes(92))),
    "an offer for the forward proxy": sealed(PairedForward(bytes(1419))),
    "a device's own words": sealed(Admission(first=True, last=True, enrolled=True)),
}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.0)


def control_of(stage: Stage, role: Role) -> ControlConnection | None:
    return next((each for each in stage.relay.role.connections(ControlConnection) if each.role is role and not each.cut_for), None)


async def present(stage: Stage, role: Role) -> ControlConnection:
    await until(lambda: control_of(stage, role))
    control = control_of(stage, role)
    assert isinstance(control, ControlConnection)
    return control


async def tunnels_wait(stage: Stage) -> None:
    """The agent that is here again has told whom it admits, and brought a connection."""
    agents = stage.relay.role._switchboard.registry._agents
    await until(lambda: any(agent.parked and agent.admissions.paired for agent in agents.values()))


def victims(stage: Stage) -> list[tuple[Role, Running[Any]]]:
    return [(Role.AGENT, stage.agent), (Role.FORWARD, stage.proxy)]


def states(victim: Running[Any]) -> list[RelayStateChanged]:
    return victim.seen(RelayStateChanged)


async def lost_and_found(stage: Stage, role: Role, victim: Running[Any], word: Word) -> list[str]:
    """Say it, wait until the role is there again, and return the reasons that its person was shown meanwhile."""
    control = await present(stage, role)
    victim.events.clear()
    await control.stream.send_all(word(control))
    await until(lambda: [each.state for each in states(victim)][-1:] == ["online"] and control_of(stage, role) not in (None, control))
    assert not victim.over.is_set()
    assert not victim.seen(Alarm)
    return [each.detail for each in states(victim) if each.state == "offline"]


async def test_junk_costs_the_connection_has_a_name_and_ends_no_role(stage: Stage, at_once: None) -> None:
    assert await stage.serves_honestly()  # the forward proxy is present from its first request on
    for role, victim in victims(stage):
        for name, word in JUNK.items():
            told = await lost_and_found(stage, role, victim, word)
            assert len(told) == 1, name
            assert "do not understand each other" in told[0], (name, told)
    await tunnels_wait(stage)
    assert await stage.serves_honestly()


async def test_a_flood_of_notices_is_one_line_and_harmless_on_a_terminal(stage: Stage, at_once: None) -> None:
    assert await stage.serves_honestly()
    for role, victim in victims(stage):
        flood = [RelayNotice(Reason.QUOTA, "", HOSTILE) for _ in range(2000)]
        last = HopError(Reason.SHUTDOWN, 0, HOSTILE)  # told once all of the flood was heard

        def words(control: ControlConnection, said: Sequence[Message] = (*flood, last)) -> bytes:
            return b"".join(sealed(message)(control) for message in said)

        assert len(await lost_and_found(stage, role, victim, words)) == 1
        assert len(victim.seen(Notice)) <= 1
        for event in victim.events:
            if isinstance(event, Notice | RelayStateChanged):
                assert sentence(event).isprintable()
    await tunnels_wait(stage)
    assert await stage.serves_honestly()


DEVICE_WORDS: dict[str, Message] = {
    "an offer": Offer(bytes(1419)),
    "an open": Open(bytes(92)),
    "a switch": Switch(),
    "the relay's own words": Demand(64),
    "an admission list without its first record": Admission(first=False, last=True, enrolled=True),
}


@pytest.mark.parametrize("name", DEVICE_WORDS)
async def test_a_device_that_breaks_the_rules_of_control_loses_it(stage: Stage, at_once: None, name: str) -> None:
    before = await present(stage, Role.AGENT)
    connection = stage.agent.role._connection
    assert connection
    stage.agent.events.clear()
    await connection.stream.send_all(connection._channel._sealer.seal(encode_message(DEVICE_WORDS[name])))
    await until(lambda: control_of(stage, Role.AGENT) not in (None, before))
    assert stage.relay.error is None
    assert not stage.relay.seen(Alarm)
    await tunnels_wait(stage)
    assert await stage.serves_honestly()
