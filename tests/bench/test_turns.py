"""The order of a run, and what a failure does to it."""

from bench.turns import take_turns
from tests.bench.doubles import Counting, Wire, results


def test_systems_take_turns() -> None:
    workload = Counting()
    take_turns(results(rounds=3), [workload], [Wire("raw"), Wire("tuunel")], lambda _: None)
    assert workload.turns == ["raw", "tuunel"] * 3


def test_a_failure_is_told_and_kept_and_the_others_go_on() -> None:
    made = results(rounds=1)
    told: list[str] = []
    take_turns(made, [Counting()], [Wire("broken"), Wire("raw")], told.append)
    assert made.failures == [("counting", "broken", "it broke")]
    assert "broken" in told[0]
    assert "failed: it broke" in told[0]
    assert "count/s 3,000" in told[1]
    assert made.figure("counting", "broken", "count") is None
