"""The relay changes, invents, drops, doubles, reorders and reflects the tunnel's messages: nothing of it reaches an app."""

from collections.abc import Callable

import pytest

from tests.evil.relay import Pieces, Plot
from tests.evil.stage import CUT_SHORT, LOST, UNHARMED, Stage, ends
from tests.evil.verdict import CLEAN, RESET, Expected
from tuunel import pool
from tuunel.errors import Reason

pytestmark = pytest.mark.anyio

DIALLED = Expected(ends(Reason.TUNNEL_LOST), dials=1)
SOONER_OR_LATER = Expected(ends(RESET, Reason.TUNNEL_LOST), dials=1)
Change = Callable[["Meddle", bytes], Pieces]


class Meddle(Plot):
    """Do something to message `at` of one direction; `held` and `other` are for what needs more than one message."""

    def __init__(self, way: str, at: int, change: Change) -> None:
        super().__init__()
        self._way, self._at, self._change = way, at, change
        self.held = b""
        self.latest = {"up": b"", "down": b""}

    def _meddle(self, way: str, number: int, message: bytes) -> Pieces:
        self.latest[way] = message
        if way != self._way:
            return [message]
        if number == self._at:
            self.struck += 1
            return self._change(self, message)
        if self.held:
            held, self.held = self.held, b""
            return [message, held]
        return [message]

    def up(self, number: int, message: bytes) -> Pieces:
        return self._meddle("up", number, message)

    def down(self, number: int, message: bytes) -> Pieces:
        return self._meddle("down", number, message)


def flip(at: int) -> Change:
    def change(plot: Meddle, message: bytes) -> Pieces:
        changed = bytearray(message)
        changed[at] ^= 1
        return [bytes(changed)]

    return change


def drop(plot: Meddle, message: bytes) -> Pieces:
    return []


def double(plot: Meddle, message: bytes) -> Pieces:
    return [message, message]


def behind_the_next(plot: Meddle, message: bytes) -> Pieces:
    plot.held = message
    return []


def reflect(plot: Meddle, message: bytes) -> Pieces:
    """What this end has sent last, in the place of what it is sent."""
    return [plot.latest["down" if plot._way == "up" else "up"] or message[::-1]]


def invent(before: bytes = b"") -> Change:
    return lambda plot, message: [before or bytes(range(256)), message]


def a_record_of_nothing(plot: Meddle, message: bytes) -> Pieces:
    return [(17).to_bytes(3, "big") + bytes(17), message]


def huge_length(plot: Meddle, message: bytes) -> Pieces:
    return [b"\xff\xff\xff" + message[3:]]


def shorter_length(plot: Meddle, message: bytes) -> Pieces:
    return [(int.from_bytes(message[:3], "big") - 1).to_bytes(3, "big") + message[3:]]


IN_HANDSHAKE: dict[str, tuple[str, int, Change, Expected]] = {
    "INIT: first bit of the KEM's ciphertext": ("up", 0, flip(0), LOST),
    "INIT: last bit of the KEM's ciphertext": ("up", 0, flip(1087), LOST),
    "INIT: the length": ("up", 0, flip(1089), LOST),
    "INIT: the sealed identity": ("up", 0, flip(1095), LOST),
    "INIT: the tag": ("up", 0, flip(-1), LOST),
    "INIT twice": ("up", 0, double, SOONER_OR_LATER),
    "INIT behind CONNECT": ("up", 0, behind_the_next, LOST),
    "bytes before INIT": ("up", 0, invent(), LOST),
    "bytes behind INIT": ("up", 1, invent(), SOONER_OR_LATER),
    "CONNECT: a bit of the target": ("up", 1, flip(10), SOONER_OR_LATER),
    "CONNECT twice": ("up", 1, double, SOONER_OR_LATER),
    "ACCEPT: the length": ("down", 0, flip(1), DIALLED),
    "ACCEPT: a bit": ("down", 0, flip(20), DIALLED),
    "ACCEPT: the tag": ("down", 0, flip(-1), DIALLED),
    "ACCEPT twice": ("down", 0, double, DIALLED),
    "ACCEPT behind CONNECTED": ("down", 0, behind_the_next, DIALLED),
    "F's INIT as ACCEPT": ("down", 0, lambda plot, message: [plot.latest["up"]], DIALLED),
    "bytes before ACCEPT": ("down", 0, invent(), DIALLED),
    "a record before CONNECTED": ("down", 1, a_record_of_nothing, DIALLED),
    "CONNECTED: a bit": ("down", 1, flip(10), DIALLED),
    "CONNECTED twice": ("down", 1, double, SOONER_OR_LATER),
}

IN_STREAM: dict[str, Change] = {
    "a bit of the length": flip(2),
    "a bit of the type": flip(3),
    "a bit of the first byte": flip(4),
    "a bit in the middle": flip(4000),
    "a bit of the tag": flip(-1),
    "the length of nothing possible": huge_length,
    "a length of one less": shorter_length,
    "dropped": drop,
    "doubled": double,
    "behind the next": behind_the_next,
    "reflected": reflect,
    "bytes before it": invent(),
    "a record before it": a_record_of_nothing,
}


async def test_a_handshake_that_was_meddled_with_opens_nothing(stage: Stage) -> None:
    assert await stage.attack((name, Meddle(way, at, change), told) for name, (way, at, change, told) in IN_HANDSHAKE.items()) == {}


async def test_each_of_several_attempts_ends_alike(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ATTEMPTS", 3)
    init, accept = Meddle("up", 0, flip(0)), Meddle("down", 0, flip(20))
    dialled = Expected(ends(Reason.TUNNEL_LOST), dials=3)
    assert await stage.attack([("INIT", init, LOST), ("ACCEPT", accept, dialled)]) == {}
    assert (init.struck, accept.struck) == (3, 3)


@pytest.mark.parametrize("name", IN_STREAM)
async def test_no_byte_that_was_meddled_with_reaches_an_app(stage: Stage, name: str) -> None:
    places = [("up", 2), ("up", 4), ("down", 3)]
    assert await stage.attack((f"{way} {at}", Meddle(way, at, IN_STREAM[name]), CUT_SHORT) for way, at in places) == {}


class Wait(Plot):
    """Hold every message back for a while, and send it in crumbs."""

    def __init__(self, turns: int, crumb: int) -> None:
        super().__init__()
        self._turns, self._crumb = turns, crumb

    def _wait(self, message: bytes) -> Pieces:
        self.struck += 1
        yield from [None] * self._turns
        for at in range(0, len(message), self._crumb):
            yield message[at : at + self._crumb]
            yield None

    def up(self, number: int, message: bytes) -> Pieces:
        return self._wait(message)

    def down(self, number: int, message: bytes) -> Pieces:
        return self._wait(message)


async def test_delay_is_no_attack(stage: Stage) -> None:
    delays = {"long": Wait(300, 1 << 20), "in crumbs": Wait(0, 400), "short": Wait(3, 1 << 20)}
    assert UNHARMED.ends == {CLEAN}
    assert await stage.attack((name, delay, UNHARMED) for name, delay in delays.items()) == {}
