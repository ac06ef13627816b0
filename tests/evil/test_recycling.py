"""The relay plays with a tunnel that is used again: what ends one use and begins the next is lost, late, doubled or from before.

A request on such a tunnel fails over to a new one, so the app notices nothing; but nothing of one use is ever taken for another's.
"""

from collections.abc import Callable
from contextlib import suppress

import anyio
import pytest

from tests.evil.relay import GONE, Cut, Messages, Pieces, Plot
from tests.evil.stage import CUT_SHORT, Stage, ends
from tests.evil.verdict import CLEAN, RESET, TARGET_WORDS, Expected, breaches
from tests.world import connect_through, until
from tuunel import pool
from tuunel.e2e.handshake import INIT_HEADER
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream
from tuunel.relay.switchboard import Pipe

pytestmark = pytest.mark.anyio

ONE_BYTE = 21  #: bytes of a record with a body of one: FIN and RESET, and no other in these tunnels
KEY_UPDATE, CONNECT = 1, 2  #: the messages behind F's FIN; behind R's, in the second place, CONNECTED
CONNECTED = 2
BYTES = 5
ATTEMPTS = 3
ELSEWHERE = Expected(ends(CLEAN), dials=1)
DIALLED_TWICE = Expected(ends(CLEAN), dials=2)  #: the agent had dialled when the forward proxy found its tunnel spoilt
Change = Callable[["NextUse", bytes], Pieces]


