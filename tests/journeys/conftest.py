"""The worlds that the journeys share: a session-wide trio for tests that leave it as they found it; a test that kills makes its own."""

from collections.abc import Iterator

import pytest

from tests.journeys.house import House
from tests.journeys.house import house as build_house
from tests.journeys.lab import Lab
from tests.journeys.lab import lab as build_lab
from tests.journeys.world import Trio, World, make_trio, world


@pytest.fixture(scope="session")
def trio() -> Iterator[Trio]:
    """Relay, agent and proxy for the whole run: a test must not stop them, nor revoke what is paired."""
    with world() as made:
        yield make_trio(made)


@pytest.fixture
def own_world() -> Iterator[World]:
    """An empty world for this test alone."""
    with world() as made:
        yield made


@pytest.fixture
def own_trio(own_world: World) -> Trio:
    """A trio for this test alone: it may kill, stop and revoke."""
    return make_trio(own_world)


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """An agent with a network of its own, for the whole run."""
    with build_house() as made:
        yield made


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Relay, agent and laptop on a network that a test may break, and the roles that it may kill: it leaves all as it found it."""
    with build_lab() as made:
        yield made
