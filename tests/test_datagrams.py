"""UDP sockets: every datagram comes whole or not at all, nothing waits, and closing wakes who waits."""

import socket
from collections.abc import Iterator

import anyio
import pytest

from tests.world import PATIENCE, unchanged_descriptors
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket, bind_datagrams
from tuunel.errors import ListenError

pytestmark = pytest.mark.anyio

LARGEST = 65507


@pytest.fixture
def bound() -> Iterator[DatagramSocket]:
    sock = bind_datagrams("127.0.0.1")
    yield sock
    sock.close()


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LARGEST)
        sock.settimeout(PATIENCE)
        yield sock


def connected_to(peer: socket.socket) -> DatagramSocket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(peer.getsockname())
    return DatagramSocket(sock)


@pytest.fixture
def refused() -> Iterator[DatagramSocket]:
    """Connected to a port that nobody receives on any more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        sock = connected_to(gone)
    yield sock
    sock.close()


async def received(sock: DatagramSocket) -> bytes:
    with anyio.fail_after(PATIENCE):
        while (data := sock.receive()) is None:
            await sock.wait_readable()
    return data


@pytest.mark.parametrize("size", [0, 1, 1472, 9217, LARGEST])
async def test_a_datagram_of_any_size_passes_whole_both_ways(bound: DatagramSocket, peer: socket.socket, size: int) -> None:
    peer.sendto(bytes(size), (bound.local.host, bound.local.port))
    await bound.wait_readable()
    got = bound.receive_from()
    assert got == (bytes(size), peer.getsockname())
    assert bound.send_to(bytes(size), got[1])
    assert peer.recv(65536) == bytes(size)


async def test_what_ipv6_can_carry_beyond_ipv4_is_not_cut_short() -> None:
    larger = LARGEST + 20
    bound = bind_datagrams("::1")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LARGEST)
        peer.sendto(bytes(larger), ("::1", bound.local.port))
        assert len(await received(bound)) == larger
    bound.close()


async def test_nothing_there_is_no_datagram_and_does_not_wait(bound: DatagramSocket) -> None:
    assert bound.receive() is None
    assert bound.receive_from() is None


async def test_what_no_datagram_can_hold_is_lost_and_the_next_one_passes(peer: socket.socket) -> None:
    sock = connected_to(peer)
    assert not sock.send(bytes(LARGEST + 1))
    assert sock.send(b"next")
    assert peer.recv(10) == b"next"
    sock.close()


async def test_a_full_kernel_loses_datagrams_and_nothing_waits() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # unlike UDP on loopback, it is full for certain
    sock = DatagramSocket(near)
    while sock.send(bytes(1000)):
        pass
    assert not sock.send(b"lost")
    far.recv(1000)
    assert sock.send(b"room again")
    sock.close()
    far.close()


async def test_a_refusal_is_told_to_the_receiver(refused: DatagramSocket) -> None:
    assert refused.send(b"anybody?")
    await refused.wait_readable()
    with pytest.raises(ConnectionRefusedError):
        refused.receive()


async def test_or_to_the_next_sender_whose_datagram_is_lost(refused: DatagramSocket) -> None:
    assert refused.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        refused.send(b"anybody?")


async def test_broadcast_is_impossible(bound: DatagramSocket) -> None:
    with pytest.raises(PermissionError):
        bound.send_to(b"x", ("255.255.255.255", 9))


async def test_closing_wakes_who_waits_and_frees_the_descriptor() -> None:
    with unchanged_descriptors():
        sock = bind_datagrams("127.0.0.1")
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await sock.wait_readable()

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            sock.close()
            sock.close()
        assert sock.fileno() == -1


async def test_a_closed_socket_is_of_no_use() -> None:
    sock = bind_datagrams("127.0.0.1")
    address = (sock.local.host, sock.local.port)
    sock.close()
    for use in (sock.receive, sock.receive_from, lambda: sock.send(b""), lambda: sock.send_to(b"", address)):
        with pytest.raises(anyio.ClosedResourceError):
            use()
    with pytest.raises(OSError, match="Bad file descriptor"):
        _ = sock.local
    with pytest.raises(anyio.ClosedResourceError):
        await sock.wait_readable()


async def test_the_unspecified_ipv6_address_takes_both_ip_versions(peer: socket.socket) -> None:
    sock = bind_datagrams("::")
    peer.sendto(b"over IPv4", ("127.0.0.1", sock.local.port))
    await sock.wait_readable()
    got = sock.receive_from()
    assert got is not None
    assert got[0] == b"over IPv4"
    assert sock.send_to(b"back", got[1])
    assert peer.recv(10) == b"back"
    sock.close()


@pytest.mark.parametrize("host", ["localhost", "example.org", "", "192.0.2.1", "1.2.3.4.5"])
async def test_what_is_no_address_of_this_machine_cannot_be_bound(host: str) -> None:
    with unchanged_descriptors(), pytest.raises(ListenError):
        bind_datagrams(host)


async def test_a_port_in_use_is_told_with_advice(bound: DatagramSocket) -> None:
    with unchanged_descriptors(), pytest.raises(ListenError, match=f"127.0.0.1:{bound.local.port}") as caught:
        bind_datagrams("127.0.0.1", bound.local.port)
    assert "another" in caught.value.advice


async def test_the_address_is_the_real_one(bound: DatagramSocket) -> None:
    assert bound.local.host == "127.0.0.1"
    assert bound.local.port > 0
    assert isinstance(bound.local, HostPort)
