"""A bucket that may be spent ahead: who heeds its waits never has more than it held and what has come."""

from hypothesis import given
from hypothesis import strategies as st

from tests.relay.clocks import Clock
from tuunel.relay.bucket import Bucket


def bucket(clock: Clock, rate: float | None, burst: float) -> Bucket:
    made = Bucket(clock)
    made.allow(rate, burst)
    return made


def test_it_holds_its_burst_and_gains_its_rate() -> None:
    clock = Clock()
    filled = bucket(clock, 10, 100)
    assert filled.spend(100) == 0
    assert filled.spend(5) == 0.5
    assert filled.spend(10) == 1.5  # behind those before
    clock.now += 1.5
    assert filled.level == 0
    clock.now += 1000
    assert filled.level == 100
    assert filled.full


def test_what_was_not_used_comes_back_and_is_never_more_than_the_burst() -> None:
    clock = Clock()
    filled = bucket(clock, 10, 100)
    filled.spend(30)
    filled.give_back(20)
    assert filled.level == 90
    filled.give_back(50)
    assert filled.level == 100


def test_a_free_one_never_waits_and_counts_nothing() -> None:
    clock = Clock()
    free = bucket(clock, None, 0)
    assert free.spend(10**12) == 0
    assert free.full
    free.allow(10, 100)
    assert free.level == 100


def test_another_rate_counts_at_once_and_what_was_spent_stays_spent() -> None:
    clock = Clock()
    filled = bucket(clock, 10, 100)
    filled.spend(140)
    filled.allow(20, 50)
    assert filled.level == -40
    clock.now += 1
    assert filled.level == -20
    filled.allow(None, 0)
    assert filled.spend(1) == 0


Acts = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.integers(1, 300), st.integers(0, 300)),
        st.tuples(st.just("pass"), st.floats(0, 20, allow_nan=False), st.just(0)),
    ),
    max_size=60,
)


@given(st.integers(1, 50), st.integers(1, 200), Acts)
def test_never_more_than_the_burst_and_what_has_come_is_used(rate: int, burst: int, acts: list[tuple[str, float, int]]) -> None:
    clock = Clock()
    shared = bucket(clock, rate, burst)
    start = clock.now
    moves: list[tuple[float, float]] = []  # when somebody has the use of how much
    for act, amount, unused in acts:
        if act == "pass":
            clock.now += amount
            continue
        due = clock.now + shared.spend(amount)
        back = min(unused, amount) if due == clock.now else 0  # what is not used is known when it is there
        shared.give_back(back)
        moves.append((due, amount - back))
    for moment, _ in moves:
        used = sum(amount for due, amount in moves if due <= moment)
        assert used <= burst + rate * (moment - start) + 1e-6
