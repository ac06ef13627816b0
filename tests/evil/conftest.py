"""One stage for all attacks: each group of them is followed by an honest request, which shows that nothing was broken for good."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.evil import stage as stages
from tuunel import pool
from tuunel.relay import dialpool, readypool


@pytest.fixture(scope="package", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="package")
def no_spares() -> Iterator[None]:
    """Every request opens one tunnel of its own, so that every attack meets it, and few connections wait for others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "STANDBY", 0)
        patch.setattr(pool, "MOST_KEPT", 0)
        patch.setattr(pool, "ATTEMPTS", 1)
        patch.setattr(dialpool, "LARGEST", 3)
        patch.setattr(readypool, "LARGEST", 3)
        yield


@pytest.fixture(scope="package")
async def stage(anyio_backend: str, no_spares: None) -> AsyncIterator[stages.Stage]:
    async with stages.stage() as made:
        yield made
