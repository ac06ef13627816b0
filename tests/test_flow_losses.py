"""At the agent every datagram is counted once, as carried or as lost, and what a client sent before it left is sent on."""

import socket
import threading

import anyio
import pytest

from tests.test_reverseflows import Client, hanging_names, setting, unread
from tests.world import PATIENCE, until
from tuunel import targetflow
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.e2e.wire import Command
from tuunel.errors import Reason
from tuunel.events import ConnectionOpened

__all__ = ["hanging_names", "unread"]  # fixtures

pytestmark = pytest.mark.anyio


async def until_answered(hanging_names: threading.Event) -> None:
    """Let the lookups that nobody waits for any more end, too."""
    hanging_names.set()
    await until(lambda: not any(thread.name == "tuunel-lookup" for thread in threading.enumerate()))


async def test_what_was_held_for_a_target_that_is_refused_is_lost() -> None:
    async with setting() as here, here.client() as client:
        end = await client.until_refused(HostPort("169.254.1.1", 53), b"not for you", b"nor this")
        assert end.reason is Reason.POLICY_DENIED
        (entry,) = here.roles.agent.seen(ConnectionOpened)
        assert entry.traffic.up == 0


async def test_what_was_held_for_a_name_that_does_not_resolve_is_lost(hanging_names: threading.Event) -> None:
    async with setting() as here, here.client() as client:
        flow = await client.open(HostPort("a.hangs", 53), b"one", b"two")
        entry = await here.roles.agent.until(ConnectionOpened)
        await until(lambda: entry.traffic.up == 6)
        hanging_names.set()
        await until(lambda: flow in client.ended)
        assert client.ended[flow].reason is Reason.NAME_NOT_RESOLVED
        assert (entry.traffic.up, entry.traffic.lost) == (0, 2)


async def test_what_was_held_when_the_client_closed_the_flow_is_lost_before_the_end_is_told(hanging_names: threading.Event) -> None:
    async with setting() as here, here.client() as client:
        flow = await client.open(HostPort("a.hangs", 53), b"one", b"two")
        entry = await here.roles.agent.until(ConnectionOpened)
        await until(lambda: entry.traffic.up == 6)
        await client.close(flow)
        await until(lambda: here.closed("a.hangs:53/udp"))
        assert (entry.traffic.up, entry.traffic.lost) == (0, 2)
        await until_answered(hanging_names)


async def test_answers_that_wait_when_the_client_closes_the_flow_are_lost_and_not_carried(unread: set[str]) -> None:
    async with setting() as here, here.client() as client:
        port = here.world.datagram_target(lambda _: [bytes(1000)] * 100)
        flow = await client.open(HostPort("", port))
        await until(lambda: client.opened)
        unread.add(client.tunnel.id)
        (entry,) = here.roles.agent.seen(ConnectionOpened)
        await client.send(flow, b"go")
        await until(lambda: entry.traffic.down == 100_000)
        await client.close(flow)
        await until(lambda: here.closed(f"localhost:{port}/udp"))
        taken = 100_000 - entry.traffic.down  # the first were at the door already
        assert entry.traffic.lost > 0
        assert entry.traffic.lost * 1000 == taken


async def test_and_so_are_those_that_wait_when_the_tunnel_is_cut(unread: set[str]) -> None:
    async with setting() as here:
        port = here.world.datagram_target(lambda _: [bytes(1000)] * 100)
        async with here.client() as client:
            flow = await client.open(HostPort("", port))
            await until(lambda: client.opened)
            unread.add(client.tunnel.id)
            (entry,) = here.roles.agent.seen(ConnectionOpened)
            await client.send(flow, b"go")
            await until(lambda: entry.traffic.down == 100_000)
        await until(lambda: here.closed(f"localhost:{port}/udp"))
        assert entry.traffic.lost > 0
        assert entry.traffic.lost * 1000 + entry.traffic.down == 100_000


async def test_an_answer_that_gives_way_to_a_quiet_flows_counts_as_lost_alone(unread: set[str]) -> None:
    async with setting() as here, here.client() as client:
        flood = here.world.datagram_target(lambda _: [bytes(1000)] * 100)
        flows = [await client.open(HostPort("", flood)) for _ in range(25)]
        await until(lambda: len(client.opened) == 25)
        unread.add(client.tunnel.id)
        entries = [event.traffic for event in here.roles.agent.seen(ConnectionOpened)]
        for flow in flows:
            await client.send(flow, b"go")
        await until(lambda: sum(entry.down // 1000 + entry.lost for entry in entries) == 2500)
        assert all(entry.down // 1000 + entry.lost == 100 for entry in entries)


async def test_what_a_client_sent_before_it_ended_its_tunnel_is_sent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    getaddrinfo = socket.getaddrinfo

    def slow(host: str, *rest: object, **more: object) -> object:
        if host == "log.example":
            answered.wait(60)
            host = "127.0.0.1"
        return getaddrinfo(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(targetflow, "PARTING", PATIENCE)
    heard: list[bytes] = []
    async with setting() as here:
        port = here.world.datagram_target(lambda data: heard.append(data) or [])  # type: ignore[func-returns-value]
        tunnel, _ = await here.pool.connect(here.roles.device, HostPort("", 0), command=Command.UDP)
        client = Client(tunnel)
        await client.open(HostPort("log.example", port), b"a line of a log")
        await tunnel.write_eof()
        await until(lambda: here.roles.agent.seen(ConnectionOpened))
        assert not here.closed(f"log.example:{port}/udp")
        answered.set()
        await client.read()
        assert (client.fin, heard) == (True, [b"a line of a log"])
        assert [event.reason for event in here.closed(f"log.example:{port}/udp")] == ["done"]
        await tunnel.aclose()


async def test_but_a_name_that_does_not_resolve_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, hanging_names: threading.Event
) -> None:
    monkeypatch.setattr(targetflow, "PARTING", 0.01)
    async with setting() as here:
        tunnel, _ = await here.pool.connect(here.roles.device, HostPort("", 0), command=Command.UDP)
        client = Client(tunnel)
        await client.open(HostPort("a.hangs", 53), b"lost")
        await tunnel.write_eof()
        with anyio.fail_after(PATIENCE):
            await client.read()
        (entry,) = here.roles.agent.seen(ConnectionOpened)
        assert (client.fin, entry.traffic.up, entry.traffic.lost) == (True, 0, 1)
        await tunnel.aclose()
        await until_answered(hanging_names)


async def test_what_the_kernel_has_no_room_for_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here, here.client() as client:
        send = DatagramSocket.send
        monkeypatch.setattr(DatagramSocket, "send", lambda self, data: data != b"lost" and send(self, data))
        flow = await client.open(HostPort("", here.world.datagram_target()), b"first", b"lost", b"last")
        await until(lambda: client.received[flow] == [b"first", b"last"])
        (entry,) = here.roles.agent.seen(ConnectionOpened)
        assert (entry.traffic.up, entry.traffic.lost) == (9, 1)
