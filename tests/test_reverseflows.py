"""UDP at the agent: every flow is judged for itself, has its own socket, and neither its end nor its flood touches another."""

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from tests.world import Trio, World, open_descriptors, pool_of, trio, until, world
from tuunel import reverse, reverseflows, targetflow
from tuunel.address import HostPort
from tuunel.devices import Device
from tuunel.e2e.flows import MAX_FLOWS, FlowData, FlowEnded, FlowOpen, FlowReady, ForwardFlows
from tuunel.e2e.wire import Command, Phase, RecordType
from tuunel.errors import Failure, Reason, StateError
from tuunel.events import Alarm, ConnectionChanged, ConnectionClosed, ConnectionOpened, Ready
from tuunel.links import parse_invite
from tuunel.policy import Surroundings
from tuunel.pool import TunnelPool
from tuunel.pump import BROKEN
from tuunel.rawstream import Rest
from tuunel.reverse import ReverseTunnels
from tuunel.tunnel import Tunnel

pytestmark = pytest.mark.anyio

NOWHERE = HostPort("169.254.1.1", 53)  #: link-local: no general grant opens it


async def send(tunnel: Tunnel, records: Sequence[tuple[RecordType, bytes]]) -> None:
    if rest := tunnel.send_now(records):
        await rest()


@dataclass
class Client:
    """The forward proxy's end of a UDP tunnel, driven by hand: what was sent is flushed at once, what comes is noted by flow."""

    tunnel: Tunnel
    core: ForwardFlows = field(default_factory=lambda: ForwardFlows(lambda *_: None))
    opened: dict[int, HostPort] = field(default_factory=dict)
    received: dict[int, list[bytes]] = field(default_factory=dict)
    ended: dict[int, FlowEnded] = field(default_factory=dict)
    fin: bool = False
    cut: bool = False

    async def open(self, target: HostPort, *payloads: bytes) -> int:
        flow = self.core.open(target)
        self.received[flow] = []
        self.ended.pop(flow, None)
        for payload in payloads:
            assert self.core.send(flow, payload)
        await self.flush()
        return flow

    async def send(self, flow: int, payload: bytes) -> None:
        assert self.core.send(flow, payload)
        await self.flush()

    async def close(self, flow: int) -> None:
        self.core.close(flow)
        await self.flush()

    async def flush(self) -> None:
        while self.core.outbox:
            await send(self.tunnel, self.core.outbox.take())

    async def read(self) -> None:
        try:
            while not self.fin:
                record = await self.tunnel.on_records(
                    lambda: self.tunnel.take(RecordType.FIN, RecordType.FLOW_OPEN, RecordType.FLOW_CLOSE, RecordType.DGRAM)
                )
                if record[0] is RecordType.FIN:
                    self.fin = True
                else:
                    self.note(self.core.receive(*record))
                await self.flush()
        except BROKEN:
            self.cut = True

    def note(self, event: object) -> None:
        match event:
            case FlowReady(flow, bound):
                self.opened[flow] = bound
            case FlowData(flow, payload):
                self.received[flow].append(payload)
            case FlowEnded(flow):
                self.ended[flow] = event

    async def until_refused(self, target: HostPort, *payloads: bytes) -> FlowEnded:
        flow = await self.open(target, *payloads)
        await until(lambda: flow in self.ended)
        return self.ended[flow]

    async def works(self, port: int) -> None:
        flow = await self.open(HostPort("", port), b"ping")
        await until(lambda: self.received[flow] == [b"ping"])
        await self.close(flow)


@dataclass
class Setting:
    world: World
    roles: Trio
    tunnels: ReverseTunnels
    pool: TunnelPool

    @asynccontextmanager
    async def client(self, device: Device | None = None) -> AsyncIterator[Client]:
        tunnel, bound = await self.pool.connect(device or self.roles.device, HostPort("", 0), command=Command.UDP)
        assert bound == HostPort("0.0.0.0", 0)
        client = Client(tunnel)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read)
            try:
                yield client
            finally:
                tunnel.reset()
                tasks.cancel_scope.cancel()

    def closed(self, target: str) -> list[ConnectionClosed]:
        ids = {event.id for event in self.roles.agent.seen(ConnectionOpened) if event.target == target}
        return self.roles.agent.seen(ConnectionClosed, lambda event: event.id in ids)


