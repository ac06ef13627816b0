"""ping: each part of the way is asked, an outage is told and outlived, and what no second try can mend ends it."""

import time

import anyio
import pytest

from tests.world import PATIENCE, Trio, trio, until, world
from tuunel.address import HostPort
from tuunel.devices import Device, KnownRelay
from tuunel.errors import Reason
from tuunel.events import ConnectionClosed
from tuunel.probe import ping as module
from tuunel.probe.ping import Ping, Round
from tuunel.probe.way import Figures

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)


def pinging(roles: Trio, device: Device | None = None) -> tuple[Ping, list[Round]]:
    told: list[Round] = []
    return Ping(roles.home, device or roles.device, told.append), told


async def test_every_part_is_asked_in_every_round() -> None:
    async with world() as made:
        roles = await trio(made)
        ping, told = pinging(roles)
        with anyio.fail_after(PATIENCE):
            await ping.run(3)
        assert [each.number for each in told] == [1, 2, 3]
        assert told == ping.rounds
        for each in told:
            assert each.failure is None
            assert (each.path, each.relay) == ("relay", str(roles.device.relays[0].address))
            assert each.proxy_relay
            assert each.relay_agent
            assert each.end_to_end
        assert ping.note == ""
        assert (await roles.agent.until(ConnectionClosed)).reason == "done"


async def test_an_older_agent_tells_nothing_of_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.establish.ANNOUNCED", frozenset())
    async with world() as made:
        ping, told = pinging(await trio(made))
        await ping.run(2)
        assert all(each.end_to_end and each.proxy_relay and each.relay_agent is None and each.failure is None for each in told)
        assert ping.note.startswith("UNSUPPORTED: ")


async def test_a_relay_that_goes_and_comes_back_is_an_outage_and_no_end() -> None:
    async with world() as made:
        roles = await trio(made)
        ping, told = pinging(roles)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ping.run, None)
            await until(lambda: told and told[-1].end_to_end)
            await roles.relay.kill()
            await until(lambda: told[-1].failure)
            assert told[-1].end_to_end is None
            await made.relay(roles.relay.home, listen=HostPort("127.0.0.1", roles.device.relays[0].address.port))
            failed = len(told)
            with anyio.fail_after(3 * PATIENCE):  # the agent comes back when its backoff lets it
                while not told[-1].end_to_end:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        reasons = {each.failure.reason for each in told if each.failure}
        assert reasons <= {Reason.RELAY_UNREACHABLE, Reason.TUNNEL_LOST, Reason.PEER_UNAVAILABLE}
        assert len(told) > failed


async def test_an_agent_that_is_gone_leaves_the_relays_part() -> None:
    async with world() as made:
        roles = await trio(made)
        await roles.agent.kill()
        ping, told = pinging(roles)
        await ping.run(2)
        assert [each.failure and each.failure.reason for each in told] == [Reason.PEER_UNAVAILABLE] * 2
        assert all(each.proxy_relay for each in told)


async def test_what_another_try_cannot_mend_ends_it() -> None:
    async with world() as made:
        roles = await trio(made)
        (grant,) = roles.agent.role._grants.grants(int(time.time()))
        roles.agent.role._grants.revoke(grant.name, int(time.time()))
        ping, told = pinging(roles)
        with anyio.fail_after(PATIENCE):
            await ping.run(None)
        assert [each.failure and each.failure.reason for each in told] == [Reason.POLICY_REVOKED]


async def test_the_second_relay_is_asked_when_the_first_is_gone() -> None:
    async with world() as made:
        roles = await trio(made)
        (good,) = roles.device.relays
        gone = KnownRelay(bytes(32), HostPort("127.0.0.1", 1), enrolled=True)
        ping, told = pinging(roles, Device("home", roles.device.id, (gone, good)))
        await ping.run(2)
        assert [(each.relay, each.failure) for each in told] == [(str(good.address), None)] * 2


def test_figures() -> None:
    assert Figures.of([]) is None
    assert Figures.of([2.0]) == Figures(2.0, 2.0, 2.0, 0.0)
    assert Figures.of([1.0, 3.0]) == Figures(1.0, 2.0, 3.0, 1.0)
