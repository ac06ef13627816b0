"""Journeys: what people do with tuunel, with real programs through real processes."""

import pytest

pytest.register_assert_rewrite("tests.journeys.doors", "tests.journeys.verdicts", "tests.journeys.world", "tests.journeys.processes")
