"""Thousands of agents that wait, thousands of tunnels that carry, and new ones all the time: nobody meets an error, nobody grows."""

import statistics
from typing import Any

import pytest

from tests.journeys.figures import figure
from tests.journeys.load import cpu_told, load
from tests.journeys.world import World

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

PARKED, TUNNELS, RATE = 5000, 2001, 201.0  #: of the soak; tunnels and rate in equal parts for three laptops
MINUTES = 10
BEAT = 20.0  #: seconds between two echoes of one held tunnel
GROWTH = 10_000  #: KiB that a role may grow by in the last nine minutes


def test_three_hundred_agents_two_hundred_tunnels_and_new_ones_all_the_time(own_world: World) -> None:
    with load(own_world) as loaded:
        loaded.hold(201)
        loaded.park(300)
        parts = loaded.be_busy(rate=21, seconds=10, beat=2)
        assert sum(part["beats"]["count"] for part in parts) >= 201
        loaded.assert_well(300)
        loaded.end(201)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_five_thousand_agents_two_thousand_tunnels_and_two_hundred_new_ones_a_second(own_world: World) -> None:
    with load(own_world) as loaded:
        with cpu_told(loaded, "a tunnel that is new from end to end", TUNNELS):
            loaded.hold(TUNNELS)
        with cpu_told(loaded, "an agent that enrols and parks", PARKED):
            loaded.park(PARKED)
        with cpu_told(loaded, "a second of rest", 30):
            loaded.be_busy(rate=0, seconds=30, beat=BEAT)
        samples = []
        for minute in range(1, MINUTES + 1):
            with cpu_told(loaded, "a new connection, the rest included", round(60 * RATE)):
                parts = loaded.be_busy(rate=RATE, seconds=60, beat=BEAT)
            figure(f"minute {minute}", f"new {slowest(parts, 'new')}; echo of a held tunnel {slowest(parts, 'beats')}")
            samples.append(loaded.held())
            figure(f"minute {minute}", ", ".join(f"{role} {held.shown()}" for role, held in samples[-1].items()))
        loaded.assert_well(PARKED)
        loaded.end(TUNNELS)
    first, last = samples[0], samples[-1]
    for role in first:
        assert last[role].memory < first[role].memory + GROWTH, role
        assert last[role].threads == first[role].threads, role
        assert last[role].descriptors < first[role].descriptors + 64, role  # what is between open and established at that moment


def slowest(parts: list[dict[str, Any]], what: str) -> str:
    """How many on all laptops, the middle laptop's median, and the slowest laptop's slowest of a hundred."""
    count = sum(part[what]["count"] for part in parts)
    middle = statistics.median(part[what]["p50_ms"] for part in parts)
    return f"{count}, p50 {middle:.0f} ms, p99 {max(part[what]['p99_ms'] for part in parts):.0f} ms"
