"""The pump: every byte arrives, ends stay ends, resets stay resets, and nobody is kept waiting by a side that is gone."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from random import Random

import anyio
import anyio.lowlevel
import pytest

from tests.relay.clocks import Clock
from tests.streams import Ends, Pair, assert_reset, fill, receive_all, receive_in_pieces, send_in_pieces, tcp_pair, unix_pair
from tuunel.buffers import BufferPool
from tuunel.errors import LocalProtocolError, RemoteProtocolError
from tuunel.events import Traffic
from tuunel.pump import PumpEnd, copy_both_ways
from tuunel.rawsocket import Result
from tuunel.rawstream import RawStream, Rest
from tuunel.relay.bucket import Bucket
from tuunel.relay.pace import FREE, Pace
from tuunel.relay.splice import PipePool, splice_both_ways

pytestmark = pytest.mark.anyio
MIB = 1 << 20

Pump = Callable[[RawStream, RawStream], Awaitable[PumpEnd]]


class Rig:
    """A way to pump, its counters, and its loans."""

    def __init__(self, kind: str) -> None:
        self.traffic = Traffic()
        self.buffers = BufferPool()
        self.pipes = PipePool(splice="without splice" not in kind)
        self.pump: Pump = partial(copy_both_ways, traffic=self.traffic, buffers=self.buffers)
        if kind != "copy":
            pace = slow(Clock()) if "at a pace" in kind else FREE
            self.pump = partial(splice_both_ways, traffic=self.traffic, pipes=self.pipes, pace=pace)

    @property
    def lent(self) -> int:
        return self.buffers.lent + self.pipes.lent + self.pipes.buffers.lent


def slow(clock: Clock) -> Pace:
    """A megabyte a second, by a clock that is moved by those who wait: the tests take no longer."""
    bucket = Bucket(clock)
    bucket.allow(1_000_000, 100_000)
    return Pace(bucket, sleep=clock.sleep)


@pytest.fixture(params=["copy", "splice", "relay without splice", "splice at a pace", "relay without splice at a pace"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.pipes.close()


@pytest.fixture(params=[tcp_pair, unix_pair], ids=["tcp", "unix"])
def make_pair(request: pytest.FixtureRequest) -> Callable[[], Pair]:
    made: Callable[[], Pair] = request.param
    return made


class TestBytes:
    @pytest.mark.parametrize("seed", range(3))
    async def test_random_sizes_and_stalls_lose_nothing(self, rig: Rig, make_pair: Callable[[], Pair], seed: int) -> None:
        random = Random(seed)
        up, down = random.randbytes(3 * MIB + seed), random.randbytes(2 * MIB + seed)
        received: dict[str, bytes] = {}

        async def receive(name: str, stream: RawStream) -> None:
            received[name] = await receive_in_pieces(stream, Random(seed))

        async with Ends(rig.pump, make_pair) as ends, anyio.create_task_group() as tasks:
            tasks.start_soon(send_in_pieces, ends.app, up, Random(seed + 1))
            tasks.start_soon(send_in_pieces, ends.target, down, Random(seed + 2))
            tasks.start_soon(receive, "up", ends.target)
            tasks.start_soon(receive, "down", ends.app)
        assert received == {"up": up, "down": down}
        assert ends.ended == PumpEnd.DONE
        assert (rig.traffic.up, rig.traffic.down) == (len(up), len(down))
        assert rig.lent == 0

    async def test_a_pump_at_rest_holds_nothing(self, rig: Rig) -> None:
        async with Ends(rig.pump) as ends:
            await ends.app.send_all(b"ping")
            assert await ends.target.receive_exactly(4) == b"ping"
            await anyio.wait_all_tasks_blocked()
            assert rig.lent == 0
            await ends.app.write_eof()
            await ends.target.write_eof()

    async def test_what_a_pump_holds_is_given_back_when_it_is_reset(self, rig: Rig) -> None:
        async with Ends(rig.pump) as ends:
            await stall(rig, ends)
            assert rig.lent == 1
            ends.target.reset()
        assert ends.ended == PumpEnd.RESET
        assert rig.lent == 0


class TestHalfClose:
    @pytest.mark.parametrize("first", ["app", "target"])
    async def test_after_an_end_one_way_a_mebibyte_passes_the_other_way(self, rig: Rig, make_pair: Callable[[], Pair], first: str) -> None:
        answer = Random(1).randbytes(MIB)
        async with Ends(rig.pump, make_pair) as ends, anyio.create_task_group() as tasks:
            asks, answers = (ends.app, ends.target) if first == "app" else (ends.target, ends.app)
            await asks.send_all(b"question")
            await asks.write_eof()
            assert await receive_all(answers) == b"question"
            tasks.start_soon(send_in_pieces, answers, answer, Random(2))
            assert await receive_all(asks) == answer
        assert ends.ended == PumpEnd.DONE

    async def test_an_end_behind_a_stalled_reader_is_still_an_end(self, rig: Rig, watched: list[RawStream]) -> None:
        """The app writes, ends and closes for good while the target does not read: all of it must arrive, then a clean end."""
        async with Ends(rig.pump) as ends:
            sent = await stall(rig, ends)
            await ends.app.write_eof()
            await until(lambda: len(watched) > 10)
            received = len(await receive_all(ends.target))
            await ends.target.write_eof()
            assert await ends.app.receive() == b""
        assert received == sent
        assert ends.ended == PumpEnd.DONE


class TestResets:
    @pytest.fixture(params=["app", "target"])
    def sides(self, request: pytest.FixtureRequest) -> Callable[[Ends], tuple[RawStream, RawStream]]:
        """Who resets, and who must see it."""
        return lambda ends: (ends.app, ends.target) if request.param == "app" else (ends.target, ends.app)

    async def test_a_reset_is_passed_on_as_a_reset(self, rig: Rig, sides: Callable[[Ends], tuple[RawStream, RawStream]]) -> None:
        async with Ends(rig.pump) as ends:
            resets, sees = sides(ends)
            resets.reset()
            await assert_reset(sees)
        assert ends.ended == PumpEnd.RESET

    async def test_a_reset_after_its_end_is_passed_on(
        self, rig: Rig, sides: Callable[[Ends], tuple[RawStream, RawStream]], quick_watch: None
    ) -> None:
        """Nobody reads a side that has ended."""
        async with Ends(rig.pump) as ends:
            resets, sees = sides(ends)
            await resets.write_eof()
            assert await sees.receive() == b""
            resets.reset()
            with anyio.fail_after(5), pytest.raises(ConnectionError):
                while True:
                    await sees.send_all(b"?")
                    await anyio.sleep(0.001)
        assert ends.ended == PumpEnd.RESET

    async def test_a_stalled_target_does_not_hide_an_app_that_aborts(self, rig: Rig) -> None:
        async with Ends(rig.pump) as ends:
            await stall(rig, ends)
            began = anyio.current_time()
            ends.app.reset()
            await until(ends.target.broken)
            assert anyio.current_time() - began < 2.5
        assert ends.ended == PumpEnd.RESET

    async def test_a_stalled_app_does_not_hide_a_target_that_aborts(self, rig: Rig, quick_watch: None) -> None:
        async with Ends(rig.pump) as ends:
            await stall(rig, ends, from_target=True)
            ends.target.reset()
            await until(ends.app.broken)
        assert ends.ended == PumpEnd.RESET

    async def test_a_side_that_somebody_else_closes_resets_the_other(self, rig: Rig, quick_watch: None) -> None:
        async with Ends(rig.pump) as ends:
            await stall(rig, ends)
            ends.a.close()
            await until(ends.target.broken)
        assert ends.ended == PumpEnd.RESET

    async def test_a_cancelled_pump_resets_both(self, rig: Rig) -> None:
        app_end, a = tcp_pair()
        target_end, b = tcp_pair()
        app, target = RawStream(app_end), RawStream(target_end)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.pump, RawStream(a), RawStream(b))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await assert_reset(app)
        await assert_reset(target)
        app.close()
        target.close()
        assert rig.lent == 0


class Scripted:
    """A conduit that is never readable, or fails as told."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.chunk_limit = 16384
        self._over = anyio.Event()
        self._fails = fails

    @property
    def was_reset(self) -> bool:
        return self._over.is_set()

    async def on_readable(self, step: Callable[[], Result | None]) -> Result:
        await anyio.lowlevel.checkpoint()
        if self._fails is None:
            await self._over.wait()
            raise anyio.ClosedResourceError
        result = step()
        assert result is not None
        return result

    def read_into(self, buffer: memoryview, limit: int) -> int | None:
        assert self._fails is not None
        raise self._fails

    at_end = False

    def write_now(self, buffer: memoryview, n: int, *, last: bool = False) -> Rest | None: ...

    async def write_eof(self) -> None: ...

    def reset(self) -> None:
        self._over.set()

    async def aclose(self) -> None: ...

    def broken(self) -> bool:
        return False


