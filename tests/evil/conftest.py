"""One stage for all attacks of a file: each attack is followed by an honest request, which shows that nothing was broken for good."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.evil import stage as stages
from tuunel import pool


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def no_standbys() -> Iterator[None]:
    """Every request opens a tunnel of its own, so that every attack meets it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "STANDBY", 0)
        patch.setattr(pool, "LARGEST_STANDBY", 0)
        yield


@pytest.fixture(scope="module")
async def stage(anyio_backend: str, no_standbys: None) -> AsyncIterator[stages.Stage]:
    async with stages.stage() as made:
        yield made
