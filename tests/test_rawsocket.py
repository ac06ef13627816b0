"""Reading in steps: each arrival is one call, the first result ends it, and nothing is taken that nobody asked for."""

import os
import socket
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import pytest

from tests.streams import tcp_pair
from tests.world import until
from tuunel.rawsocket import RawSocket

pytestmark = pytest.mark.anyio

Pair = tuple[RawSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A raw socket, and the blocking socket at its other end."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        yield RawSocket(ours), theirs


def taking(sock: RawSocket, seen: list[bytes], *, size: int = 1, until: bytes = b".") -> Callable[[], bytes | None]:
    """A step that takes `size` bytes, and ends with those that it is told to wait for."""

    def step() -> bytes | None:
        seen.append(sock._sock.recv(size))
        return seen[-1] if seen[-1] == until else None

    return step


async def test_a_step_is_called_as_long_as_something_is_there_and_its_result_is_given(pair: Pair) -> None:
    sock, peer = pair
    seen: list[bytes] = []
    peer.sendall(b"ab.c")
    assert await sock.on_readable(taking(sock, seen)) == b"."
    assert seen == [b"a", b"b", b"."]
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    assert seen == [b"a", b"b", b"."], "nobody asked for more"
    assert await sock.on_readable(taking(sock, seen, until=b"c")) == b"c"


async def test_a_step_waits_for_what_comes_later(pair: Pair) -> None:
    sock, peer = pair
    seen: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sock.on_readable, taking(sock, seen))
        for part in (b"a", b"b"):
            await anyio.wait_all_tasks_blocked()
            peer.sendall(part)
            while seen[-1:] != [part]:
                await anyio.sleep(0.001)
        peer.sendall(b".")
    assert seen == [b"a", b"b", b"."]


async def test_false_and_nothing_are_results_and_an_end_is_told(pair: Pair) -> None:
    sock, peer = pair
    peer.shutdown(socket.SHUT_WR)
    assert await sock.on_readable(lambda: sock._sock.recv(1)) == b""
    assert await sock.on_readable(lambda: False) is False


async def test_what_a_step_raises_comes_out_and_the_socket_goes_on(pair: Pair) -> None:
    sock, peer = pair
    peer.sendall(b"x")

    def step() -> None:
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        await sock.on_readable(step)
    assert await sock.on_readable(lambda: sock._sock.recv(1)) == b"x"


async def test_a_cancelled_wait_has_taken_nothing(pair: Pair) -> None:
    sock, peer = pair
    seen: list[bytes] = []
    with anyio.move_on_after(0.01):
        await sock.on_readable(taking(sock, seen))
    peer.sendall(b"later")
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    assert seen == []
    await sock.wait_readable()
    assert sock._sock.recv(100) == b"later"


async def test_what_comes_between_a_cancel_and_its_task_stays(pair: Pair) -> None:
    sock, peer = pair
    seen: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sock.on_readable, taking(sock, seen))
        await anyio.wait_all_tasks_blocked()
        peer.sendall(b".")
        tasks.cancel_scope.cancel()
    assert seen == []
    assert await sock.on_readable(taking(sock, seen)) == b"."


async def test_a_close_elsewhere_ends_the_wait_and_frees_the_descriptor(pair: Pair) -> None:
    sock, _ = pair
    number = sock.fileno()

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await sock.on_readable(lambda: None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        sock.close()
        with socket.socket() as other:
            assert other.fileno() != number, "the wait on it is still winding up"
    with socket.socket() as other:
        assert other.fileno() == number
    with pytest.raises(anyio.ClosedResourceError):
        await sock.on_readable(lambda: None)


@pytest.mark.parametrize("result", [None, "result"])
async def test_a_step_may_close_the_socket_itself(pair: Pair, result: str | None) -> None:
    sock, peer = pair
    peer.sendall(b"x")

    def step() -> str | None:
        sock.close()
        return result

    if result is None:
        with pytest.raises(anyio.ClosedResourceError):
            await sock.on_readable(step)
    else:
        assert await sock.on_readable(step) == result
    assert sock.fileno() == -1


async def test_a_step_that_closes_the_socket_may_say_why(pair: Pair) -> None:
    sock, peer = pair
    peer.sendall(b"x")

    def step() -> None:
        sock.close()
        raise ValueError("because")

    with pytest.raises(ValueError, match="because"):
        await sock.on_readable(step)


async def test_nobody_else_may_read_meanwhile(pair: Pair) -> None:
    sock, peer = pair
    seen: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sock.on_readable, taking(sock, seen))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await sock.wait_readable()
        with pytest.raises(anyio.BusyResourceError):
            await sock.on_readable(lambda: None)
        peer.sendall(b".")
    assert seen == [b"."]


async def test_one_task_may_wait_to_write_while_another_reads(pair: Pair) -> None:
    sock, peer = pair
    seen: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sock.on_readable, taking(sock, seen))
        await anyio.wait_all_tasks_blocked()
        await sock.wait_writable()
        peer.sendall(b".")
    assert seen == [b"."]


async def test_a_number_may_be_used_again_once_its_socket_is_closed(pair: Pair) -> None:
    """Though nobody waits, the event loop may still know the socket."""
    sock, peer = pair
    peer.sendall(b".")
    assert await sock.on_readable(taking(sock, [])) == b"."
    number = sock.fileno()
    sock.close()
    ours, theirs = tcp_pair()
    with ours, theirs:
        other = RawSocket(socket.socket(fileno=os.dup2(ours.fileno(), number)))
        theirs.sendall(b".")
        assert await other.on_readable(taking(other, [])) == b"."
        other.close()


async def test_the_ways_to_wait_take_turns(pair: Pair) -> None:
    sock, peer = pair
    for way in range(4):
        peer.sendall(b".")
        if way % 2:
            await sock.wait_readable()
            assert sock._sock.recv(1) == b"."
        else:
            assert await sock.on_readable(taking(sock, [])) == b"."


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_loop_is_not_woken_for_what_nobody_reads(pair: Pair) -> None:
    sock, peer = pair
    peer.sendall(b".x")
    assert await sock.on_readable(taking(sock, [])) == b"."
    await until(lambda: not sock._reading._registered)  # type: ignore[union-attr]
    assert await sock.on_readable(taking(sock, [], until=b"x")) == b"x"
