"""The relay's pipe: no pipe with bytes in it is ever lent again, and without pipes the bytes are copied.

Ends, resets and the bytes themselves: tests/test_pump.py.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import anyio
import pytest

from tests.streams import Ends, fill, receive_all, send_in_pieces, tcp_pair
from tuunel.events import Traffic
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream
from tuunel.relay import splice
from tuunel.relay.splice import Pipe, PipePool, splice_both_ways

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not hasattr(os, "splice"), reason="splice is Linux")]


@pytest.fixture
def pipes() -> Iterator[PipePool]:
    pool = PipePool()
    yield pool
    pool.close()


def borrowed(pipes: PipePool) -> Pipe:
    pipe = pipes.borrow()
    assert pipe is not None
    return pipe


class TestPool:
    def test_an_empty_pipe_is_lent_again(self, pipes: PipePool) -> None:
        pipe = borrowed(pipes)
        pipes.give_back(pipe)
        assert borrowed(pipes) is pipe
        pipes.give_back(pipe)

    def test_a_pipe_that_holds_bytes_is_never_lent_again(self, pipes: PipePool) -> None:
        near, far = tcp_pair()
        with near, far:
            far.sendall(b"somebody's bytes")
            near.recv(1, 2)  # MSG_PEEK: they are here
            pipe = borrowed(pipes)
            assert pipe.fill(RawStream(near))
            pipes.give_back(pipe)
            other = borrowed(pipes)
            assert other is not pipe
            with pytest.raises(BlockingIOError):
                os.read(other.read_end, 1)
            pipes.give_back(other)

    def test_no_more_pipes_are_lent_than_the_limit(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splice, "MAX_LENT", 2)
        first, second = borrowed(pipes), borrowed(pipes)
        assert pipes.borrow() is None
        pipes.give_back(first)
        assert borrowed(pipes) is first
        pipes.give_back(first)
        pipes.give_back(second)

    def test_free_pipes_above_the_limit_are_closed(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splice, "KEEP", 1)
        first, second = borrowed(pipes), borrowed(pipes)
        pipes.give_back(first)
        pipes.give_back(second)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(second.read_end)

    def test_without_descriptors_there_is_no_pipe(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(flags: int) -> tuple[int, int]:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(os, "pipe2", exhausted)
        assert pipes.borrow() is None
        assert pipes.lent == 0

    def test_a_pipe_that_cannot_be_large_is_no_pipe(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("fcntl.fcntl", refuse)
        before = _open_descriptors()
        assert pipes.borrow() is None
        assert _open_descriptors() == before


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestFirstBytes:
    async def test_bytes_that_came_before_the_pipe_go_first(self, pipes: PipePool) -> None:
        traffic = Traffic()

        async def pump(a: RawStream, b: RawStream) -> PumpEnd:
            return await splice_both_ways(a, b, first_to_b=b"early up ", first_to_a=b"early down ", traffic=traffic, pipes=pipes)

        async with Ends(pump) as ends:
            await ends.app.send_all(b"up")
            await ends.app.write_eof()
            await ends.target.send_all(b"down")
            await ends.target.write_eof()
            assert await receive_all(ends.target) == b"early up up"
            assert await receive_all(ends.app) == b"early down down"
        assert ends.ended == PumpEnd.DONE
        assert (traffic.up, traffic.down) == (11, 15)

    async def test_first_bytes_that_nobody_reads_do_not_hide_a_reset(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tuunel.pump.WATCH_INTERVAL", 0.001)

        async def pump(a: RawStream, b: RawStream) -> PumpEnd:
            fill(b)
            return await splice_both_ways(a, b, first_to_b=bytes(1 << 24), traffic=Traffic(), pipes=pipes)

        with anyio.fail_after(5):
            async with Ends(pump) as ends:
                await anyio.wait_all_tasks_blocked()
                ends.app.reset()
        assert ends.ended == PumpEnd.RESET


class TestFallback:
    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
    async def test_where_splice_is_refused_bytes_are_copied(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        def refuse(*_: object, **__: object) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "splice", refuse)
        await _passes_a_mebibyte(pipes)
        assert pipes.borrow() is None  # and is not tried again

    async def test_while_no_pipe_is_to_be_had_bytes_are_copied(self, pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(splice, "MAX_LENT", 0)
        await _passes_a_mebibyte(pipes)

    async def test_a_broken_connection_is_no_reason_to_stop_splicing(self, pipes: PipePool) -> None:
        async def pump(a: RawStream, b: RawStream) -> PumpEnd:
            return await splice_both_ways(a, b, traffic=Traffic(), pipes=pipes)

        async with Ends(pump) as ends:
            ends.app.reset()
        assert ends.ended == PumpEnd.RESET
        pipes.give_back(borrowed(pipes))


async def _passes_a_mebibyte(pipes: PipePool) -> None:
    data = Random(7).randbytes(1 << 20)

    async def pump(a: RawStream, b: RawStream) -> PumpEnd:
        return await splice_both_ways(a, b, traffic=Traffic(), pipes=pipes)

    async with Ends(pump) as ends, anyio.create_task_group() as tasks:
        tasks.start_soon(send_in_pieces, ends.app, data, Random(8))
        assert await receive_all(ends.target) == data
        await ends.target.write_eof()
    assert ends.ended == PumpEnd.DONE
    assert pipes.lent == 0
