"""UDP forwards in a whole world: every client a flow of its own, and nothing that a client does hurts another."""

import socket

import anyio
import pytest

from tests.test_forward import places, ports, three
from tests.world import PATIENCE
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.errors import Reason
from tuunel.events import ConnectionClosed, ConnectionOpened
from tuunel.udpforward import open_sockets

pytestmark = pytest.mark.anyio


def client_of(port: int, host: str = "127.0.0.1") -> DatagramSocket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, port))
    return DatagramSocket(sock)


async def ask(client: DatagramSocket, question: bytes) -> bytes:
    client.send(question)
    with anyio.fail_after(PATIENCE):
        while True:
            await client.wait_readable()
            if (answer := client.receive()) is not None:
                return answer


async def test_a_port_leads_to_a_target_and_is_told_of() -> None:
    async with three() as (made, roles):
        target = made.datagram_target(lambda data: [data.upper()])
        forward = await made.forward(roles.home, f"0:home.tuunel:{target}/udp")
        client = client_of(ports(forward)[0])
        assert await ask(client, b"question") == b"QUESTION"
        assert await ask(client, b"") == b""
        client.close()
        (opened,) = forward.seen(ConnectionOpened)
        assert (opened.target, opened.device, opened.door) == (f"home.tuunel:{target}/udp", "home", "forward")
        assert (opened.traffic.up, opened.traffic.down, opened.traffic.lost) == (8, 8, 0)
        forward.role.stop()
        with anyio.fail_after(PATIENCE):
            await forward.over.wait()
        assert [closed.reason for closed in forward.seen(ConnectionClosed)] == ["done"]


async def test_each_client_hears_its_own_answers() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{made.datagram_target()}/udp")
        clients = [client_of(ports(forward)[0]) for _ in range(20)]
        for number, client in enumerate(clients):
            assert await ask(client, b"%d" % number) == b"%d" % number
        for number, client in reversed(list(enumerate(clients))):
            assert await ask(client, b"again %d" % number) == b"again %d" % number
        for client in clients:
            client.close()
        assert len(forward.seen(ConnectionOpened)) == 20


async def test_localhost_is_both_loopbacks_with_one_port() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"localhost:0:home.tuunel:{made.datagram_target()}/udp")
        (port,) = ports(forward)
        assert places(forward) == [f"localhost:{port}"]
        for host in ("127.0.0.1", "::1"):
            client = client_of(port, host)
            assert await ask(client, host.encode()) == host.encode()
            client.close()


async def test_all_sockets_of_localhost_have_one_port() -> None:
    sockets = open_sockets(HostPort("localhost", 0))
    assert len({each.local.port for each in sockets}) == 1
    for each in sockets:
        each.close()


async def test_a_client_that_has_gone_disturbs_nobody() -> None:
    async with three() as (made, roles):
        target = made.datagram_target(lambda data: [data] * 3)
        forward = await made.forward(roles.home, f"0:home.tuunel:{target}/udp")
        gone = client_of(ports(forward)[0])
        gone.send(b"answers to nobody")
        gone.close()
        client = client_of(ports(forward)[0])
        for number in range(10):
            assert await ask(client, b"%d" % number)
        client.close()


async def test_a_target_that_is_not_allowed_is_told_once_and_tried_again() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, "0:203.0.113.1.home.tuunel:53/udp")
        client = client_of(ports(forward)[0])
        client.send(b"out?")
        closed = await forward.until(ConnectionClosed)
        assert closed.reason == Reason.POLICY_DENIED
        with anyio.fail_after(PATIENCE):
            while len(forward.seen(ConnectionOpened)) == 1:
                client.send(b"out?")
                await anyio.sleep(0.02)  # the client's own pace
        assert forward.seen(ConnectionOpened)[0].traffic.lost > 1
        client.close()


async def test_the_largest_datagram() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{made.datagram_target()}/udp")
        client = client_of(ports(forward)[0])
        assert await ask(client, bytes(65507)) == bytes(65507)
        client.close()
