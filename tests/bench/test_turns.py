"""The order of a run, and what a failure does to it."""

from bench.peers import PeerMissing
from bench.systems.system import System
from bench.turns import take_turns
from bench.workloads import WORKLOADS
from bench.workloads.workload import Measurement
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


class OfTuunel(Counting):
    only = "tuunel"


class Forbidden(Counting):
    def measure(self, system: System, *, quick: bool) -> Measurement:
        raise PeerMissing("it needs root")


def test_a_workload_about_one_system_is_given_to_no_other() -> None:
    workload = OfTuunel()
    take_turns(results(rounds=1), [workload], [Wire("raw"), Wire("tuunel")], lambda _: None)
    assert workload.turns == ["tuunel"]


def test_a_workload_that_the_machine_does_not_allow_is_skipped_and_named() -> None:
    made = results(rounds=1)
    take_turns(made, [Forbidden()], [Wire("raw")], lambda _: None)
    assert made.skipped["counting"] == "it needs root"
    assert not made.failures


def test_workloads_have_names_of_their_own_and_some_are_quick() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    assert [workload.name for workload in WORKLOADS if workload.in_quick] == ["bulk-1", "pingpong", "connections", "nc"]
