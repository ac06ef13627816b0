"""How the goals are judged, on runs of known figures."""

import pytest

from bench.goals import Goal, goals
from bench.results import Results
from bench.systems import SYSTEMS
from bench.systems.system import System
from bench.workloads.workload import Measurement

CHOSEN = [system for system in SYSTEMS if system.name in ("raw", "tuunel", "tuunel-socks", "openssh", "openssh-socks", "frp")]


def judged(workload: str, *, systems: list[System] = CHOSEN, **by_system: dict[str, float]) -> dict[str, Goal]:
    """The goals of a run in which `workload` alone ran, by what they are about. `relay` is that role's CPU; `_` in a name is a dash."""
    made = Results({}, quick=False, rounds=1, versions={}, skipped={})
    for system, figures in by_system.items():
        cpu = {"relay": figures["relay"]} if "relay" in figures else {}
        made.add(workload, system.replace("_", "-"), Measurement({"up_gbit": 1, "down_gbit": 1, **figures}, cpu))
    return {goal.what: goal for goal in goals(made, systems)}


def met(goal: Goal) -> tuple[bool, bool]:
    return goal.floor.met, goal.aim.met


@pytest.mark.parametrize(
    ("own", "frp", "expected"),
    [(4, 1, (True, True)), (4, 2.1, (True, False)), (4, 5, (True, False)), (1.9, 1, (False, False)), (2.4, 1, (False, True))],
)
def test_bulk_is_judged_by_raw_by_blind_relays_and_by_the_best(own: float, frp: float, expected: tuple[bool, bool]) -> None:
    raw, openssh = {"up_gbit": 10.0}, {"up_gbit": 0.5}
    goal = judged("bulk-1", raw=raw, tuunel={"up_gbit": own}, openssh=openssh, frp={"up_gbit": frp})["bulk, one stream to the service"]
    assert met(goal) == expected


def test_each_direction_is_a_goal_of_its_own() -> None:
    made = judged("bulk-1", raw={"down_gbit": 8.0}, tuunel={"up_gbit": 3.0, "down_gbit": 1.0}, openssh={"up_gbit": 0.5, "down_gbit": 2.0})
    assert made["bulk, one stream to the service"].floor.met
    assert not made["bulk, one stream from it"].floor.met
    assert made["bulk, one stream from it"].measured == "0.12 of raw, 0.50x the best with a blind relay, 0.50x the best peer"


@pytest.mark.parametrize(("own", "expected"), [(0.3, (True, True)), (0.4, (True, False)), (0.6, (False, False))])
def test_the_relay_is_compared_with_the_cheapest_relay(own: float, expected: tuple[bool, bool]) -> None:
    made = judged("bulk-1", tuunel={"relay": own}, openssh={"relay": 2.0}, frp={"relay": 1.0})
    assert met(made["relay CPU per GB"]) == expected


@pytest.mark.parametrize(("own", "expected"), [(100, (True, True)), (150, (True, False)), (201, (False, False))])
def test_less_is_better_for_a_round_trip(own: float, expected: tuple[bool, bool]) -> None:
    made = judged("pingpong", tuunel={"p50_us": own}, openssh={"p50_us": 200}, frp={"p50_us": 120})
    assert met(made["round trip p50"]) == expected


def test_connections_are_compared_with_what_is_asked_in_the_same_way() -> None:
    made = judged(
        "connections",
        tuunel={"sequential": 500, "at_once": 900},
        tuunel_socks={"sequential": 300, "at_once": 300},
        openssh={"sequential": 400, "at_once": 1000},
        openssh_socks={"sequential": 200, "at_once": 400},
        frp={"sequential": 600, "at_once": 500},
    )
    assert met(made["new connections, one by one"]) == (True, False)
    assert met(made["new connections, 50 at once"]) == (False, False)
    assert met(made["new connections, one by one, asked by SOCKS"]) == (True, True)
    assert made["new connections, 50 at once, asked by SOCKS"].measured == "0.75x OpenSSH, 0.75x the best peer"


@pytest.mark.parametrize(("hot", "warm", "expected"), [(1.2, 1.7, (True, True)), (1.3, 1.5, (False, True)), (1.0, 2.0, (True, False))])
def test_round_trips_are_counted(hot: float, warm: float, expected: tuple[bool, bool]) -> None:
    figures = {"next_rtt": hot, "first_rtt": warm, "up_mbit": 95.0, "down_mbit": 101.0}
    made = judged("delay-25", raw={**figures, "up_mbit": 100.0, "down_mbit": 100.0}, tuunel=figures)
    assert (made["first byte at 100 ms, hot"].floor.met, made["first byte at 100 ms, warm"].floor.met) == expected
    assert met(made["one stream at 100 ms to the service"]) == (True, False)
    assert met(made["one stream at 100 ms from it"]) == (True, True)


def test_memory_and_start_are_absolute() -> None:
    assert met(judged("idle", tuunel={"relay_kb": 24.1})["idle tunnel at the relay"]) == (False, False)
    assert met(judged("parked-1000", tuunel={"agent_kb": 39.9})["parked agent of 1,000"]) == (True, False)
    started = judged("nc", tuunel={"proxy_ms": 70, "alone_ms": 249, "python_ms": 20})
    assert met(started["nc beside a proxy"]) == (True, False)
    assert started["nc beside a proxy"].measured == "3.5x Python's start"
    assert met(started["nc alone"]) == (True, True)


def test_what_has_nothing_to_compare_with_is_no_goal() -> None:
    assert judged("bulk-1", tuunel={"up_gbit": 4}) == {}
    assert judged("pingpong", tuunel={"p50_us": 4}, frp={"p50_us": 5}) == {}
    assert judged("pingpong", openssh={"p50_us": 4}, frp={"p50_us": 5}) == {}
