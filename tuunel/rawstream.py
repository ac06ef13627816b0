"""Raw non-blocking stream sockets with anyio waits, and `Conduit`: what the pump copies between.

A connection that can become a pipe is a RawStream from accept or connect on: no event-loop transport ever owns its socket, so
the same code runs on asyncio and trio, fills borrowed buffers without copies, and can splice.
"""

import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import Final, Protocol, TypeAlias

import anyio

from tuunel.address import HostPort
from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.rawsocket import RawSocket, Result, host_port_of

LINGER_TIME: Final = 2.0  # seconds that a closing side waits for the other's end; no longer than a command may take to exit
KEEPALIVE: Final = (  # a peer that is gone without a word is noticed after 2 minutes instead of 2 hours
    ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", 60),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 4),
)
ADDRESSES: Final = 1024  # of peers that are remembered: of most it is asked over and over where they are
FIRST_READS: Final = 2  #: of a stream that look twice: whoever ends early does so behind his first words
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds
#: struct tcp_info in linux/tcp.h: tcpi_retransmits, tcpi_probes, and in ms tcpi_last_data_sent and tcpi_last_ack_recv.
_TCP_INFO: Final = struct.Struct("=2xBB40xI8xI")
END_ON_CLOSE: Final = struct.pack("ii", 0, 0)  # struct linger: off, which is the default
Bytes: TypeAlias = bytes | bytearray | memoryview
Rest: TypeAlias = Callable[[], Awaitable[object]]  #: writes what could not be written at once; call it, and await it, once


class Conduit(Protocol):
    """One end of a pump: a byte stream both ways that can be half-closed, reset, and watched while nobody reads it.

    Buffers come from a BufferPool and follow its layout: the body lies at `buffer[1:1+n]`. One task reads and one writes at a time.
    Errors of the connection are OSError or a TuunelError; whoever meets one resets the conduit. A cancelled call leaves it usable
    for nothing but `reset`. After a close or reset every call that needs the connection raises anyio.ClosedResourceError, and so does one
    that waits already.
    """

    @property
    def chunk_limit(self) -> int:
        """The largest body that `write_now` likes to be given next; at most MAX_BODY."""

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        """Call `step` whenever `read_into` is worth a try, until it gives something else than None: that is returned.

        `step` must not wait, nor read more than once; what it raises is raised here. Always yields to other tasks.
        """

    def read_into(self, buffer: memoryview, limit: int) -> int | None:
        """Read into `buffer[1:]` without waiting: how many bytes, 0 at the peer's clean end, None when there is nothing yet.

        A raw stream reads at most `limit` bytes; a tunnel gives what one record holds, up to MAX_BODY, whatever the limit is.
        """

    @property
    def at_end(self) -> bool:
        """Whether the peer's clean end is known to be behind what was read last. Where it is not, it may be all the same."""

    def write_now(self, buffer: memoryview, n: int, *, last: bool = False) -> Rest | None:
        """Write what can be written of `buffer[1:1+n]` without waiting. May scribble over `buffer[0]`.

        None: all of it, and the buffer is the caller's again. Else await the rest before anything else is written, and keep the buffer
        until then. `last`: `write_eof` comes next, and its end may go with this.
        """

    async def write_eof(self) -> None:
        """End this direction cleanly; the other one goes on."""

    def reset(self) -> None:
        """Abort both directions at once, so that the peer sees a reset and never a clean end. Idempotent."""

    async def aclose(self) -> None:
        """Close cleanly, without destroying bytes on their way to the peer. Idempotent; when cancelled it is closed all the same."""

    def broken(self) -> bool:
        """Whether the peer has reset the connection, seen without reading. A clean end, read or not, is not broken."""


