"""One client's datagrams: to any number of targets, each told of as a flow, through devices and directly."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from tests.world import PATIENCE, Trio, World, trio, until, world
from tuunel import association as module
from tuunel.address import HostPort
from tuunel.association import MAX_FLOWS, Association, Route
from tuunel.errors import Failure, Reason
from tuunel.events import ConnectionChanged, ConnectionClosed, ConnectionOpened, Event
from tuunel.reach import Reach
from tuunel.routing import ThroughDevice, resolve_name
from tuunel.targetflow import Rule

pytestmark = pytest.mark.anyio

ANYWHERE = Rule(list, lambda: None)
LOST = b"what the client's socket has no room for"


@dataclass
class Client:
    """An association's user, who notes what comes."""

    association: Association
    received: list[tuple[Hashable, bytes]]
    events: list[Event]

    def send(self, target: HostPort, payload: bytes, key: Hashable = None) -> None:
        self.association.send(target, payload, key)
        self.association.flush()

    def opened(self) -> list[ConnectionOpened]:
        return [event for event in self.events if isinstance(event, ConnectionOpened)]

    def closed(self) -> list[ConnectionClosed]:
        return [event for event in self.events if isinstance(event, ConnectionClosed)]


@dataclass
class Setting:
    world: World
    roles: Trio
    reach: Reach
    events: list[Event] = field(default_factory=list)

    def route(self, target: HostPort) -> ThroughDevice | Rule:
        if target.host.endswith(".tuunel"):
            return ThroughDevice(*resolve_name(self.reach.devices, target.host))
        return ANYWHERE

    @asynccontextmanager
    async def client(self, route: Route | None = None) -> AsyncIterator[Client]:
        received: list[tuple[Hashable, bytes]] = []

        def deliver(key: Hashable, data: bytes) -> bool:
            if data == LOST:
                return False
            received.append((key, data))
            return True

        async with self.reach.associate(route or self.route, door="socks5", deliver=deliver) as association:
            yield Client(association, received, self.events)


@asynccontextmanager
async def setting() -> AsyncIterator[Setting]:
    async with world() as made:
        roles = await trio(made)
        events: list[Event] = []
        async with Reach(roles.home, events.append) as reach:
            yield Setting(made, roles, reach, events)
        assert reach.buffers.lent == 0


async def test_each_target_is_a_flow_that_is_told_of_and_counted() -> None:
    async with setting() as here:
        ports = [here.world.datagram_target(lambda data: [data, data]) for _ in range(2)]
        targets = [HostPort("home.tuunel", port) for port in ports]
        async with here.client() as client:
            for target in targets:
                client.send(target, b"hello")
            await until(lambda: len(client.received) == 4)
        assert sorted(client.received, key=str) == sorted([(target, b"hello") for target in targets] * 2, key=str)
        assert [(event.target, event.device, event.door, event.path) for event in client.opened()] == [
            (f"{target}/udp", "home", "socks5", "relay") for target in targets
        ]
        assert [(event.traffic.up, event.traffic.down, event.traffic.lost) for event in client.opened()] == [(5, 10, 0)] * 2
        changed = [event for event in here.events if isinstance(event, ConnectionChanged)]
        assert len({event.tunnel for event in changed}) == 1
        assert [event.reason for event in client.closed()] == ["done", "done"]


async def test_a_target_that_is_no_devices_is_reached_directly() -> None:
    async with setting() as here:
        target = HostPort("127.0.0.1", here.world.datagram_target())
        async with here.client() as client:
            client.send(target, b"hello")
            await until(lambda: client.received)
            assert client.received == [(target, b"hello")]
            assert [(event.device, event.path) for event in client.opened()] == [("", "direct")]
        assert [event.reason for event in client.closed()] == ["done"]


async def test_an_answer_that_the_client_cannot_take_is_counted_as_lost() -> None:
    async with setting() as here, here.client() as client:
        target = HostPort("home.tuunel", here.world.datagram_target())
        for data in (LOST, b"taken"):
            client.send(target, data)
        await until(lambda: client.received)
        traffic = client.opened()[0].traffic
        assert (traffic.down, traffic.lost) == (len(b"taken"), 1)


async def test_what_never_left_is_lost_and_not_counted_as_sent() -> None:
    async with setting() as here, here.client() as client:
        await here.roles.agent.kill()
        for data in (b"one", b"three"):
            client.send(HostPort("home.tuunel", 53), data)
        await until(client.closed)
        traffic = client.opened()[0].traffic
        assert (traffic.up, traffic.lost) == (0, 2)


