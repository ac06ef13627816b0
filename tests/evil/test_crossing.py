"""The relay crosses two tunnels, of two clients to two agents: nobody hears a word that was meant for another."""

from contextlib import suppress
from dataclasses import dataclass

import anyio
import pytest

from tests.evil.relay import GONE, Messages, Plot
from tests.evil.stage import Stage, Talk, Target, ask, ends
from tests.evil.verdict import APP_WORDS, CLEAN, RESET, Expected, Story, breaches, words
from tests.world import Running
from tuunel.e2e.handshake import ACCEPT_HEADER, INIT_HEADER
from tuunel.errors import Reason
from tuunel.events import Alarm, Ready
from tuunel.proxy import Proxy
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream
from tuunel.relay.switchboard import Pipe

pytestmark = pytest.mark.anyio

OTHER_SAYS, OTHER_TOLD = words("begs"), words("said")


@dataclass
class OtherPair:
    """Another agent with another client, and what they serve."""

    proxy: Running[Proxy]
    target: Target


@pytest.fixture(scope="module")
async def others(stage: Stage) -> OtherPair:
    agent = await stage.world.agent((await stage.relay.until(Ready)).link)
    home, _ = await stage.world.paired(agent)
    target = Target(says=OTHER_TOLD)
    target.port = await stage.world.target(target.serve)
    return OtherPair(await stage.world.proxy(home), target)


class Cross(Plot):
    """Join each two tunnels crosswise, behind so many messages of each direction."""

    def __init__(self, behind: int) -> None:
        super().__init__()
        self._behind = behind
        self._waiting: list[tuple[Pipe, anyio.Event, list[Pipe]]] = []

    async def carry(self, pipe: Pipe) -> PumpEnd:
        await self.answer(pipe)
        await self.switch(pipe)
        partner = await self._partner(pipe)
        self.struck += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._carry, pipe.forward.stream, pipe.agent.stream, partner.agent.stream, INIT_HEADER)
            tasks.start_soon(self._carry, pipe.agent.stream, pipe.forward.stream, partner.forward.stream, ACCEPT_HEADER)
        return PumpEnd.RESET

    async def _partner(self, pipe: Pipe) -> Pipe:
        if self._waiting:
            partner, met, found = self._waiting.pop()
            found.append(pipe)
            met.set()
            return partner
        self._waiting.append((pipe, anyio.Event(), []))
        _, met, found = self._waiting[-1]
        await met.wait()
        return found[0]

    async def _carry(self, source: RawStream, own: RawStream, other: RawStream, header: int) -> None:
        divided, number = Messages(header), 0
        with suppress(*GONE):
            while data := await source.receive():
                for message in divided.feed(data):
                    await (own if number < self._behind else other).send_all(message)
                    number += 1
        for stream in (source, own, other):
            stream.reset()


@pytest.mark.parametrize(
    ("behind", "outcomes", "dials"),
    [(0, ends(Reason.TUNNEL_LOST), 0), (1, ends(Reason.TUNNEL_LOST), 1), (3, ends(RESET), 1)],
    ids=["from INIT on", "behind the handshake", "behind the first bytes"],
)
async def test_crossed_tunnels_carry_nothing(stage: Stage, others: OtherPair, behind: int, outcomes: frozenset[str], dials: int) -> None:
    others.target.visits.clear()
    stage.begin(Cross(behind))
    talks: dict[str, Talk] = {}

    async def talk(who: str, proxy: Running[Proxy], port: int, says: bytes) -> None:
        talks[who] = await ask(proxy, port, says)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talk, "ours", stage.proxy, stage.target.port, APP_WORDS)
        tasks.start_soon(talk, "theirs", others.proxy, others.target.port, OTHER_SAYS)
    ours = await stage.story(talks["ours"])
    theirs = Story(
        talks["theirs"].outcome, talks["theirs"].heard, others.target.visits, 0, ours.alarms, ours.struck, OTHER_SAYS, OTHER_TOLD
    )
    expected = Expected(outcomes, dials=dials)
    assert [breaches(ours, expected), breaches(theirs, expected), others.proxy.seen(Alarm)] == [[], [], []]
    assert await stage.serves_honestly()
    assert (await ask(others.proxy, others.target.port, OTHER_SAYS)) == Talk(CLEAN, OTHER_TOLD)