@asynccontextmanager
async def setting(**invite: object) -> AsyncIterator[Setting]:
    """`invite`: what the client is let in to; `*` unless told otherwise."""
    async with world() as made:
        roles = await trio(made)
        if invite:
            roles.home, roles.device = await made.paired(roles.agent, name="guest", **invite)
        async with pool_of(roles.home) as pool:
            yield Setting(made, roles, roles.agent.role._tunnels, pool)


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Names under `.hangs` do not resolve until the event is set, and then fail; those under `.resolves` are this machine."""
    released = threading.Event()
    getaddrinfo = socket.getaddrinfo

    def hang(host: str, *rest: object, **more: object) -> object:
        if host.endswith(".hangs"):
            released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        if host.endswith(".resolves"):
            host = "127.0.0.1"
        return getaddrinfo(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield released
    released.set()
    for thread in threading.enumerate():
        if thread.name == "tuunel-lookup":
            thread.join(10)


# carrying


async def test_datagrams_of_any_size_pass_both_ways_and_the_ledger_knows() -> None:
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        payloads = [b"early", b"", bytes(65507)]
        flow = await client.open(HostPort("", port), *payloads)
        await until(lambda: client.received[flow] == payloads)
        assert client.opened[flow].host == "127.0.0.1"
        (opened,) = here.roles.agent.seen(ConnectionOpened)
        assert (opened.target, opened.door) == (f"localhost:{port}/udp", "tunnel")
        assert here.roles.agent.seen(ConnectionChanged, lambda event: event.id == opened.id and event.tunnel == client.tunnel.id)
        assert (opened.traffic.up, opened.traffic.down, opened.traffic.lost) == (65512, 65512, 0)
        await client.close(flow)
        await until(lambda: here.closed(opened.target))
        assert [event.reason for event in here.closed(opened.target)] == ["done"]
        await until(lambda: len(client.core) == 0)
        assert not client.ended


async def test_each_flow_has_its_own_entry_and_its_own_answers() -> None:
    async with setting() as here, here.client() as client:
        ports = [here.world.datagram_target(lambda data, number=number: [b"%d " % number + data]) for number in range(10)]
        flows = [await client.open(HostPort("127.0.0.1", port), b"x") for port in ports]
        await until(lambda: all(client.received[flow] for flow in flows))
        assert [client.received[flow] for flow in flows] == [[b"%d x" % number] for number in range(10)]
        assert {event.target for event in here.roles.agent.seen(ConnectionOpened)} == {f"127.0.0.1:{port}/udp" for port in ports}


async def test_a_strangers_datagram_never_arrives() -> None:
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        flow = await client.open(HostPort("", port), b"one")
        await until(lambda: client.received[flow])
        bound = client.opened[flow]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"from a stranger", (bound.host, bound.port))
        await client.send(flow, b"two")
        await until(lambda: client.received[flow] == [b"one", b"two"])


async def test_the_forward_proxys_end_ends_every_flow_and_is_answered() -> None:
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        for _ in range(3):
            await client.open(HostPort("", port), b"x")
        await until(lambda: all(client.received.values()))
        await client.tunnel.write_eof()
        await until(lambda: client.fin)
        await client.tunnel.aclose()
        await until(lambda: not here.tunnels._clients)
        assert [event.reason for event in here.closed(f"localhost:{port}/udp")] == ["done"] * 3


async def test_the_end_is_clean_although_the_client_has_not_read_what_was_sent() -> None:
    async with setting() as here:
        tunnel, _ = await here.pool.connect(here.roles.device, HostPort("", 0), command=Command.UDP)
        client = Client(tunnel)
        port = here.world.datagram_target(lambda _: [bytes(30_000)] * 3)
        flow = await client.open(HostPort("", port), b"go")
        (served,) = here.tunnels._clients
        blocked = 0
        while blocked < 20:  # every buffer on the way is full
            await client.send(flow, b"go")
            await anyio.wait_all_tasks_blocked()
            blocked = blocked + 1 if served.records._writer.busy else 0
        await tunnel.write_eof()
        await until(lambda: here.closed(f"localhost:{port}/udp"))
        await client.read()
        assert (client.fin, client.cut) == (True, False)
        await tunnel.aclose()
        assert tunnel.cut_reason == ""


async def test_a_client_that_is_gone_leaves_nothing_behind() -> None:
    async with setting() as here:
        port = here.world.datagram_target()
        async with here.client() as client:
            await client.open(HostPort("", port), b"x")
            await until(lambda: client.opened)
        await until(lambda: not here.tunnels._clients)
        assert [event.reason for event in here.closed(f"localhost:{port}/udp")] == ["reset"]


# ends


async def test_a_silent_flow_ends_and_its_number_may_be_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        with monkeypatch.context() as patch:
            patch.setattr(targetflow, "IDLE_TIME", 0)
            end = await client.until_refused(HostPort("", port))
        assert (end.reason, end.detail) == (None, "")
        assert [event.reason for event in here.closed(f"localhost:{port}/udp")] == ["done"]
        await until(lambda: len(client.core) == 0)
        client.core._next = end.flow
        await client.works(port)


async def test_a_target_that_refuses_is_told_and_its_number_may_be_used_again() -> None:
    async with setting() as here, here.client() as client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        end = await client.until_refused(HostPort("", port), b"anybody?")
        assert end.reason is Reason.CONNECTION_REFUSED
        assert [event.reason for event in here.closed(f"localhost:{port}/udp")] == ["CONNECTION_REFUSED"]
        client.core._next = end.flow
        await client.works(here.world.datagram_target())


async def test_what_an_ended_flow_still_receives_never_reaches_the_next_one_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    lingering: list[Callable[[bytes], object]] = []

    class Lingering(targetflow.TargetFlow):
        async def run(self, opened: Callable[[HostPort], object]) -> None:
            lingering.append(self._deliver)
            await super().run(opened)

    monkeypatch.setattr(reverseflows, "TargetFlow", Lingering)
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        first = await client.open(HostPort("", port), b"x")
        await until(lambda: client.received[first])
        await client.close(first)
        await until(lambda: len(client.core) == 0)
        client.core._next = first
        assert await client.open(HostPort("", port)) == first
        await until(lambda: len(lingering) == 2)
        lingering[0](b"of the first flow")
        await client.send(first, b"of the second flow")
        await until(lambda: client.received[first] == [b"of the second flow"])


# policy


async def test_a_flow_that_is_refused_says_why_and_the_others_go_on() -> None:
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        flow = await client.open(HostPort("", port), b"before")
        end = await client.until_refused(NOWHERE, b"not for you", bytes(60000))
        assert (end.reason, end.detail) == (Reason.POLICY_DENIED, "it grants *; link-local only where a target names it")
        assert [event.reason for event in here.closed("169.254.1.1:53/udp")] == ["POLICY_DENIED"]
        await client.send(flow, b"after")
        await until(lambda: client.received[flow] == [b"before", b"after"])


async def test_the_internet_takes_a_grant_of_its_own_and_the_refusal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:
        monkeypatch.setattr(here.tunnels, "_surroundings", Surroundings)  # the machine of the test may be in any network
        end = await client.until_refused(HostPort("192.0.2.1", 53))
        assert end.reason is Reason.POLICY_DENIED
        assert end.detail == "it grants *; '*' does not include the Internet, a grant of 'internet' would"


@pytest.mark.parametrize("host", ["255.255.255.255", "224.0.0.251", "ff02::fb", "0.0.0.0", "::ffff:169.254.169.254"])
async def test_what_no_general_grant_opens_is_closed_to_datagrams_too(host: str) -> None:
    async with setting(targets=["*", "internet"]) as here, here.client() as client:
        assert (await client.until_refused(HostPort(host, 5353))).reason is Reason.POLICY_DENIED


async def test_the_relay_and_tuunels_own_ports_are_closed_to_datagrams_too() -> None:
    async with setting(targets=["*", "internet"]) as here, here.client() as client:
        relay = HostPort.parse((await here.roles.relay.until(Ready)).listen or "")
        end = await client.until_refused(HostPort("127.0.0.1", relay.port))
        assert (end.reason, "the relay only" in end.detail) == (Reason.POLICY_DENIED, True)
        proxy = await here.world.proxy(here.roles.agent.home)
        own = HostPort.parse((await proxy.until(Ready)).listen or "")
        end = await client.until_refused(own)
        assert (end.reason, "tuunel's own port only" in end.detail) == (Reason.POLICY_DENIED, True)


async def test_port_0_is_refused() -> None:
    async with setting() as here, here.client() as client:
        assert (await client.until_refused(HostPort("", 0))).reason is Reason.CONNECTION_REFUSED


async def test_a_grant_is_asked_for_at_every_flow() -> None:
    async with setting(targets=["localhost:1"]) as here, here.client() as client:
        port = here.world.datagram_target()
        assert (await client.until_refused(HostPort("", port))).reason is Reason.POLICY_DENIED
        answer = await here.roles.agent.role._make_invite({"targets": [f"localhost:{port}"]})
        await here.pool.prove(here.roles.device, parse_invite(answer["invite"]))
        await client.works(port)


async def test_a_revoke_cuts_tunnels_with_flows_and_those_without_and_counts_the_former() -> None:
    async with setting() as here, here.client() as client, here.client() as empty:
        await client.open(HostPort("", here.world.datagram_target()), b"x")
        await until(lambda: client.opened)
        answer = await here.roles.agent.role._revoke({"who": next(iter(here.roles.agent.role._grants.grants(0))).name})
        assert answer["cut"] == 1
        await until(lambda: client.cut and empty.cut)
        assert "POLICY_REVOKED" in client.tunnel.cut_reason
        await until(lambda: not here.tunnels._clients)


async def test_a_grant_that_ends_cuts_its_flows() -> None:
    async with setting(**{"for": 3600}) as here, here.client() as client:
        await client.open(HostPort("", here.world.datagram_target()), b"x")
        await until(lambda: client.opened)
        for served in here.tunnels._expiries:
            here.tunnels._expiries[served] = 0
        await until(lambda: client.cut)


async def test_the_first_end_of_all_grants_that_a_tunnels_flows_were_opened_under_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting(**{"for": 3600}) as here, here.client() as client:
        port = here.world.datagram_target()
        await client.open(HostPort("", port), b"x")
        await until(lambda: client.opened)
        (first,) = here.tunnels._expiries.values()
        admit = here.tunnels._grants.admit
        for change in (100, -100):

            def changed(device: object, now: int, change: int = change) -> object:
                grant = admit(device, now)  # type: ignore[arg-type]
                return type(grant)(grant.device, grant.name, grant.targets, grant.created, first + change)

            monkeypatch.setattr(here.tunnels._grants, "admit", changed)
            flow = await client.open(HostPort("", port), b"x")
            await until(lambda flow=flow: client.received[flow])  # type: ignore[misc]
            assert list(here.tunnels._expiries.values()) == [min(first, first + change)]


async def test_a_client_without_a_grant_gets_no_flows() -> None:
    async with setting() as here:

        def revoked(*_: object) -> None:
            raise Failure(Reason.POLICY_REVOKED)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Failure) as caught:
            patch.setattr(here.tunnels, "_admitted", revoked)
            await here.pool.connect(here.roles.device, HostPort("", 0), command=Command.UDP)
        assert caught.value.reason is Reason.POLICY_REVOKED


async def test_a_fault_of_the_agents_machine_is_told_there_and_ends_one_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:

        def fail() -> None:
            raise StateError("the file is damaged", "mend it")

        monkeypatch.setattr(reverse, "ALARM_INTERVAL", 3600)
        with monkeypatch.context() as patch:
            patch.setattr(here.tunnels, "_surroundings", fail)
            for _ in range(3):
                end = await client.until_refused(HostPort("", 80))
                assert (end.reason, end.detail) == (Reason.INTERNAL, "")
        assert len(here.roles.agent.seen(Alarm)) == 1
        await client.works(here.world.datagram_target())


# bounds


async def test_names_that_never_resolve_hold_up_nobody_and_are_bounded(
    monkeypatch: pytest.MonkeyPatch, hanging_names: threading.Event
) -> None:
    monkeypatch.setattr(reverseflows, "MAX_LOOKUPS_PER_CLIENT", 5)
    async with setting() as here, here.client() as client, here.client() as other:
        port = here.world.datagram_target()
        hanging = [await client.open(HostPort(f"{number}.hangs", 53), b"lost") for number in range(3)]
        hanging_too = [await other.open(HostPort(f"{number}.hangs", 53)) for number in range(2)]
        for each in (client, other):
            end = await each.until_refused(HostPort("one.too.many.hangs", 53))
            assert (end.reason, end.detail) == (Reason.LIMIT, "5 names looked up at a time for one client")
            await each.works(port)
        assert not here.closed("one.too.many.hangs:53/udp"), "what is refused for its number fills no log"
        await client.close(hanging.pop())
        for _ in range(3):  # a name that was found takes no room any more
            flow = await client.open(HostPort("a.resolves", port), b"found")
            await until(lambda flow=flow: client.received[flow] == [b"found"])  # type: ignore[misc]
        hanging.append(await client.open(HostPort("one.more.hangs", 53)))
        hanging_names.set()
        await until(lambda: all(flow in client.ended for flow in hanging) and all(flow in other.ended for flow in hanging_too))
        assert {client.ended[flow].reason for flow in hanging} == {Reason.NAME_NOT_RESOLVED}
        await client.works(port)


async def test_ten_thousand_flows_of_one_client_are_bounded_and_told() -> None:
    async with setting() as here, anyio.create_task_group() as tasks:
        port = here.world.datagram_target()
        clients: list[Client] = []
        for _ in range(10):
            tunnel, _ = await here.pool.connect(here.roles.device, HostPort("", 0), command=Command.UDP)
            clients.append(Client(tunnel))
            tasks.start_soon(clients[-1].read)
        before = open_descriptors()
        for client in clients:
            for _ in range(1000):
                client.core.open(HostPort("", port))
            await client.flush()
            await until(lambda client=client: len(client.opened) + len(client.ended) == 1000)  # type: ignore[misc]
        assert sum(len(client.opened) for client in clients) == reverseflows.MAX_FLOWS_PER_CLIENT == 1024
        assert open_descriptors() == before + 1024
        ends = [end for client in clients for end in client.ended.values()]
        assert {(end.reason, end.detail) for end in ends} == {(Reason.LIMIT, "1024 flows of one client")}
        assert len(here.roles.agent.seen(ConnectionOpened)) == 1024
        served = next(client for client in clients if client.opened)
        for flow in list(served.opened):
            await served.close(flow)
        await until(lambda: len(served.core) == 0)
        await clients[-1].works(port)
        for client in clients:
            client.tunnel.reset()


async def test_what_is_gone_with_its_tunnel_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reverseflows, "MAX_FLOWS_PER_CLIENT", 2)
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target()
        async with here.client() as other:
            for _ in range(2):
                await other.open(HostPort("", port))
            await until(lambda: len(other.opened) == 2)
            assert (await client.until_refused(HostPort("", port))).reason is Reason.LIMIT
        await until(lambda: len(here.tunnels._clients) == 1)
        await client.works(port)


@pytest.mark.parametrize("breach", ["too many", "number in use", "unknown flow", "app bytes", "damaged"])
async def test_a_breach_ends_one_tunnel_and_its_sockets_and_nothing_else(breach: str) -> None:
    async with setting() as here, here.client() as bystander:
        port = here.world.datagram_target()
        async with here.client() as client:
            flow = await client.open(HostPort("", port), b"x")
            await until(lambda: client.opened)
            asking = FlowOpen(flow, "", port).encode()
            match breach:
                case "too many":
                    numbers = range(flow + 1, flow + MAX_FLOWS + 1)
                    records = [(RecordType.FLOW_OPEN, FlowOpen(number, "", port).encode()) for number in numbers]
                case "number in use":
                    records = [(RecordType.FLOW_OPEN, asking)]
                case "unknown flow":
                    records = [(RecordType.DGRAM, b"\xff\xff")]
                case "app bytes":
                    client.tunnel.records._writer._sealer._enter(Phase.STREAM)
                    records = [(RecordType.DATA, b"x")]
                case _:
                    records = [(RecordType.FLOW_OPEN, b"\xff" * len(asking))]
            await send(client.tunnel, records)
            await until(lambda: client.cut)
        await until(lambda: len(here.tunnels._clients) == 1)
        (first, *_) = here.closed(f"localhost:{port}/udp")
        assert (first.reason, first.detail != "") == ("reset", True)
        await bystander.works(port)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ids of tunnels on which the agent can send nothing more."""
    ids: set[str] = set()
    send_now = Tunnel.send_now

    def blocked(self: Tunnel, records: Sequence[tuple[RecordType, bytes]]) -> Rest | None:
        if self.id in ids and not self.peer_label:  # the forward side knows what the agent calls itself
            return anyio.sleep_forever
        return send_now(self, records)

    monkeypatch.setattr(Tunnel, "send_now", blocked)
    return ids


