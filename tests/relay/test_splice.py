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

from tests.relay.clocks import StandingClock
from tests.streams import Ends, assert_reset, fill, receive_all, send_in_pieces, tcp_pair
from tuunel.events import Traffic
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream
from tuunel.relay import splice
from tuunel.relay.bucket import Bucket
from tuunel.relay.pace import Pace
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


class Paced:
    """A pump at 100 kB a second, of which 25 kB may pass at once, by a clock that stands still, and the ends that it runs between."""

    RATE, BURST = 100_000, 25_000

    def __init__(self, pipes: PipePool) -> None:
        self.clock = StandingClock()
        self.bucket = Bucket(self.clock)
        self.bucket.allow(self.RATE, self.BURST)
        self.traffic = Traffic()
        self.ends = Ends(self._pump)
        self._pipes = pipes

    async def _pump(self, a: RawStream, b: RawStream) -> PumpEnd:
        pace = Pace(self.bucket, sleep=self.clock.sleep)
        return await splice_both_ways(a, b, traffic=self.traffic, pipes=self._pipes, pace=pace)

    @property
    def moved(self) -> int:
        return self.traffic.up + self.traffic.down

    def let_go(self) -> None:
        """Nobody waits any more."""
        self.bucket.allow(None, 0)
        self.clock.go_on(1000)

    async def stands(self, sleeping: int = 1) -> None:
        """Return when so many directions wait for their turn, and none of them has anything else to do."""
        with anyio.fail_after(10):
            await anyio.wait_all_tasks_blocked()  # those whose turn has come take it
            await self.waits(sleeping)

    async def waits(self, sleeping: int = 1) -> None:
        """Return when so many directions wait for a turn that is not theirs yet, whatever else runs: a quick watch is never all blocked."""
        with anyio.fail_after(10):
            while self.clock.sleeping != sleeping:
                await anyio.sleep(0.001)


@pytest.fixture(params=["splice", "copy"])
def either(request: pytest.FixtureRequest) -> Iterator[PipePool]:
    pool = PipePool(splice=request.param == "splice")
    yield pool
    pool.close()


class TestPace:
    async def test_no_more_is_read_than_the_bucket_holds_and_gains(self, either: PipePool) -> None:
        paced = Paced(either)
        data = Random(1).randbytes(60_000)
        async with paced.ends as ends:
            await ends.app.send_all(data)
            await ends.app.write_eof()
            await paced.stands()
            assert paced.moved == Paced.BURST
            assert either.lent == either.buffers.lent == 0  # who waits holds nothing
            start = paced.clock.now
            while paced.moved < len(data):
                paced.clock.go_on(0.05)
                await anyio.wait_all_tasks_blocked()
                assert paced.moved <= Paced.BURST + Paced.RATE * (paced.clock.now - start)
            paced.clock.go_on(1)
            assert await receive_all(ends.target) == data
            await ends.target.write_eof()
        assert ends.ended == PumpEnd.DONE

    async def test_both_directions_share_one_pace(self, either: PipePool) -> None:
        paced = Paced(either)
        async with paced.ends as ends:
            await ends.app.send_all(bytes(100_000))
            await ends.target.send_all(bytes(100_000))
            await paced.stands(2)
            assert paced.moved == Paced.BURST
            paced.clock.go_on(0.5)
            await paced.stands(2)
            assert paced.moved <= Paced.BURST + Paced.RATE * 0.5
            assert min(paced.traffic.up, paced.traffic.down) > 0
            paced.let_go()
            ends.app.reset()

    async def test_what_waits_for_its_turn_is_watched(self, either: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tuunel.pump.WATCH_INTERVAL", 0.001)
        paced = Paced(either)
        with anyio.fail_after(10):
            async with paced.ends as ends:
                await ends.app.send_all(bytes(60_000))
                await paced.waits()
                ends.app.reset()
                await assert_reset(ends.target)  # though nobody moves the clock
                paced.clock.go_on(Paced.BURST)
        assert ends.ended == PumpEnd.RESET

    async def test_an_end_waits_its_turn_and_is_still_an_end(self, either: PipePool) -> None:
        paced = Paced(either)
        async with paced.ends as ends:
            await ends.app.send_all(bytes(Paced.BURST))
            assert len(await ends.target.receive_exactly(Paced.BURST)) == Paced.BURST
            await ends.app.write_eof()
            await paced.stands()
            paced.clock.go_on(1)
            assert await ends.target.receive() == b""
            await ends.target.send_all(b"answer")
            await ends.target.write_eof()
            assert await receive_all(ends.app) == b"answer"
        assert ends.ended == PumpEnd.DONE

    async def test_a_limit_that_comes_later_counts_and_one_that_goes_does_not(self, either: PipePool) -> None:
        paced = Paced(either)
        paced.bucket.allow(None, 0)
        async with paced.ends as ends:
            await ends.app.send_all(bytes(200_000))
            assert len(await ends.target.receive_exactly(200_000)) == 200_000
            paced.bucket.allow(Paced.RATE, Paced.BURST)
            await ends.app.send_all(bytes(60_000))
            await paced.stands()
            paced.bucket.allow(None, 0)
            paced.clock.go_on(1)  # a turn that was waited for is waited for
            assert len(await ends.target.receive_exactly(60_000)) == 60_000
            ends.app.reset()

    async def test_what_came_before_the_pipe_is_paid_for_too(self, either: PipePool) -> None:
        clock = StandingClock()
        bucket = Bucket(clock)
        bucket.allow(Paced.RATE, Paced.BURST)

        async def pump(a: RawStream, b: RawStream) -> PumpEnd:
            pace = Pace(bucket, sleep=clock.sleep)
            return await splice_both_ways(a, b, first_to_b=bytes(30_000), traffic=Traffic(), pipes=either, pace=pace)

        async with Ends(pump) as ends:
            await anyio.wait_all_tasks_blocked()
            assert clock.sleeping == 1
            clock.go_on(0.05)
            assert len(await ends.target.receive_exactly(30_000)) == 30_000
            bucket.allow(None, 0)
            ends.app.reset()


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
