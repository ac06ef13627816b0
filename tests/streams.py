"""Sockets for the tests of the plumbing: connected pairs, ones that are full, and ones that end by a reset."""

import socket
import struct
from collections.abc import Awaitable, Callable
from random import Random
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import pytest

from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream

Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def unix_pair() -> Pair:
    """Two ends of one unix connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def reset_socket(sock: socket.socket) -> None:
    """Close it so that the peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(stream: RawStream) -> int:
    """Write to a stream until its socket takes no more: how many bytes that were."""
    filled = 0
    while sent := stream.send_now(bytes(65536)):
        filled += sent
    return filled


class Ends:
    """The app's and the target's end of a pump that runs between them, as streams of their own.

    `async with Ends(pump) as ends` runs `pump(a, b)` beside the block, waits for it, and closes everything; `ends.ended` is what it
    returned.
    """

    def __init__(self, pump: Callable[[RawStream, RawStream], Awaitable[PumpEnd]], make_pair: Callable[[], Pair] = tcp_pair) -> None:
        app, a = make_pair()
        target, b = make_pair()
        self.app, self.target, self.a, self.b = (RawStream(sock) for sock in (app, target, a, b))
        self.ended: PumpEnd | None = None
        self._pump = pump

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._tasks.__aexit__(kind, error, traceback)
        finally:
            for stream in (self.app, self.target, self.a, self.b):
                stream.close()

    async def _run(self) -> None:
        self.ended = await self._pump(self.a, self.b)
        if self.ended == PumpEnd.DONE:
            await self.a.aclose()
            await self.b.aclose()


async def receive_all(stream: RawStream) -> bytes:
    """Read to the end."""
    data = bytearray()
    while part := await stream.receive():
        data += part
    return bytes(data)


async def send_in_pieces(stream: RawStream, data: bytes, random: Random) -> None:
    """Write all of it in pieces of random sizes, with pauses between them, then end."""
    at = 0
    while at < len(data):
        size = random.choice((1, 100, 5_000, 70_000, 600_000))
        await stream.send_all(data[at : at + size])
        at += size
        for _ in range(random.choice((0, 0, 1, 20))):
            await anyio.lowlevel.checkpoint()
    await stream.write_eof()


async def receive_in_pieces(stream: RawStream, random: Random) -> bytes:
    """Read to the end in pieces of random sizes, now and then so slowly that the writer must wait."""
    data = bytearray()
    while part := await stream.receive(random.choice((1, 1_000, 65_536, 1 << 20))):
        data += part
        for _ in range(random.choice((0, 0, 0, 200))):
            await anyio.lowlevel.checkpoint()
    return bytes(data)


async def assert_reset(stream: RawStream) -> None:
    """The stream ends by a reset, whatever comes before it."""
    with anyio.fail_after(10), pytest.raises(ConnectionError):
        await receive_all(stream)
        raise AssertionError("a clean end")