async def test_a_client_that_does_not_read_loses_datagrams_and_holds_up_nobody(unread: set[str]) -> None:
    async with setting() as here, here.client() as other, here.client() as client:
        flood = here.world.datagram_target(lambda _: [bytes(1000)] * 300)
        port = here.world.datagram_target()
        flow = await client.open(HostPort("", flood))
        await until(lambda: client.opened)
        unread.add(client.tunnel.id)
        (entry,) = here.roles.agent.seen(ConnectionOpened)
        await client.send(flow, b"go")
        await until(lambda: entry.traffic.lost)
        assert entry.traffic.down <= 128 * 1024 + 65536
        await other.works(port)
        up = entry.traffic.up
        await client.send(flow, b"still read")
        await until(lambda: entry.traffic.up == up + 10)


async def test_a_tunnel_that_cannot_be_sent_on_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:
        asking = [(RecordType.FLOW_OPEN, FlowOpen(0, "", here.world.datagram_target()).encode())]
        send_now = Tunnel.send_now

        def fail(*_: object) -> None:
            raise BrokenPipeError

        with monkeypatch.context() as patch:
            patch.setattr(Tunnel, "send_now", fail)
            assert send_now(client.tunnel, asking) is None
            await until(lambda: client.cut)
        await until(lambda: not here.tunnels._clients)


