"""A flow is older than the port that it leads to: what becomes tuunel's own, or is taken back, is closed to flows that are open, too."""

import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import anyio
import pytest

from tests.ports import udp_socket
from tests.test_reverseflows import Client, Setting, setting
from tests.world import PATIENCE, Running, echo, trio, until, world
from tuunel import pairing
from tuunel.address import HostPort
from tuunel.agent import Agent
from tuunel.e2e.wire import Command
from tuunel.errors import Failure, Reason
from tuunel.events import ConnectionClosed, ConnectionOpened, Ready
from tuunel.grants import Grants
from tuunel.links import parse_invite
from tuunel.listeners import Announcement
from tuunel.policy import Surroundings
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio


def free_port() -> int:
    """A port with nobody at it, TCP or UDP."""
    with udp_socket() as sock:
        return int(sock.getsockname()[1])


@dataclass
class Owner:
    """Who runs the agent that the guest is let in to, and has access of his own to another one."""

    here: Setting
    other: Running[Agent]

    def reached(self) -> list[str]:
        """What the other agent was asked for."""
        return [event.target for event in self.other.seen(ConnectionOpened)]


@asynccontextmanager
async def owner_and_guest(**invite: object) -> AsyncIterator[tuple[Owner, Client]]:
    async with setting(**invite) as here:
        link = (await here.roles.relay.until(Ready)).link
        other = await here.world.agent(link)
        answer = await other.role._make_invite({})
        await pairing.pair(here.roles.agent.home, parse_invite(answer["invite"]), "other")
        async with here.client() as client:
            yield Owner(here, other), client


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
async def test_a_silent_flow_does_not_become_a_way_into_the_owners_forward(host: str) -> None:
    async with owner_and_guest() as (owner, guest):
        port = free_port()
        secret = owner.here.world.datagram_target(lambda _: [b"the owner's"])
        flow = await guest.open(HostPort(host, port))
        await until(lambda: flow in guest.opened)
        await owner.here.world.forward(owner.here.roles.agent.home, f"{port}:other.tuunel:{secret}/udp")
        await guest.send(flow, b"let me in")
        await until(lambda: flow in guest.ended or guest.received[flow])
        assert guest.received[flow] == []
        assert guest.ended[flow].reason is Reason.POLICY_DENIED
        assert "tuunel's own port" in guest.ended[flow].detail
        assert owner.reached() == []
        await guest.works(owner.here.world.datagram_target())


async def test_nothing_is_asked_again_while_nothing_changes_and_everything_when_something_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as guest:
        home = here.roles.agent.home
        os.utime(home.run_dir, ns=(0, 10**18 + 1))  # long ago
        questions = 0
        surroundings = here.tunnels._surroundings

        def count() -> Surroundings:
            nonlocal questions
            questions += 1
            return surroundings()

        monkeypatch.setattr(here.tunnels, "_surroundings", count)
        port = here.world.datagram_target()
        flow = await guest.open(HostPort("", port), b"1")
        await until(lambda: guest.received[flow] == [b"1"])
        for number in (b"2", b"3"):
            await guest.send(flow, number)
        await until(lambda: guest.received[flow] == [b"1", b"2", b"3"])
        assert questions == 1
        with Announcement(home, "forward-1") as own:
            await guest.send(flow, b"4")
            await until(lambda: guest.received[flow][3:] == [b"4"])
            assert questions > 1
            own.add(HostPort("127.0.0.1", port))
            await guest.send(flow, b"5")
            await until(lambda: flow in guest.ended)
        assert guest.ended[flow].reason is Reason.POLICY_DENIED
        assert guest.received[flow] == [b"1", b"2", b"3", b"4"]
        (closed,) = here.closed(f"localhost:{port}/udp")
        assert closed.reason == Reason.POLICY_DENIED
        (opened,) = here.roles.agent.seen(ConnectionOpened)
        assert (opened.traffic.up, opened.traffic.lost) == (4, 1)


@pytest.mark.parametrize("change", ["the relay is found there", "the file cannot be read"])
async def test_every_other_change_of_the_surroundings_is_seen_too(change: str) -> None:
    async with setting() as here, here.client() as guest, AsyncExitStack() as stack:
        home = here.roles.agent.home
        port = here.world.datagram_target()
        flow = await guest.open(HostPort("", port), b"1")
        await until(lambda: guest.received[flow])
        if change == "the relay is found there":
            here.roles.agent.role._relay_endpoints.add((ip_address("127.0.0.1"), port))
            reason = Reason.POLICY_DENIED
        else:
            stack.enter_context(Announcement(home, "forward-1"))
            (home.run_dir / "forward-1.listen").write_bytes(b"damaged")
            reason = Reason.INTERNAL
        await guest.send(flow, b"2")
        await until(lambda: flow in guest.ended)
        assert guest.ended[flow].reason is reason
        assert guest.received[flow] == [b"1"]


