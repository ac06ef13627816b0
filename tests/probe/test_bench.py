"""bench: each path is measured in both directions, at the receiving end, and an agent that cannot help is told apart."""

import anyio
import pytest

from tests.world import PATIENCE, Trio, trio, world
from tuunel.address import HostPort
from tuunel.devices import Device, KnownRelay
from tuunel.errors import Reason
from tuunel.events import ConnectionClosed, ConnectionOpened
from tuunel.probe.bench import Bench, PathResult, Rate

pytestmark = pytest.mark.anyio


async def measured(roles: Trio, device: Device | None = None) -> tuple[list[PathResult], set[str]]:
    phases: set[str] = set()
    bench = Bench(roles.home, device or roles.device, 0.2, lambda result, phase, elapsed, size: phases.add(phase))
    with anyio.fail_after(3 * PATIENCE):
        return await bench.run(), phases


async def test_both_directions_are_measured_and_counted_by_the_agent() -> None:
    async with world() as made:
        roles = await trio(made)
        ((result,), phases) = await measured(roles)
        assert result.failure is None
        assert (result.path, result.relay) == ("relay", str(roles.device.relays[0].address))
        assert len(result.idle) == 10
        assert result.up
        assert result.down
        for rate in (result.up, result.down):
            assert rate.size > 0
            assert 0.1 < rate.seconds < PATIENCE
            assert rate.per_second == rate.size / rate.seconds
        assert phases == {"idle", "up", "down"}
        targets = [event.target for event in roles.agent.seen(ConnectionOpened)]
        assert targets == ["service:sink", "service:source"]
        await roles.agent.until(ConnectionClosed, lambda event: event.id == roles.agent.seen(ConnectionOpened)[1].id)
        up, down = roles.agent.seen(ConnectionOpened)
        assert up.traffic.up >= result.up.size
        assert down.traffic.down >= result.down.size


async def test_an_older_agent_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.establish.ANNOUNCED", frozenset())
    async with world() as made:
        ((result,), _) = await measured(await trio(made))
        assert result.failure
        assert result.failure.reason is Reason.UNSUPPORTED
        assert "up to date" in result.failure.advice
        assert result.idle
        assert result.up is None
        assert not result.busy


async def test_a_path_that_fails_does_not_hide_another() -> None:
    async with world() as made:
        roles = await trio(made)
        (good,) = roles.device.relays
        gone = KnownRelay(bytes(32), HostPort("127.0.0.1", 1), enrolled=True)
        ((first, second), _) = await measured(roles, Device("home", roles.device.id, (gone, good)))
        assert first.failure
        assert first.failure.reason is Reason.RELAY_UNREACHABLE
        assert second.failure is None
        assert second.down


def test_a_rate_without_time_is_none() -> None:
    assert Rate(0, 0.0).per_second == 0.0