class TestFailures:
    async def test_bytes_that_break_the_protocol_reset_both_sides(self) -> None:
        bad, other = Scripted(fails=RemoteProtocolError("bad tag")), Scripted()
        assert await copy_both_ways(other, bad, Traffic(), BufferPool()) == PumpEnd.RESET
        assert bad.was_reset
        assert other.was_reset

    async def test_a_bug_resets_both_sides_and_is_raised_as_itself(self) -> None:
        bad, other = Scripted(fails=LocalProtocolError("misused")), Scripted()
        with pytest.raises(LocalProtocolError):
            await copy_both_ways(bad, other, Traffic(), BufferPool())
        assert bad.was_reset
        assert other.was_reset

    async def test_chunks_keep_to_what_the_sink_likes(self) -> None:
        sizes: list[int] = []

        class Sink(Scripted):
            def write_now(self, buffer: memoryview, n: int, *, last: bool = False) -> Rest | None:
                sizes.append(n)
                return None

        app, near = tcp_pair()
        app.sendall(bytes(100_000))
        app.close()
        sink = Sink()
        with anyio.move_on_after(0.2):
            await copy_both_ways(RawStream(near), sink, Traffic(), BufferPool())
        assert sum(sizes) == 100_000
        assert max(sizes) == sink.chunk_limit


@pytest.fixture
def watched(quick_watch: None, monkeypatch: pytest.MonkeyPatch) -> list[RawStream]:
    """The streams that the watch has looked at, in its order."""
    looked_at: list[RawStream] = []
    broken = RawStream.broken

    def look(stream: RawStream) -> bool:
        looked_at.append(stream)
        return broken(stream)

    monkeypatch.setattr(RawStream, "broken", look)
    return looked_at


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the watch look every millisecond."""
    monkeypatch.setattr("tuunel.pump.WATCH_INTERVAL", 0.001)


async def stall(rig: Rig, ends: Ends, *, from_target: bool = False) -> int:
    """Write until every buffer up to the reader who does not read is full and stays so: how many bytes that were."""
    writer = ends.target if from_target else ends.app
    written = rounds = 0
    with anyio.fail_after(10):
        while rounds < 20:
            more = fill(writer)
            written += more
            rounds = rounds + 1 if rig.lent == 1 and not more else 0
            await anyio.sleep(0.001)
    return written


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)
