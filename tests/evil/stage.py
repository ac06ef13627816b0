"""The real roles that the evil relay attacks: an agent, a forward proxy, an app, a target, and a decoy that nobody asks for."""

import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import anyio

from tests.evil.relay import EvilRelay, EvilTunnels, Plot
from tests.evil.verdict import AGENT, APP_WORDS, CLEAN, FORWARD, RESET, TARGET_WORDS, Expected, Story, Visit, breaches
from tests.world import LOOPBACK, PATIENCE, Running, World, connect_through, until, world
from tuunel.agent import Agent
from tuunel.devices import Device, KnownRelay
from tuunel.errors import Reason
from tuunel.events import Alarm, Ready
from tuunel.identity import IdentityKey
from tuunel.proxy import Proxy
from tuunel.proxystatus import parse_proxy_status
from tuunel.rawstream import RawStream
from tuunel.settings import Home


@dataclass(frozen=True)
class Talk:
    """One request of the app: how it ended, and what the app heard."""

    outcome: str
    heard: bytes = b""


@dataclass
class Target:
    """A service that says its words, and ends when it has heard all of the app's: a clean end at the app is one in both directions."""

    visits: list[Visit] = field(default_factory=list)
    port: int = 0
    says: bytes = TARGET_WORDS

    async def serve(self, stream: RawStream) -> None:
        visit = Visit()
        self.visits.append(visit)
        visit.end = await speak(stream, self.says, visit.received, ends_last=True)


async def speak(stream: RawStream, says: bytes, heard: bytearray, *, ends_last: bool = False) -> str:
    """Say it all and end, while hearing to the end: how that came. With `ends_last` the own end is said when the other's was heard."""
    end = CLEAN
    ended = anyio.Event()

    async def say() -> None:
        nonlocal end
        try:
            await stream.send_all(says)
            if ends_last:
                await ended.wait()
            await stream.write_eof()
        except OSError:  # the kernel tells of a reset once, to whoever asks first
            end = RESET

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say)
        try:
            while data := await stream.receive():
                heard += data
            told = end
            ended.set()
        except OSError:
            told = RESET
            tasks.cancel_scope.cancel()
    stream.close()
    return told


async def ask(proxy: Running[Proxy], port: int, says: bytes, device: str = "home") -> Talk:
    """An app's request through a proxy to a service of a device, to its end."""
    try:
        stream = await connect_through(proxy, f"{device}.tuunel", port)
    except ConnectionRefusedError as refusal:
        status = re.search(r"(?mi)^proxy-status: *(.*?)\r?$", str(refusal))
        told = parse_proxy_status(status[1]) if status else None
        return Talk(str(told[1]) if told else f"refused without a reason: {refusal}")
    heard = bytearray()
    with closing(stream), anyio.move_on_after(PATIENCE):
        return Talk(await speak(stream, says, heard), bytes(heard))
    return Talk("nothing", bytes(heard))


@dataclass
class Stage:
    """Relay, agent, a paired machine with its proxy, and what they connect."""

    world: World
    relay: Running[EvilRelay]
    agent: Running[Agent]
    home: Home
    device: Device
    proxy: Running[Proxy]
    target: Target
    decoy: Target

    @property
    def tunnels(self) -> EvilTunnels:
        return self.relay.role.tunnels

    @property
    def known(self) -> KnownRelay:
        return self.device.relays[0]

    @property
    def client(self) -> IdentityKey:
        """The forward proxy's identity; the relay itself knows its public half only."""
        return IdentityKey.load(self.home.identity_key)

    @property
    def agent_identity(self) -> IdentityKey:
        """The agent's own: for what it may have signed in other times and places."""
        return IdentityKey.load(self.agent.home.identity_key)

    async def ask(self) -> Talk:
        """The app's request through the proxy, to its end."""
        return await ask(self.proxy, self.target.port, APP_WORDS)

    def begin(self, plot: Plot) -> None:
        """From here on the relay does what `plot` says; all that was noticed before is forgotten."""
        self.forget_standbys()
        self.relay.role.plot = plot
        self.target.visits.clear()
        self.decoy.visits.clear()
        self.agent.role._tunnels._alarmed = float("-inf")  # it does not repeat itself within a second
        for role in (self.proxy, self.agent):
            role.events[:] = [event for event in role.events if not isinstance(event, Alarm)]

    async def story(self, talk: Talk) -> Story:
        """What has happened since `begin`, when all of it is over."""
        plot = self.relay.role.plot
        await until(self._is_over)
        alarms = {name: [alarm.text for alarm in role.seen(Alarm)] for name, role in ((FORWARD, self.proxy), (AGENT, self.agent))}
        return Story(talk.outcome, talk.heard, list(self.target.visits), len(self.decoy.visits), alarms, plot.struck)

    def _is_over(self) -> bool:
        self.forget_standbys()
        return all(visit.end for visit in self.target.visits + self.decoy.visits) and not self.tunnels._switchboard.pipes

    @property
    def standbys(self) -> int:
        return sum(len(standbys.waiting) for standbys in self.proxy.role._reach.tunnels._standbys.values())

    async def forget_dials(self) -> None:
        """The next request shakes hands with the relay anew."""
        for dials in self.proxy.role._reach.tunnels._dials.values():
            await until(lambda dials=dials: not dials._refill.running)
            dials.drop()

    def forget_standbys(self) -> None:
        """The next request opens a tunnel of its own."""
        for standbys in self.proxy.role._reach.tunnels._standbys.values():
            standbys.waiting.clear()

    async def serves_honestly(self) -> bool:
        """Whether a request gets through whole, without an alarm, when the relay attacks no more."""
        self.begin(Plot())
        story = await self.story(await self.ask())
        whole = story.outcome == CLEAN and story.heard == TARGET_WORDS
        return whole and [visit.received for visit in story.visits] == [APP_WORDS] and not any(story.alarms.values())

    async def attack(self, attacks: Iterable[tuple[str, Plot, Expected]]) -> dict[str, list[str]]:
        """Let the app ask while the relay attacks, once for each: the promises that were broken, then and for the next honest request."""
        found = {name: await self.endure(plot, expected) for name, plot, expected in attacks}
        if not await self.serves_honestly():
            found["an honest request"] = ["did not get through afterwards"]
        return {name: broken for name, broken in found.items() if broken}

    async def endure(self, plot: Plot, expected: Expected) -> list[str]:
        """The promises that were broken while the relay attacked."""
        self.begin(plot)
        return breaches(await self.story(await self.ask()), expected)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    async with world() as made:
        home = made.home()

        def build(emit: Callable[[object], None]) -> EvilRelay:
            return EvilRelay(home, listen=LOOPBACK, advertise=None, open_enrolment=True, emit=emit)

        relay = made.start(home, build)
        agent = await made.agent((await relay.until(Ready)).link)
        client, device = await made.paired(agent)
        target, decoy = Target(), Target()
        for service in (target, decoy):
            service.port = await made.target(service.serve)
        yield Stage(made, relay, agent, client, device, await made.proxy(client), target, decoy)


def ends(*how: str) -> frozenset[str]:
    return frozenset(how)


LOST = Expected(ends(Reason.TUNNEL_LOST))
MISMATCH = Expected(ends(Reason.PEER_MISMATCH), frozenset({FORWARD}))
AGENT_MISMATCH = Expected(ends(Reason.TUNNEL_LOST), frozenset({AGENT}))
UNHARMED = Expected(ends(CLEAN), dials=1)
CUT_SHORT = Expected(ends(RESET), dials=1)