class RawStream(RawSocket):
    """A connected stream socket (TCP or unix) as a Conduit and as a plain byte stream. Owns `sock`.

    Sets TCP_NODELAY and keepalive, and never TCP_USER_TIMEOUT: that would kill a live peer which merely does not read. On TCP the peer
    sees a reset when this process is killed.
    """

    __slots__ = ("_eof_read", "_eof_written", "_first_reads", "_says_its_end", "_unix")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._unix = sock.family == socket.AF_UNIX
        self._eof_read = False
        self._eof_written = False
        self._first_reads = FIRST_READS
        self._says_its_end = False
        if not self._unix:
            _set_options(sock)

    @property
    def chunk_limit(self) -> int:
        """MAX_BODY: the kernel takes what it can."""
        return MAX_BODY

    @property
    def is_unix(self) -> bool:
        """Whether the peer is a process of this machine, on a unix socket."""
        return self._unix

    @property
    def peer(self) -> HostPort:
        """The other end's address, as `local`. OSError once the connection is gone."""
        return host_port_of(self._sock.getpeername())

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this machine: at a loopback address, or on a unix socket. OSError as `peer`."""
        return self._unix or _is_loopback(self.peer.host)

    def expect_shutdown(self) -> None:
        """Take a unix peer that goes away, without having shut its side down and before ours has ended, for one that was killed.

        Reading raises ConnectionResetError then. Of other programs a mere close is an end, as it is on TCP.
        """
        self._says_its_end = self._unix

    # Conduit

    def read_into(self, buffer: memoryview, limit: int) -> int | None:
        """Read up to `limit` bytes into `buffer[1:]`: how many, 0 at the end, None when there is nothing yet."""
        n = self.receive_into(buffer[1 : 1 + limit])
        if n and n < limit and self._first_reads:
            self._first_reads -= 1
            n += self._read_behind(buffer[1 + n : 1 + limit])
        return n

    def _read_behind(self, view: memoryview) -> int:
        """Look for more, or the end, behind what was just read: a short answer is often all that comes."""
        try:
            return self.receive_into(view) or 0
        except OSError:
            self.reset()  # the kernel tells an error once, and what was read before it must not be lost: so the stream stays broken
            return 0

    @property
    def at_end(self) -> bool:
        """Whether the end was read."""
        return self._eof_read

    def write_now(self, buffer: memoryview, n: int, *, last: bool = False) -> Rest | None:
        """Write what the kernel takes of `buffer[1:1+n]`."""
        sent = self.send_now(buffer[1 : 1 + n])
        return None if sent == n else partial(self.send_all, buffer[1 + sent : 1 + n])

    async def write_eof(self) -> None:
        """Send FIN."""
        self._check_open()
        if not self._eof_written:
            self._eof_written = True
            self._sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close at once; on TCP the peer sees a reset. A unix peer sees one only if it has written bytes that nobody has read here."""
        super().close()

    def close(self) -> None:
        """Close without lingering. Bytes on their way are still delivered, unless the peer sends more: `aclose` waits for its end."""
        if not self.closed and not self._unix:
            with suppress(OSError):  # the peer was faster
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, END_ON_CLOSE)
        super().close()

    async def aclose(self) -> None:
        """End cleanly: FIN, then read on until the peer's own end, for at most LINGER_TIME.

        Closing a socket that holds unread bytes, or that receives more, sends a reset, which could destroy what was written last.
        """
        try:
            with suppress(OSError, anyio.ClosedResourceError):
                await self.write_eof()
                if not self._eof_read:
                    await self._linger()
        finally:
            self.close()

    async def _linger(self) -> None:
        with anyio.move_on_after(LINGER_TIME):
            while not self._eof_read:
                await self.receive()

    def broken(self) -> bool:
        """Whether a reset has arrived, or the stream was closed on this side."""
        if self.closed:
            return True
        found = self._look()
        if found & select.POLLERR:
            return True
        if self._unix:
            # the peer has closed the whole socket while it had more to say or to hear; after either side's end it may
            return bool(found & select.POLLHUP) and not (self._eof_written or self._eof_read)
        return sys.platform != "linux" and self._has_pending_error()

    def _look(self) -> int:
        poll = select.poll()
        poll.register(self._sock, 0)  # POLLERR and POLLHUP are reported unasked
        events = poll.poll(0)
        return events[0][1] if events else 0

    def _note_end(self) -> None:
        if self._says_its_end and not self._eof_written and self._look() & select.POLLHUP:
            self.reset()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._eof_read = True

    def unacknowledged(self) -> float | None:
        """While the kernel has sent something for at least the second time, bytes or the question whether there is room, and nothing
        has come back since: the age of the peer's last acknowledgement in seconds. None while all is well, and where no system says.
        """
        if self.closed or self._unix or sys.platform != "linux":
            return None
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        retransmits, probes, sent, acknowledged = _TCP_INFO.unpack(info)
        # A peer that does not read answers each of these, which may come two minutes apart: its silence in between is ours.
        waits = probes or (retransmits and acknowledged > sent)
        return acknowledged / 1000 if waits else None

    def _has_pending_error(self) -> bool:
        """The question for BSD kernels, whose poll does not report a pending error. Asking clears it, so act on it at once."""
        if not self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        self.reset()
        return True

    # plain byte stream

    async def receive(self, limit: int = 65536) -> bytes:
        """Wait for up to `limit` bytes; b"" is the peer's clean end. A cancelled call has taken nothing."""
        while True:
            await self.wait_readable()  # and not `on_readable`: what its step takes is lost with a call that is cancelled then
            if (data := self.receive_now(limit)) is not None:
                return data

    def receive_now(self, limit: int = 65536) -> bytes | None:
        """Take up to `limit` bytes, at least 1, without waiting; b"" is the peer's clean end, None when there is nothing yet."""
        assert limit > 0  # or nothing would be read, which is not the end
        self._check_open()
        try:
            data = self._sock.recv(limit)
        except BlockingIOError:
            return None
        if not data:
            self._note_end()
        return data

    def receive_into(self, view: memoryview) -> int | None:
        """Read into `view` without waiting: how many bytes, 0 at the end, None when there is nothing yet."""
        self._check_open()
        try:
            n = self._sock.recv_into(view)
        except BlockingIOError:
            return None
        if n == 0:
            self._note_end()
        return n

    async def peek(self) -> bytes:
        """Wait for the first byte to come and leave it there; b"" is the peer's clean end."""
        while True:
            await self.wait_readable()
            with suppress(BlockingIOError):
                return self._sock.recv(1, socket.MSG_PEEK)

    async def receive_exactly(self, n: int) -> bytes:
        """Wait for `n` bytes and read no more than that. anyio.IncompleteRead when the peer ends before."""
        data = bytearray()
        while len(data) < n:
            part = await self.receive(n - len(data))
            if not part:
                raise anyio.IncompleteRead
            data += part
        return bytes(data)

    async def send_all(self, data: Bytes) -> bool:
        """Write all of `data`; yields only when the kernel takes no more. After a cancel or an error an unknown part was sent.

        True when the kernel took everything at once.
        """
        sent = self.send_now(data)
        if sent == len(data):
            return True
        rest = memoryview(data)[sent:]
        while rest:
            await self.wait_writable()
            rest = rest[self.send_now(rest) :]
        return False

    def send_now(self, data: Bytes) -> int:
        """Write what the kernel takes of `data` without waiting: how many bytes."""
        self._check_open()
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0


