"""How long the model runs: seconds in the ordinary suite, as long as one likes with `--hypothesis-profile=deep`.

Hypothesis takes the same examples each time where the environment says CI, as it does for all tests.
"""

import gc
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("deep", max_examples=3000, stateful_step_count=120, deadline=None)

_DEEP: Final = settings.get_current_profile_name() == "deep"
SETTINGS: Final = settings(
    max_examples=3000 if _DEEP else 25,
    stateful_step_count=120 if _DEEP else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def little_to_collect() -> Iterator[None]:
    """The model looks for what is left of each run: what was there before must not be looked through every time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