@pytest.mark.parametrize("command", [Command.TCP, Command.UDP])
async def test_a_name_that_resolves_only_after_the_port_has_become_tuunels_own_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    asked, answered = threading.Event(), threading.Event()
    getaddrinfo = socket.getaddrinfo

    def slow(host: str, *rest: object, **more: object) -> object:
        if host == "slow.example":
            asked.set()
            answered.wait(60)
            host = "127.0.0.1"
        return getaddrinfo(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    reasons: list[Reason | None] = []
    async with setting() as here, here.client() as guest, anyio.create_task_group() as tasks:
        port = await here.world.target(echo)
        target = HostPort("slow.example", port)

        async def ask() -> None:
            if command is Command.UDP:
                reasons.append((await guest.until_refused(target, b"x")).reason)
            else:
                with pytest.raises(Failure) as caught:
                    await here.pool.connect(here.roles.device, target)
                reasons.append(caught.value.reason)

        tasks.start_soon(ask)
        await until(asked.is_set)
        with Announcement(here.roles.agent.home, "forward-1") as own:
            own.add(HostPort("127.0.0.1", port))
            answered.set()
            await until(lambda: reasons)
        assert reasons == [Reason.POLICY_DENIED]


async def test_a_revoke_by_another_process_cuts_a_tunnel_with_flows() -> None:
    async with setting() as here, here.client() as guest:
        flow = await guest.open(HostPort("", here.world.datagram_target()), b"x")
        await until(lambda: guest.received[flow])
        book = Grants(here.roles.agent.home.grants_file)
        now = int(time.time())
        book.revoke(book.grants(now)[0].device, now)
        await until(lambda: guest.cut)
        assert "POLICY_REVOKED" in guest.tunnel.cut_reason


async def test_what_came_before_a_forwards_port_was_announced_is_not_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made:
        roles = await trio(made)
        heard: list[bytes] = []
        target = made.datagram_target(lambda data: heard.append(data) or [data])  # type: ignore[func-returns-value]
        announce = Announcement.add
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:

            def add(self: Announcement, *addresses: HostPort) -> None:
                for address in addresses:
                    guest.sendto(b"too early", (address.host, address.port))
                announce(self, *addresses)

            monkeypatch.setattr(Announcement, "add", add)
            forward = await made.forward(roles.home, f"0:home.tuunel:{target}/udp")
            guest.sendto(b"in time", ("127.0.0.1", HostPort.parse((await forward.until(Ready)).listen or "").port))
            await until(lambda: heard)
            assert heard == [b"in time"]


@pytest.mark.parametrize("role", ["forward", "proxy"])
async def test_a_connection_from_before_a_port_was_announced_is_not_served(monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    async with world() as made:
        roles = await trio(made)
        guests: list[RawStream] = []
        announce = Announcement.add

        def add(self: Announcement, *addresses: HostPort) -> None:
            guests.extend(RawStream(socket.create_connection((address.host, address.port))) for address in addresses)
            announce(self, *addresses)

        monkeypatch.setattr(Announcement, "add", add)
        if role == "forward":
            await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}")
        else:
            await made.proxy(roles.home)
        (guest,) = guests
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionResetError):
            await guest.receive()
        guest.close()


async def test_a_direct_flow_of_the_proxy_does_not_become_a_way_into_it() -> None:
    async with world() as made:
        roles = await trio(made)
        proxy = await made.proxy(roles.home)
        received: list[bytes] = []
        target = HostPort("127.0.0.1", made.datagram_target())
        async with proxy.role._associate(door="socks5", local=True, deliver=lambda _, data: received.append(data) or True) as client:  # type: ignore[func-returns-value]
            client.send(target, b"before")
            client.flush()
            await until(lambda: received)
            proxy.role._own_ports.add(target)
            client.send(target, b"after")
            client.flush()
            closed = await proxy.until(ConnectionClosed)
            assert closed.reason == Reason.REFUSED_BY_SETTING
            assert received == [b"before"]
            (opened,) = proxy.seen(ConnectionOpened)
            assert (opened.traffic.up, opened.traffic.lost) == (6, 1)
