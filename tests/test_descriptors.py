"""Every role may have as many files open as the system lets it: one client must not use up what the others need."""

import resource
from collections.abc import Iterator

import pytest

from tests.world import world
from tuunel.descriptors import raise_limit
from tuunel.events import Ready

FEW = 512

needs_room = pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= FEW, reason="the system allows no more files")


@pytest.fixture(autouse=True)
def few() -> Iterator[int]:
    """A process that may open few files, and could have more; afterwards as it was."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower()
    yield limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def lower() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def allowed() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@needs_room
def test_the_limit_is_raised_to_what_the_system_allows(few: int) -> None:
    assert raise_limit() == few
    assert allowed() == few


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_system_that_refuses_keeps_its_limit(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == FEW
    monkeypatch.undo()
    assert allowed() == FEW


@needs_room
@pytest.mark.anyio
async def test_each_role_raises_it(few: int) -> None:
    async with world() as made:
        relay = await made.relay()
        assert allowed() == few
        lower()
        agent = await made.agent((await relay.until(Ready)).link)
        assert allowed() == few
        home, _ = await made.paired(agent)
        lower()
        await made.proxy(home)
        assert allowed() == few
