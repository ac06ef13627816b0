"""Who may not go on waits for its turn: all come in turn, no more passes than the buckets hold, and nothing is lost by a cancellation."""

from collections.abc import Iterator

import anyio
import pytest

from tests.relay.clocks import Clock
from tests.streams import tcp_pair
from tuunel.rawstream import RawStream
from tuunel.relay.bucket import Bucket
from tuunel.relay.limiter import RATE_BURST, turn_size
from tuunel.relay.pace import FREE, LOOK, Pace

pytestmark = pytest.mark.anyio
RATE = 1_000_000


def limited(clock: Clock, rate: float = RATE) -> Bucket:
    bucket = Bucket(clock)
    bucket.allow(rate, rate * RATE_BURST)
    return bucket


@pytest.fixture
def stream() -> Iterator[RawStream]:
    """What is paid for."""
    near, far = tcp_pair()
    with far:
        stream = RawStream(near)
        yield stream
        stream.close()


async def test_a_free_one_takes_all_and_never_waits(stream: RawStream) -> None:
    unlimited = Pace(Bucket(Clock()), Bucket(Clock()))
    for pace in (FREE, unlimited):
        assert pace.take(1 << 20) == 1 << 20
        pace.give_back(5)
        await pace.pay(10**12, stream)


async def test_it_takes_what_is_there_and_nothing_that_is_not_worth_it() -> None:
    clock = Clock()
    pace = Pace(limited(clock), sleep=clock.sleep)
    assert pace.take(100_000) == 100_000
    assert pace.take(1 << 20) == 150_000
    assert pace.take(1 << 20) == 0
    clock.now += (turn_size(RATE) - 100) / RATE
    assert pace.take(1 << 20) == 0
    assert pace.take(100) == 100  # less than a turn, when no more is asked for


async def test_the_narrower_of_two_buckets_decides_and_both_are_charged(stream: RawStream) -> None:
    clock = Clock()
    wide, narrow = limited(clock, 10 * RATE), limited(clock)
    pace = Pace(wide, narrow, sleep=clock.sleep)
    assert pace.take(1 << 20) == 250_000
    assert wide.level == 2_250_000
    before = clock.now
    assert await pace.turn(1 << 20, stream) == turn_size(RATE)
    assert clock.now - before == pytest.approx(turn_size(RATE) / RATE)


async def test_a_cancelled_wait_has_spent_nothing(stream: RawStream) -> None:
    clock = Clock()
    bucket = limited(clock)
    bucket.spend(300_000)
    pace = Pace(bucket, sleep=anyio.sleep)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pace.turn(1 << 20, stream)
    assert scope.cancelled_caught
    assert bucket.level == -50_000


async def test_a_wait_for_what_has_been_closed_ends_soon_and_has_spent_nothing(stream: RawStream) -> None:
    clock = Clock()
    bucket = limited(clock)
    bucket.spend(100 * RATE)
    start = clock.now
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await clock.sleep(seconds)
        if len(slept) == 3:
            stream.close()

    with pytest.raises(anyio.ClosedResourceError):
        await Pace(bucket, sleep=sleep).pay(1000, stream)
    assert slept == [LOOK] * 3
    assert bucket.level == pytest.approx(RATE * (RATE_BURST + clock.now - start) - 100 * RATE)


async def test_all_that_wait_on_one_bucket_come_in_turn(stream: RawStream) -> None:
    clock = Clock()
    bucket = limited(clock)
    bucket.spend(250_000)
    turns: list[int] = []

    async def move(number: int) -> None:
        pace = Pace(bucket, sleep=clock.sleep)
        for _ in range(10):
            await pace.turn(1 << 20, stream)
            turns.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(move, number)
    assert all(sorted(turns[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 50, 5))


async def test_no_more_passes_than_the_bucket_holds_and_gains(stream: RawStream) -> None:
    clock = Clock()
    bucket, start = limited(clock), clock.now
    moved = 0

    async def move(most: int) -> None:
        nonlocal moved
        pace = Pace(bucket, sleep=clock.sleep)
        for _ in range(50):
            taken = pace.take(most) or await pace.turn(most, stream)
            used = taken // 3
            pace.give_back(taken - used)
            moved += used
            assert moved <= RATE * (clock.now - start) + RATE * RATE_BURST

    async with anyio.create_task_group() as tasks:
        for most in (1_000, 70_000, 1 << 20):
            tasks.start_soon(move, most)
    assert moved > RATE * RATE_BURST