async def receive_chunk(conduit: Conduit, buffers: BufferPool, limit: int = 65536) -> bytes:
    """Wait for the next bytes of a conduit, as bytes: for parsers, not for bulk. b"" is the peer's clean end."""

    def read() -> bytes | None:
        buffer = buffers.borrow()
        try:
            n = conduit.read_into(buffer, limit)
            return None if n is None else bytes(buffer[1 : 1 + n])
        finally:
            buffers.give_back(buffer)

    return await conduit.on_readable(read)


async def send_bytes(conduit: Conduit, buffers: BufferPool, data: Bytes) -> None:
    """Write all of `data` to a conduit, in chunks that it likes."""
    rest = memoryview(data)
    while rest:
        n = min(len(rest), conduit.chunk_limit)
        buffer = buffers.borrow()
        try:
            buffer[1 : 1 + n] = rest[:n]
            if unwritten := conduit.write_now(buffer, n):
                await unwritten()
        finally:
            buffers.give_back(buffer)
        rest = rest[n:]


def stay_unpaced(sock: socket.socket) -> None:
    """Choose a congestion control without pacing, for connections that never leave this machine: BBR, if it is the system's own, paces them
    too, which costs most of what else they take. Before `connect` or `listen`: what was paced once stays paced.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # this system grants nothing but its own
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # the one that every kernel has and grants to everybody


@lru_cache(maxsize=ADDRESSES)
def _is_loopback(host: str) -> bool:
    return ip_address(host).is_loopback


def _set_options(sock: socket.socket) -> None:
    # Until it is closed cleanly: the kernel closes what a killed process has left, and a peer must not take that for the end.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
