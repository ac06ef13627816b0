"""A guarded stream is a Conduit that shows what the guard has let through, and nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.streams import assert_reset, tcp_pair
from tuunel.buffers import BufferPool
from tuunel.errors import Failure, Reason
from tuunel.events import Traffic
from tuunel.guardedstream import GuardedStream
from tuunel.hostguard import HostGuard
from tuunel.pump import copy_both_ways
from tuunel.rawstream import RawStream, receive_chunk, send_bytes

pytestmark = pytest.mark.anyio

REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
FOREIGN = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
BUFFERS = BufferPool()


@asynccontextmanager
async def guarded() -> AsyncIterator[tuple[RawStream, GuardedStream]]:
    client, stream = (RawStream(sock) for sock in tcp_pair())
    try:
        with anyio.fail_after(10):
            yield client, GuardedStream(stream, HostGuard(frozenset({"localhost"})))
    finally:
        client.close()
        stream.close()
    assert BUFFERS.lent == 0


async def test_what_passes_is_read_in_pieces_of_any_size() -> None:
    async with guarded() as (client, stream):
        await client.send_all(REQUEST)
        await client.write_eof()
        read = b""
        while part := await receive_chunk(stream, BUFFERS, 7):
            assert len(part) <= 7
            read += part
        assert read == REQUEST


async def test_a_head_in_pieces_is_not_shown_before_it_is_whole() -> None:
    async with guarded() as (client, stream):
        await client.send_all(REQUEST[:30])
        buffer = BUFFERS.borrow()
        assert await stream.on_readable(lambda: [stream.read_into(buffer, 100)]) == [None]
        BUFFERS.give_back(buffer)
        await client.send_all(REQUEST[30:])
        assert await receive_chunk(stream, BUFFERS) == REQUEST


async def test_what_is_refused_is_not_shown() -> None:
    async with guarded() as (client, stream):
        await client.send_all(REQUEST)
        assert await stream.first_request() == REQUEST
        await client.send_all(FOREIGN)
        with pytest.raises(Failure) as raised:
            await receive_chunk(stream, BUFFERS)
        assert raised.value.reason is Reason.FORBIDDEN_HOST


async def test_an_end_in_a_head_is_refused_and_one_behind_a_request_is_an_end() -> None:
    async with guarded() as (client, stream):
        await client.send_all(REQUEST)
        await client.write_eof()
        assert await stream.first_request() == REQUEST
        assert await receive_chunk(stream, BUFFERS) == b""
    async with guarded() as (client, stream):
        await client.send_all(REQUEST[:10])
        await client.write_eof()
        with pytest.raises(Failure):
            await stream.first_request()


async def test_an_end_in_a_head_is_refused_though_it_came_with_a_whole_request() -> None:
    """Whoever copies hears of the refusal, and takes the end for none."""
    async with guarded() as (client, stream):
        sink, target = (RawStream(sock) for sock in tcp_pair())
        await client.send_all(REQUEST + FOREIGN[:10])
        await client.write_eof()
        with pytest.raises(Failure):
            await copy_both_ways(stream, sink, Traffic(), BUFFERS)
        target.close()


async def test_bytes_that_were_read_ahead_come_first_and_are_judged_too() -> None:
    async with guarded() as (client, stream):
        stream.take(b"")
        stream.take(REQUEST[:20])
        await client.send_all(REQUEST[20:] + REQUEST)
        assert await receive_chunk(stream, BUFFERS) == REQUEST * 2
        with pytest.raises(Failure):
            stream.take(FOREIGN)


async def test_a_head_above_its_limit_is_refused() -> None:
    async with guarded() as (client, stream), anyio.create_task_group() as tasks:
        tasks.start_soon(client.send_all, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + bytes(b"x" * 70000))
        with pytest.raises(Failure):
            await stream.first_request()


async def test_the_other_direction_and_the_ends_are_the_streams_own() -> None:
    async with guarded() as (client, stream):
        await send_bytes(stream, BUFFERS, b"answer")
        await stream.write_eof()
        assert await client.receive() == b"answer"
        assert await client.receive() == b""
        assert not stream.broken()
        stream.reset()
        assert stream.broken()
    async with guarded() as (client, stream):
        stream.reset()
        await assert_reset(client)
