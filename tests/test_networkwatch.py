"""A sleep of the machine, and another way to the relay, are noticed within a second; nothing else is."""

import anyio
import pytest

from tuunel import networkwatch
from tuunel.address import HostPort
from tuunel.networkwatch import FAR_AWAY, NetworkWatch, local_address, uptime

pytestmark = pytest.mark.anyio

RELAY = HostPort("127.0.0.1", 7443)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networkwatch, "LOOK", 0.01)


async def told(watch: NetworkWatch) -> bool:
    """Whether a change is told; a quarter of a second is many looks."""
    with anyio.move_on_after(0.25):
        await watch.changed()
        return True
    return False


async def test_nothing_is_told_while_nothing_changes() -> None:
    watch = NetworkWatch()
    watch.aim(RELAY)
    assert not await told(watch)


async def test_a_sleep_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the machine sleeps the clock of the event loops stands still, and this one goes on."""
    watch = NetworkWatch()
    monkeypatch.setattr(networkwatch, "uptime", lambda: uptime() + 3600)
    assert await told(watch)
    assert not await told(watch)


async def test_a_clock_that_is_set_back_is_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = NetworkWatch()
    monkeypatch.setattr(networkwatch, "uptime", lambda: uptime() - 3600)
    assert not await told(watch)


@pytest.mark.parametrize("new", ["192.168.7.7", None])
async def test_another_address_and_none_are_told_once(monkeypatch: pytest.MonkeyPatch, new: str | None) -> None:
    watch = NetworkWatch()
    watch.aim(RELAY)
    monkeypatch.setattr(networkwatch, "local_address", lambda place: new if place == RELAY else "10.0.0.1")
    assert await told(watch)
    assert not await told(watch)


async def test_another_relay_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networkwatch, "local_address", lambda place: f"to {place}")
    watch = NetworkWatch()
    watch.aim(RELAY)
    assert not await told(watch)


def test_the_kernel_says_which_address_it_would_use() -> None:
    assert local_address(RELAY) == "127.0.0.1"
    assert local_address(HostPort("::1", 9)) in {"::1", None}
    assert len(FAR_AWAY) == 2
