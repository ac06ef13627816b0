"""Raw streams: clean ends and resets are never mistaken for each other, and a close destroys no bytes."""

import socket
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from tests.streams import fill, reset_socket, tcp_pair, unix_pair
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.companions import companions
from tuunel.rawsocket import host_port_of
from tuunel.rawstream import RawStream, receive_chunk, send_bytes

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[RawStream, socket.socket]]:
    """A TCP stream, and the blocking socket at its other end."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        theirs.settimeout(5)
        yield RawStream(ours), theirs


@pytest.fixture
def unix() -> Iterator[tuple[RawStream, socket.socket]]:
    """The same over a unix socket."""
    ours, theirs = unix_pair()
    with ours, theirs:
        theirs.settimeout(5)
        yield RawStream(ours), theirs


async def until_broken(stream: RawStream) -> None:
    with anyio.fail_after(5):
        while not stream.broken():
            await anyio.sleep(0.001)


class TestBytes:
    async def test_what_is_sent_arrives(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        assert await stream.send_all(b"hello")
        assert peer.recv(100) == b"hello"
        peer.sendall(b"world")
        assert await stream.receive() == b"world"

    async def test_receive_takes_no_more_than_asked(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.sendall(b"abcdef")
        assert await stream.receive(2) == b"ab"
        assert await stream.receive_exactly(3) == b"cde"
        assert await stream.receive() == b"f"

    @pytest.mark.parametrize("turns", range(8))
    async def test_a_cancelled_receive_has_taken_nothing(self, pair: tuple[RawStream, socket.socket], turns: int) -> None:
        stream, peer = pair
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await stream.receive())

        async with companions() as beside:
            receiving = beside.start(receive)
            await anyio.wait_all_tasks_blocked()
            peer.sendall(b"x")
            for _ in range(turns):  # of the event loop: one of them finds the byte there, and the task not yet told
                await anyio.lowlevel.checkpoint()
            receiving.cancel()
        assert [*received, stream.receive_now()] in ([b"x", None], [b"x"])

    async def test_receive_exactly_waits_for_all_of_it(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await stream.receive_exactly(4))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            for part in (b"a", b"bc", b"d"):
                await anyio.wait_all_tasks_blocked()
                assert not received
                peer.sendall(part)
        assert received == [b"abcd"]

    async def test_receive_exactly_tells_an_early_end(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.sendall(b"ab")
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive_exactly(3)

    async def test_a_peeked_byte_is_still_there(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.sendall(b"xy")
        assert await stream.peek() == b"x"
        assert await stream.receive() == b"xy"

    async def test_the_end_is_empty_bytes(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.shutdown(socket.SHUT_WR)
        assert await stream.peek() == b""
        assert await stream.receive() == b""

    async def test_a_full_socket_is_waited_for_and_told(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        data = bytes(range(256)) * 65536
        received = bytearray()

        async def drain() -> None:
            while len(received) < len(data):
                received.extend(await anyio.to_thread.run_sync(peer.recv, 1 << 20))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            assert not await stream.send_all(data)
        assert received == data

    async def test_a_read_without_data_says_so_and_does_not_wait(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, _ = pair
        buffer = BufferPool().borrow()
        assert stream.read_into(buffer, 10) is None

    async def test_a_body_begins_at_byte_one_and_keeps_to_the_limit(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        buffer = BufferPool().borrow()
        buffer[0] = 0x55
        peer.sendall(b"abcdef")
        await stream.wait_readable()
        assert stream.read_into(buffer, 4) == 4
        assert bytes(buffer[:6]) == b"\x55abcd\0"
        assert stream.write_now(buffer, 4) is None
        assert peer.recv(100) == b"abcd"

    async def test_any_conduit_takes_and_gives_plain_bytes(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        buffers = BufferPool()
        await send_bytes(stream, buffers, b"question")
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert await receive_chunk(stream, buffers) == b"answer"
        peer.shutdown(socket.SHUT_WR)
        assert await receive_chunk(stream, buffers) == b""
        assert buffers.lent == 0

    async def test_a_short_answer_and_its_end_are_seen_together(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        buffer = BufferPool().borrow()
        peer.sendall(b"answer")
        peer.shutdown(socket.SHUT_WR)
        await stream.wait_readable()
        assert not stream.at_end
        assert stream.read_into(buffer, 100) == 6
        assert stream.at_end
        assert stream.read_into(buffer, 100) == 0

    async def test_what_came_before_a_reset_is_read_and_the_reset_is_no_end(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        buffer = BufferPool().borrow()
        peer.sendall(b"answer")
        reset_socket(peer)
        await until_broken(stream)
        assert stream.read_into(buffer, 100) == 6
        assert not stream.at_end
        with pytest.raises((OSError, anyio.ClosedResourceError)):
            stream.read_into(buffer, 100)
        assert stream.broken()


class TestBroken:
    async def test_a_quiet_connection_is_whole(self, pair: tuple[RawStream, socket.socket]) -> None:
        assert not pair[0].broken()

    async def test_a_reset_is_seen_without_reading(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        reset_socket(peer)
        await until_broken(stream)

    async def test_a_reset_is_seen_behind_unread_bytes(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.sendall(b"unread")
        await stream.wait_readable()
        reset_socket(peer)
        await until_broken(stream)

    async def test_a_reset_after_a_clean_end_is_seen(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b""
        reset_socket(peer)
        await until_broken(stream)

    async def test_a_clean_end_is_no_reset(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.shutdown(socket.SHUT_WR)
        await stream.wait_readable()
        assert not stream.broken()

    async def test_both_clean_ends_with_unread_bytes_are_no_reset(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.sendall(b"unread")
        peer.shutdown(socket.SHUT_WR)
        await stream.write_eof()
        assert peer.recv(1) == b""
        peer.close()
        await stream.wait_readable()
        assert not stream.broken()
        assert await stream.receive() == b"unread"
        assert await stream.receive() == b""
        assert not stream.broken()

    async def test_a_stream_that_was_closed_here_is_of_no_use(self, pair: tuple[RawStream, socket.socket]) -> None:
        pair[0].close()
        assert pair[0].broken()

    async def test_a_unix_peer_that_is_gone_before_its_end_was_read_counts_as_reset(self, unix: tuple[RawStream, socket.socket]) -> None:
        stream, peer = unix
        peer.sendall(b"unread")
        assert not stream.broken()
        peer.close()
        assert stream.broken()

    async def test_a_unix_peer_may_close_after_either_end(self, unix: tuple[RawStream, socket.socket]) -> None:
        stream, peer = unix
        peer.shutdown(socket.SHUT_WR)
        assert not stream.broken()
        assert await stream.receive() == b""
        peer.close()
        assert not stream.broken()

    async def test_a_unix_peer_may_close_after_our_end(self, unix: tuple[RawStream, socket.socket]) -> None:
        stream, peer = unix
        await stream.write_eof()
        assert peer.recv(1) == b""
        peer.close()
        assert not stream.broken()

    @pytest.mark.parametrize(("how", "killed"), [("closes", True), ("ends its side", False), ("closes behind our end", False)])
    async def test_who_says_its_end_and_goes_without_a_word_was_killed(
        self, unix: tuple[RawStream, socket.socket], how: str, killed: bool
    ) -> None:
        stream, peer = unix
        stream.expect_shutdown()
        peer.sendall(b"x")
        if how == "closes behind our end":
            await stream.write_eof()
        if how == "ends its side":
            peer.shutdown(socket.SHUT_WR)
        else:
            peer.close()
        assert await stream.receive() == b"x"
        if killed:
            with pytest.raises(ConnectionResetError):
                await stream.receive()
            assert stream.closed
        else:
            assert await stream.receive() == b""
        stream.close()

    async def test_a_unix_peer_that_drops_our_bytes_counts_as_reset(self, unix: tuple[RawStream, socket.socket]) -> None:
        stream, peer = unix
        await stream.send_all(b"never read")
        await stream.write_eof()
        peer.close()
        assert stream.broken()


class TestEnds:
    async def test_a_reset_reaches_the_peer_as_a_reset_even_behind_bytes(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        await stream.send_all(b"some bytes")
        stream.reset()
        with pytest.raises(ConnectionResetError):
            while peer.recv(4):
                pass
        stream.reset()

    async def test_half_a_close_leaves_the_other_direction_open(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        await stream.write_eof()
        await stream.write_eof()
        assert peer.recv(1) == b""
        peer.sendall(b"still here")
        assert await stream.receive() == b"still here"

    async def test_a_close_does_not_destroy_the_last_bytes(self, pair: tuple[RawStream, socket.socket]) -> None:
        """The peer has sent what nobody will read, and sends on: a plain close() would reset the connection under the answer."""
        stream, peer = pair
        peer.sendall(b"early data that is not wanted")
        await stream.wait_readable()
        await stream.send_all(b"the answer")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.aclose)
            await anyio.wait_all_tasks_blocked()
            peer.sendall(b"more")
            await anyio.wait_all_tasks_blocked()
            assert peer.recv(100) == b"the answer"
            assert peer.recv(100) == b""
            peer.close()
        assert stream.fileno() == -1

    async def test_a_close_waits_for_nobody_once_both_sides_have_ended(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        peer.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b""
        with anyio.fail_after(1):
            await stream.aclose()
        assert peer.recv(1) == b""

    async def test_a_peer_that_never_ends_does_not_hold_a_close_up(
        self, pair: tuple[RawStream, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tuunel.rawstream.LINGER_TIME", 0.01)
        stream, peer = pair
        with anyio.fail_after(5):
            await stream.aclose()
        assert stream.fileno() == -1
        assert peer.recv(1) == b""

    async def test_a_cancelled_close_is_a_close(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, _ = pair
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.aclose()
        assert stream.fileno() == -1

    @pytest.mark.parametrize("end", ["close", "reset"])
    async def test_who_waits_is_told_of_a_close(self, pair: tuple[RawStream, socket.socket], end: str) -> None:
        stream, peer = pair
        told: list[str] = []

        async def wait(what: str) -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await (stream.receive() if what == "read" else stream.wait_writable())
            told.append(what)

        fill(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, "read")
            tasks.start_soon(wait, "write")
            await anyio.wait_all_tasks_blocked()
            getattr(stream, end)()
            assert stream.fileno() == -1
        assert sorted(told) == ["read", "write"]
        peer.close()

    async def test_the_descriptor_is_not_reused_while_a_wait_on_it_winds_up(self, pair: tuple[RawStream, socket.socket]) -> None:
        """Or the wait's clean-up would unregister whoever has the same descriptor number next."""
        stream, _ = pair
        number = stream.fileno()
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.wait_readable()

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            stream.close()
            with socket.socket() as other:
                assert other.fileno() != number

    async def test_a_closed_stream_says_so(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, _ = pair
        stream.close()
        for call in (stream.receive, stream.wait_readable, stream.wait_writable, stream.write_eof):
            with pytest.raises(anyio.ClosedResourceError):
                await call()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send_all(b"x")
        await stream.aclose()


class TestOptions:
    async def test_small_writes_leave_at_once_and_a_vanished_peer_is_noticed(self, pair: tuple[RawStream, socket.socket]) -> None:
        sock = socket.socket(fileno=socket.dup(pair[0].fileno()))
        with sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    @pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
    async def test_a_live_peer_that_does_not_read_is_never_timed_out(self, pair: tuple[RawStream, socket.socket]) -> None:
        with socket.socket(fileno=socket.dup(pair[0].fileno())) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


class TestAddresses:
    async def test_each_end_knows_both_addresses(self, pair: tuple[RawStream, socket.socket]) -> None:
        stream, peer = pair
        assert stream.local == host_port_of(peer.getpeername())
        assert stream.peer == host_port_of(peer.getsockname())

    @pytest.mark.parametrize(
        ("address", "told"),
        [
            (("192.0.2.1", 80), HostPort("192.0.2.1", 80)),
            (("::ffff:192.0.2.1", 80, 0, 0), HostPort("192.0.2.1", 80)),
            (("2001:db8::1", 80, 0, 0), HostPort("2001:db8::1", 80)),
            (("::", 80, 0, 0), HostPort("::", 80)),
        ],
    )
    def test_an_address_is_written_in_its_own_family(self, address: tuple[str, int], told: HostPort) -> None:
        assert host_port_of(address) == told
