"""The relay doubles, drops, moves, changes and cuts the records of UDP flows: no datagram arrives twice, late, changed or invented.

Datagrams may be lost, and then are: with a tunnel that was meddled with all its flows end, and the next datagram opens another.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from tests.evil.relay import Plot
from tests.evil.stage import Stage
from tests.evil.test_messages import Meddle, behind_the_next, double, drop, flip, invent, reflect
from tests.evil.test_truncation import CutAt
from tests.world import Running
from tuunel import association, deviceflows
from tuunel.datagrams import DatagramSocket
from tuunel.errors import Reason
from tuunel.events import Alarm, ConnectionClosed, Ready
from tuunel.forward import Forward

pytestmark = pytest.mark.anyio

#: up: INIT, CONNECT, FLOW_OPEN, DGRAM ...; down: ACCEPT, CONNECTED, FLOW_OPEN, DGRAM ...
FLOW_OPEN, DATAGRAM, LATER_DATAGRAM = 2, 3, 5
PACE = 0.003  #: seconds between two datagrams of the app: its own pace


@dataclass
class Game:
    """An app that sends numbered datagrams through a forward, and a target that answers each."""

    stage: Stage
    forward: Running[Forward]
    app: DatagramSocket
    at_target: list[bytes] = field(default_factory=list)
    at_app: list[bytes] = field(default_factory=list)
    sent: int = 0

    def answer(self, data: bytes) -> list[bytes]:
        self.at_target.append(data)
        return [data.replace(b"asks", b"told")]

    async def play_until(self, over: Callable[[], object]) -> None:
        with anyio.fail_after(10):
            while not over():
                self.app.send(b"asks %06d" % self.sent)
                self.sent += 1
                await anyio.sleep(PACE)
                while (answer := self.app.receive()) is not None:
                    self.at_app.append(answer)

    def breaches(self) -> list[str]:
        found = []
        for who, received, what in (("target", self.at_target, b"asks"), ("app", self.at_app, b"told")):
            true = [b"%s %06d" % (what, number) for number in range(self.sent)]
            if alien := set(received) - set(true):
                found.append(f"the {who} received what nobody sent: {alien}")
            if sorted(received) != received or len(set(received)) != len(received):
                found.append(f"the {who} received datagrams twice or out of order: {received}")
        ends = {closed.reason for closed in self.forward.seen(ConnectionClosed)}
        if not ends <= {*Reason, "reset", "done"}:
            found.append(f"flows ended without a name: {ends}")
        if alarms := self.forward.seen(Alarm) + self.stage.agent.seen(Alarm):
            found.append(f"alarms: {alarms}")
        return found


@asynccontextmanager
async def game(stage: Stage) -> AsyncIterator[Game]:
    holder: list[Game] = []

    def answer(data: bytes) -> list[bytes]:
        return holder[0].answer(data)

    target = stage.world.datagram_target(answer)
    forward = await stage.world.forward(stage.home, f"0:home.tuunel:{target}/udp")
    (ready,) = forward.seen(Ready)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", int(str(ready.listen).rpartition(":")[2])))
    holder.append(Game(stage, forward, DatagramSocket(sock)))
    try:
        yield holder[0]
    finally:
        holder[0].app.close()
        await forward.kill()


GAMES: dict[str, Callable[[str], Plot]] = {
    "a datagram twice": lambda way: Meddle(way, DATAGRAM, double),
    "a datagram dropped": lambda way: Meddle(way, DATAGRAM, drop),
    "a datagram behind the next": lambda way: Meddle(way, DATAGRAM, behind_the_next),
    "a datagram with a bit changed": lambda way: Meddle(way, LATER_DATAGRAM, flip(8)),
    "a datagram of the other direction": lambda way: Meddle(way, LATER_DATAGRAM, reflect),
    "bytes between datagrams": lambda way: Meddle(way, LATER_DATAGRAM, invent()),
    "FLOW_OPEN twice": lambda way: Meddle(way, FLOW_OPEN, double),
    "FLOW_OPEN dropped": lambda way: Meddle(way, FLOW_OPEN, drop),
    "an end inside FLOW_OPEN": lambda way: CutAt(way, FLOW_OPEN, 40, clean=True),
    "an end inside a datagram": lambda way: CutAt(way, DATAGRAM, 10, clean=True),
    "an end between datagrams": lambda way: CutAt(way, LATER_DATAGRAM, 0, clean=True),
}


@pytest.mark.parametrize("name", GAMES)
async def test_every_datagram_that_arrives_was_sent_and_arrives_once(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in (association, deviceflows):
        monkeypatch.setattr(module, "RETRY", 0.0)
    async with game(stage) as played:
        for way in ("up", "down"):
            plot = GAMES[name](way)
            stage.begin(plot)
            await played.play_until(lambda plot=plot: plot.struck)
            stage.relay.role.plot = Plot()
            heard = len(played.at_app)
            await played.play_until(lambda heard=heard: len(played.at_app) > heard + 3)
            assert played.breaches() == []
            for pipe in stage.tunnels._switchboard.pipes:  # the next attack is to meet a new tunnel
                pipe.forward.stream.reset()
