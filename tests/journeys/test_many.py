"""A thousand tunnels at once on two cores: all open together, all carry their own bytes, all close."""

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator

import pytest

from tests.journeys.doors import socks5_request
from tests.journeys.world import LOOPBACK, Trio

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

TUNNELS = 1000
AT_A_TIME = 50  # handshakes under way; the tunnels stay open, so the last one opens beside 999 others


@pytest.fixture(autouse=True)
def _enough_files() -> None:
    """This process holds both ends of every tunnel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def _echo_server() -> AsyncIterator[int]:
    server = await asyncio.start_server(_echo, LOOPBACK, 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _open(proxy: int, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy)
    writer.write(b"\x05\x01\x00" + socks5_request("home.tuunel", port))
    assert await reader.readexactly(2) == b"\x05\x00"
    reply = await reader.readexactly(4)
    assert reply[1] == 0, f"reply {reply[1]}"
    await reader.readexactly(6 if reply[3] == 1 else 18)
    return reader, writer


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sent = os.urandom(4096)
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent


async def _journey(proxy: int) -> None:
    gate = asyncio.Semaphore(AT_A_TIME)
    async with _echo_server() as port:

        async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            async with gate:
                return await _open(proxy, port)

        tunnels = await asyncio.gather(*(opened() for _ in range(TUNNELS)))
        for _ in range(2):
            await asyncio.gather(*(_exchange(*tunnel) for tunnel in tunnels))
        for _, writer in tunnels:
            writer.write_eof()
        assert set(await asyncio.gather(*(reader.read() for reader, _ in tunnels))) == {b""}
        for _, writer in tunnels:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in tunnels))


def test_a_thousand_tunnels(own_trio: Trio) -> None:
    asyncio.run(asyncio.wait_for(_journey(own_trio.proxy.port), 200))
    assert "Traceback" not in own_trio.proxy.process.errors()
