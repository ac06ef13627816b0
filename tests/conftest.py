"""What every test shares: both event loops for in-process tests."""

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both backends that anyio offers."""
    return str(request.param)
