"""Medians, spreads and percentiles."""

import math

import pytest

from bench.summary import percentile, summarise


def test_a_summary_is_the_median_and_the_ends_of_all_runs_in_their_order() -> None:
    summary = summarise([5.0, 1.0, 3.0])
    assert (summary.median, summary.smallest, summary.largest, summary.runs) == (3.0, 1.0, 5.0, (5.0, 1.0, 3.0))


def test_an_even_number_of_runs_has_the_mean_of_the_middle_two() -> None:
    assert summarise([1.0, 2.0, 4.0, 9.0]).median == 3.0


def test_no_runs_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no runs"):
        summarise([])


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (99.5, 100), (0, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == value


def test_one_value_is_every_percentile() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_nothing_measured_is_no_number() -> None:
    assert math.isnan(percentile([], 50))