async def test_a_quiet_flow_keeps_its_datagrams_beside_many_that_flood_and_their_loss_is_counted(unread: set[str]) -> None:
    async with setting() as here, here.client() as client:
        flood = here.world.datagram_target(lambda _: [bytes(1000)] * 100)
        flows = [await client.open(HostPort("", flood)) for _ in range(25)]
        quiet = await client.open(HostPort("", here.world.datagram_target()))
        await until(lambda: len(client.opened) == 26)
        unread.add(client.tunnel.id)
        *floods, entry = (event.traffic for event in here.roles.agent.seen(ConnectionOpened))
        for flow in flows:
            await client.send(flow, b"go")
        await until(lambda: sum(traffic.lost for traffic in floods) > 100)
        await anyio.wait_all_tasks_blocked()
        before = sum(traffic.lost for traffic in floods)
        await client.send(quiet, bytes(5000))
        await until(lambda: entry.down == 5000)
        assert entry.lost == 0
        assert sum(traffic.lost for traffic in floods) >= before + 4


async def test_what_the_target_cannot_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:
        flow = await client.open(HostPort("", here.world.datagram_target()), b"x")
        await until(lambda: client.received[flow])
        monkeypatch.setattr(targetflow.TargetFlow, "send", lambda *_: False)
        await client.send(flow, b"lost")
        (entry,) = here.roles.agent.seen(ConnectionOpened)
        await until(lambda: entry.traffic.lost == 1)
        assert entry.traffic.up == 1


