"""What many runs of one measurement say."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The median of some runs, the smallest and the largest, and the runs themselves in the order in which they were made."""

    median: float
    smallest: float
    largest: float
    runs: tuple[float, ...]


def summarise(runs: Sequence[float]) -> Summary:
    """Return the summary of at least one run; ValueError when there is none."""
    if not runs:
        raise ValueError("no runs to summarise")
    return Summary(statistics.median(runs), min(runs), max(runs), tuple(runs))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that at least `percent` per cent of them do not exceed; NaN when there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