@pytest.fixture(autouse=True)
def spares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tunnels that have been used are kept, and a request that loses one tries the next."""
    monkeypatch.setattr(pool, "MOST_KEPT", 4)
    monkeypatch.setattr(pool, "ATTEMPTS", ATTEMPTS)


class NextUse(Plot):
    """Do something to message `at` behind the FIN of one direction, once."""

    def __init__(self, way: str, at: int, change: Change) -> None:
        super().__init__()
        self._way, self._at, self._change = way, at, change
        self._behind_fin = {"up": 0, "down": 0}
        self.first_use: list[bytes] = []
        self.held: list[bytes] = []
        self.carried = 0

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.carried += 1
        return await super().carry(pipe)

    def up(self, number: int, message: bytes) -> Pieces:
        return self._pass("up", message)

    def down(self, number: int, message: bytes) -> Pieces:
        return self._pass("down", message)

    def _pass(self, way: str, message: bytes) -> Pieces:
        behind = self._behind_fin
        if behind[way] or len(message) == ONE_BYTE:
            behind[way] += 1
        if way != self._way:
            return [message]
        if self.struck:
            held, self.held = self.held, []
            return [message, *held]
        if behind[way] <= 1:
            self.first_use.append(message)
        if behind[way] != self._at + 1:
            return [message]
        self.struck += 1
        return self._change(self, message)

    @property
    def between_uses(self) -> bool:
        """Both ends have begun the next use, or the relay has kept them from it."""
        return bool(self.struck) or min(self._behind_fin.values()) > KEY_UPDATE


def keep(plot: NextUse, message: bytes) -> Pieces:
    return [message]


def lose(plot: NextUse, message: bytes) -> Pieces:
    return []


def double(plot: NextUse, message: bytes) -> Pieces:
    return [message, message]


def late(plot: NextUse, message: bytes) -> Pieces:
    plot.held.append(message)
    return []


def from_before(plot: NextUse, message: bytes) -> Pieces:
    """The message of the same kind of the first use, in the place of this."""
    return [next(old for old in plot.first_use[1:] if len(old) == len(message))]


def all_from_before(plot: NextUse, message: bytes) -> Pieces:
    return list(plot.first_use[1:])


def end(plot: NextUse, message: bytes) -> Pieces:
    raise Cut


def reset(plot: NextUse, message: bytes) -> Pieces:
    raise ConnectionResetError


GAMES: dict[str, tuple[str, int, Change, Expected]] = {
    "F's KEY_UPDATE is lost": ("up", KEY_UPDATE, lose, ELSEWHERE),
    "F's KEY_UPDATE comes twice": ("up", KEY_UPDATE, double, ELSEWHERE),
    "F's KEY_UPDATE comes behind CONNECT": ("up", KEY_UPDATE, late, ELSEWHERE),
    "an end in the place of F's KEY_UPDATE": ("up", KEY_UPDATE, end, ELSEWHERE),
    "a reset in the place of F's KEY_UPDATE": ("up", KEY_UPDATE, reset, ELSEWHERE),
    "R's KEY_UPDATE is lost": ("down", KEY_UPDATE, lose, DIALLED_TWICE),
    "R's KEY_UPDATE comes twice": ("down", KEY_UPDATE, double, DIALLED_TWICE),
    "R's KEY_UPDATE comes behind CONNECTED": ("down", KEY_UPDATE, late, DIALLED_TWICE),
    "an end in the place of R's KEY_UPDATE": ("down", KEY_UPDATE, end, ELSEWHERE),
    "a reset in the place of R's KEY_UPDATE": ("down", KEY_UPDATE, reset, ELSEWHERE),
    "CONNECT is lost": ("up", CONNECT, lose, ELSEWHERE),
    "CONNECT comes twice": ("up", CONNECT, double, DIALLED_TWICE),
    "CONNECT of the first use again": ("up", CONNECT, from_before, ELSEWHERE),
    "all of the first use again": ("up", CONNECT, all_from_before, ELSEWHERE),
    "an end in the place of CONNECT": ("up", CONNECT, end, ELSEWHERE),
    "CONNECTED is lost": ("down", CONNECTED, lose, DIALLED_TWICE),
    "CONNECTED of the first use again": ("down", CONNECTED, from_before, DIALLED_TWICE),
    "what R said in the first use again": ("down", CONNECTED, all_from_before, DIALLED_TWICE),
    "R's bytes of the first use again": ("down", BYTES, from_before, CUT_SHORT),
    "F's bytes of the first use again": ("up", BYTES, from_before, CUT_SHORT),
}


async def second_use(stage: Stage, plot: NextUse, expected: Expected) -> list[str]:
    """Ask twice, the second time on the tunnel of the first: what was broken the second time."""
    stage.begin(plot)
    assert (await stage.ask()).outcome == CLEAN
    await until(lambda: plot.between_uses and all(visit.end for visit in stage.target.visits))
    await until(lambda: plot.struck or stage.standbys)
    stage.target.visits.clear()
    return breaches(await stage.story(await stage.ask()), expected)


async def test_an_honest_relay_sees_one_tunnel_for_both(stage: Stage) -> None:
    plot = NextUse("up", CONNECT, keep)
    assert await second_use(stage, plot, ELSEWHERE) == []
    assert plot.carried == 1


@pytest.mark.parametrize("name", GAMES)
async def test_no_use_of_a_tunnel_is_taken_for_another(stage: Stage, name: str) -> None:
    way, at, change, expected = GAMES[name]
    plot = NextUse(way, at, change)
    assert await second_use(stage, plot, expected) == []
    assert plot.carried <= ATTEMPTS
    assert await stage.serves_honestly()


class LateReset(Plot):
    """Keep the first client's RESET to itself, and the agent's side open, until `deliver` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.deliver = anyio.Event()

    async def carry(self, pipe: Pipe) -> PumpEnd:
        if self.struck:
            return await super().carry(pipe)
        await self.answer(pipe)
        await self.switch(pipe)
        forward, agent = pipe.forward.stream, pipe.agent.stream
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._carry_down, agent, forward)
            with suppress(*GONE):
                await self._carry_up(forward, agent)
            self.struck += 1
            await self.deliver.wait()
            await agent.send_all(self._last)
        return PumpEnd.RESET

    async def _carry_up(self, forward: RawStream, agent: RawStream) -> None:
        divided = Messages(INIT_HEADER)
        while data := await forward.receive():
            for self._last in divided.feed(data):
                if len(self._last) != ONE_BYTE:
                    await agent.send_all(self._last)

    async def _carry_down(self, agent: RawStream, forward: RawStream) -> None:
        with suppress(*GONE):
            while data := await agent.receive():
                with suppress(*GONE):
                    await forward.send_all(data)


async def test_a_reset_that_comes_late_ends_nothing_but_its_own_connection(stage: Stage) -> None:
    plot = LateReset()
    stage.begin(plot)
    stream = await connect_through(stage.proxy, "home.tuunel", stage.target.port)
    assert TARGET_WORDS.startswith(await stream.receive_exactly(1000))
    stream.reset()
    await until(lambda: plot.struck)
    honest = await stage.ask()
    assert (honest.outcome, honest.heard) == (CLEAN, TARGET_WORDS)
    assert stage.target.visits[0].end == ""
    plot.deliver.set()
    story = await stage.story(honest)
    assert breaches(story, Expected(ends(CLEAN), dials=2)) == []
    assert [visit.end for visit in story.visits] == [RESET, CLEAN]