# the agent's end


async def test_an_agent_that_is_stopped_serves_live_flows_to_their_end_and_no_new_ones() -> None:
    async with setting() as here, here.client() as client, here.client() as empty:
        port = here.world.datagram_target()
        flow = await client.open(HostPort("", port), b"x")
        await until(lambda: client.opened)
        here.roles.agent.role.stop()
        await until(lambda: empty.cut)
        assert (await client.until_refused(HostPort("", port))).reason is Reason.SHUTDOWN
        await client.send(flow, b"still served")
        await until(lambda: client.received[flow] == [b"x", b"still served"])
        await client.close(flow)
        await until(lambda: client.cut)
        await until(here.roles.agent.over.is_set)


async def test_and_its_tunnel_ends_when_the_target_ended_the_last_of_them() -> None:
    async with setting() as here, here.client() as client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            flow = await client.open(HostPort(*sock.getsockname()))
            await until(lambda: client.opened)
        here.roles.agent.role.stop()
        await client.send(flow, b"anybody?")
        await until(lambda: client.cut)
        await until(here.roles.agent.over.is_set)


@pytest.mark.parametrize("steps", range(0, 30, 3))
async def test_killing_the_agent_at_any_moment_of_a_flow_leaves_nothing_open(steps: int) -> None:
    async with setting() as here, here.client() as client:
        await client.open(HostPort("", here.world.datagram_target()), b"x", b"y")
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        await here.roles.agent.kill()