@pytest.mark.parametrize("host", ["home.tuunel", "127.0.0.1"])
async def test_a_client_that_sends_one_datagram_and_leaves_loses_nothing(host: str) -> None:
    async with setting() as here:
        heard: list[bytes] = []
        port = here.world.datagram_target(lambda data: heard.append(data) or [])  # type: ignore[func-returns-value]
        async with here.client() as client:
            client.send(HostPort(host, port), b"a line of a log")
        await until(lambda: heard == [b"a line of a log"])
        assert [(event.traffic.up, event.traffic.lost) for event in client.opened()] == [(15, 0)]


async def test_keys_tell_flows_to_one_target_apart() -> None:
    async with setting() as here:
        port = here.world.datagram_target()
        async with here.client() as client:
            for key in ("first", "second"):
                client.send(HostPort("home.tuunel", port), key.encode(), key)
            await until(lambda: len(client.received) == 2)
            assert sorted(client.received, key=str) == [("first", b"first"), ("second", b"second")]
            assert len(client.opened()) == 2


async def test_a_flow_that_is_refused_is_told_once_and_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:
        target = HostPort("169.254.1.1.home.tuunel", 53)
        client.send(target, b"x")
        await until(client.closed)
        for _ in range(100):
            client.send(target, b"x")
        assert [event.reason for event in client.closed()] == [Reason.POLICY_DENIED]
        assert "agent" in client.closed()[0].detail
        assert len(client.opened()) == 1
        assert client.opened()[0].traffic.lost == 100
        monkeypatch.setattr(module, "RETRY", 0.0)
        client.send(target, b"x")
        assert len(client.opened()) == 2


async def test_a_name_that_nobody_knows_is_told_and_the_others_go_on() -> None:
    async with setting() as here, here.client() as client:
        target = HostPort("127.0.0.1", here.world.datagram_target())
        client.send(HostPort("hme.tuunel", 53), b"x")
        client.send(target, b"hello")
        await until(lambda: client.received)
        assert [event.reason for event in client.closed()] == [Reason.UNKNOWN_NAME]


async def test_what_a_route_refuses_is_told() -> None:
    def refuse(_: HostPort) -> ThroughDevice:
        raise Failure(Reason.REFUSED_BY_SETTING)

    async with setting() as here, here.client(refuse) as client:
        client.send(HostPort("example.net", 53), b"x")
        assert [event.reason for event in client.closed()] == [Reason.REFUSED_BY_SETTING]


async def test_a_client_that_asks_for_ten_thousand_flows_is_bounded_and_told() -> None:
    async with setting() as here:
        quiet = HostPort("127.0.0.1", here.world.datagram_target())
        async with here.client() as client:
            client.send(quiet, b"first")
            for number in range(10_000):
                client.send(HostPort("127.0.0.1", 1024 + number % 60_000), b"x", number)
            assert len(client.association._flows) == MAX_FLOWS
            told = [event for event in client.closed() if event.reason == Reason.LIMIT]
            assert 1 <= len(told) <= 10  # once a second
            client.send(quiet, b"second")
            await until(lambda: [data for key, data in client.received if key == quiet] == [b"first", b"second"])


async def test_an_idle_flow_is_forgotten_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.targetflow.IDLE_TIME", 0.0)
    async with setting() as here, here.client() as client:
        target = HostPort("127.0.0.1", here.world.datagram_target(lambda _: []))
        client.send(target, b"x")
        await until(client.closed)
        assert [event.reason for event in client.closed()] == ["done"]
        assert not client.association._flows
        client.send(target, b"x")
        assert len(client.opened()) == 2


async def test_the_end_of_the_association_ends_every_flow_and_tells_the_agent() -> None:
    async with setting() as here:
        port = here.world.datagram_target()
        async with here.client() as client:
            client.send(HostPort("home.tuunel", port), b"x")
            client.send(HostPort("127.0.0.1", port), b"x")
            await until(lambda: len(client.received) == 2)
        assert [event.reason for event in client.closed()] == ["done", "done"]
        agents = await here.roles.agent.until(ConnectionClosed)
        assert agents.reason == "done"


async def test_an_association_that_is_cancelled_leaves_nothing_behind() -> None:
    async with setting() as here:
        port = here.world.datagram_target()
        with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
            async with here.client() as client:
                client.send(HostPort("home.tuunel", port), b"x")
                await until(lambda: client.received)
                scope.cancel()
        assert len(here.reach.ledger) == 0
