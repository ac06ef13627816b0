"""The relay keeps to what its operator lets each device and each address use, and shows it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.relay.clocks import StandingClock
from tests.relay.devices import Device, Hop, make_open
from tests.relay.test_server import Relay, exchanged, pair, running
from tuunel.errors import Reason
from tuunel.events import Notice, Ready
from tuunel.relay import tunnels
from tuunel.relay.limits import Allowances
from tuunel.relay.pace import Pace
from tuunel.relay.wire import HopError, PairedAgent, PairedForward, Role, Switch

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def limited(tmp_path: Path, *limits: str) -> AsyncIterator[Relay]:
    async with running(tmp_path) as relay:
        await limit(relay, *limits)
        yield relay


async def limit(relay: Relay, *limits: str) -> None:
    """What SIGHUP comes to."""
    await relay.server.reload(advertise=None, open_enrolment=False, allowances=Allowances.parse(limits))


async def refused(forward: Device, agent: Device) -> tuple[Hop, HopError]:
    dial = await forward.dial(make_open(agent.id))
    return dial, await dial.receive(HopError)


async def use_of(relay: Relay, device: Device) -> dict[str, Any]:
    devices = (await relay.ask("devices"))["devices"]
    used: dict[str, Any] = next(each["use"] for each in devices if each["device_id"] == str(device.id))
    return used


async def test_a_device_with_as_many_tunnels_as_it_may_have_is_refused_one_more_and_keeps_those(tmp_path: Path) -> None:
    async with limited(tmp_path, "device-tunnels=2") as relay:
        forward, other = await relay.forward(), await relay.forward()
        agent, _ = await relay.agent(forward, other)
        first, second = await pair(forward, agent), await pair(forward, agent)
        dial, error = await refused(forward, agent)
        assert (error.reason, error.detail) == (Reason.QUOTA, "this device may have 2 tunnels (limit device-tunnels)")
        assert error.retry_after > 0
        assert await exchanged(*first)
        assert await exchanged(*second)
        assert await exchanged(*await pair(other, agent))
        assert (await use_of(relay, agent))["tunnels"] == 0  # what others open to it is theirs
        first[0].stream.reset()
        with anyio.fail_after(10):
            while (await use_of(relay, forward))["tunnels"] > 1:
                await anyio.sleep(0.001)
        ready = await agent.ready()
        await dial.send(make_open(agent.id))  # the connection that was refused is still good
        await dial.receive(PairedForward)
        await ready.receive(PairedAgent)
        await ready.send(Switch())
        assert await exchanged(dial, ready)


async def test_opens_that_wait_for_their_agent_are_tunnels_and_those_that_fail_are_none(tmp_path: Path) -> None:
    async with limited(tmp_path, "device-tunnels=1") as relay:
        forward = await relay.forward()
        agent, control = await relay.agent(forward)
        waiting = await forward.dial(make_open(agent.id))
        with anyio.fail_after(10):
            while not relay.server._switchboard.registry._waits_for:
                await anyio.sleep(0.001)
        assert (await refused(forward, agent))[1].reason is Reason.QUOTA
        control.close()
        assert (await waiting.receive(HopError)).reason is Reason.PEER_UNAVAILABLE
        assert (await use_of(relay, forward))["tunnels"] == 0


async def test_a_device_that_opens_too_fast_is_refused_and_told_when_to_come_back(tmp_path: Path) -> None:
    async with limited(tmp_path, "device-opens=1/s") as relay:
        forward, other = await relay.forward(), await relay.forward()
        agent, _ = await relay.agent(other)
        relay.server._switchboard.limiter.devices.of(str(forward.id)).opens.spend(1000)
        dial, error = await refused(forward, agent)
        assert (error.reason, error.detail) == (Reason.RATE_LIMITED, "this device may open 1 tunnels a second (limit device-opens)")
        assert error.retry_after > 900
        assert await exchanged(*await pair(other, agent))
        await dial.send(make_open(agent.id))
        assert (await dial.receive(HopError)).reason is Reason.RATE_LIMITED
        used = await use_of(relay, forward)
        assert (used["refused"], used["at_limit"]) == (2, ["opens"])
        (told,) = [notice.text for notice in relay.seen(Notice) if "refused" in notice.text]
        assert str(forward.id) in told


async def test_too_fast_is_answered_before_anything_about_the_agent(tmp_path: Path) -> None:
    async with limited(tmp_path, "device-opens=1/s") as relay:
        forward, unknown = await relay.forward(), relay.device(Role.AGENT)
        relay.server._switchboard.limiter.devices.of(str(forward.id)).opens.spend(1000)
        assert (await refused(forward, unknown))[1].reason is Reason.RATE_LIMITED


async def test_all_devices_at_one_address_share_what_it_may_have(tmp_path: Path) -> None:
    async with limited(tmp_path, "prefix-tunnels=1") as relay:
        forward, other = await relay.forward(), await relay.forward()
        agent, _ = await relay.agent(forward, other)
        first = await pair(forward, agent)
        error = (await refused(other, agent))[1]
        assert error.reason is Reason.QUOTA
        assert error.detail == "all devices at this address together may have 1 tunnels (limit prefix-tunnels)"
        assert await exchanged(*first)
        told = await relay.ask("devices")
        assert told["prefixes"] == [{"prefix": "127.0.0.1", "use": {**told["prefixes"][0]["use"], "tunnels": 1, "refused": 1}}]
        assert told["prefixes"][0]["use"]["at_limit"] == ["tunnels"]
        assert told["limits"]["prefix"] == {"tunnels": 1, "opens_per_second": None, "bytes_per_second": None}


async def test_other_limits_count_at_once_and_cut_nothing(tmp_path: Path) -> None:
    async with limited(tmp_path) as relay:
        forward = await relay.forward()
        agent, _ = await relay.agent(forward)
        tunnels = [await pair(forward, agent) for _ in range(2)]
        await limit(relay, "device-tunnels=1")
        assert (await refused(forward, agent))[1].reason is Reason.QUOTA
        assert all([await exchanged(*each) for each in tunnels])
        await limit(relay)
        assert await exchanged(*await pair(forward, agent))


async def test_a_rate_holds_for_all_tunnels_of_a_device_and_each_byte_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StandingClock()
    monkeypatch.setattr(tunnels, "Pace", lambda *buckets: Pace(*buckets, sleep=clock.sleep))
    async with limited(tmp_path, "device-rate=100kB/s") as relay:
        forward = await relay.forward()
        agent, _ = await relay.agent(forward)
        bucket = relay.server._switchboard.limiter.devices.of(str(forward.id)).bytes
        monkeypatch.setattr(bucket, "_clock", clock)
        bucket._since = clock.now
        pipes = [await pair(forward, agent) for _ in range(2)]
        payload = bytes(range(250)) * 200
        account = relay.server._switchboard.limiter.devices.of(str(forward.id))
        for dial, ready in pipes:
            await dial.stream.send_all(payload)
            await dial.stream.write_eof()
            await ready.stream.send_all(payload)
        start = clock.now
        async with anyio.create_task_group() as tasks:
            for dial, ready in pipes:
                tasks.start_soon(_receives, ready, payload)
                tasks.start_soon(_receives, dial, payload)
            while account.carried < 4 * len(payload):
                clock.go_on(0.02)
                await anyio.wait_all_tasks_blocked()
                assert account.carried <= 25_000 + 100_000 * (clock.now - start)
                if clock.sleeping:
                    assert (await use_of(relay, forward))["at_limit"] == ["rate"]
        await limit(relay)
        clock.go_on(60)  # the ends that still wait for their turn


async def _receives(hop: Hop, payload: bytes) -> None:
    assert await hop.stream.receive_exactly(len(payload)) == payload


async def test_bytes_before_the_agents_word_go_at_the_same_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StandingClock()
    monkeypatch.setattr(tunnels, "Pace", lambda *buckets: Pace(*buckets, sleep=clock.sleep))
    async with limited(tmp_path, "device-rate=100kB/s") as relay:
        forward = await relay.forward()
        agent, _ = await relay.agent(forward)
        account = relay.server._switchboard.limiter.devices.of(str(forward.id))
        monkeypatch.setattr(account.bytes, "_clock", clock)
        account.bytes._since = clock.now
        ready = await agent.ready()
        dial = await forward.dial(make_open(agent.id))
        await dial.receive(PairedForward)
        await ready.receive(PairedAgent)
        early = bytes(range(250)) * 160
        await dial.stream.send_all(early)
        with anyio.fail_after(10):
            while not clock.sleeping:
                await anyio.sleep(0.001)
        assert account.carried <= 25_000
        await ready.send(Switch())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_receives_behind_paired, ready, early)
            while account.carried < len(early):
                clock.go_on(0.02)
                await anyio.wait_all_tasks_blocked()
        await limit(relay)
        clock.go_on(60)


async def _receives_behind_paired(ready: Hop, early: bytes) -> None:
    already = ready.channel.trailing_data
    assert already + await ready.stream.receive_exactly(len(early) - len(already)) == early


async def test_devices_status_and_display_tell_what_is_used_beside_what_is_allowed(tmp_path: Path) -> None:
    async with limited(tmp_path, "device-tunnels=1", "device-rate=20MB/s") as relay:
        forward = await relay.forward()
        agent, _ = await relay.agent(forward)
        await pair(forward, agent)
        told, status = await relay.ask("devices"), await relay.ask("status")
        assert (
            told["limits"]
            == status["limits"]
            == {
                "device": {"tunnels": 1, "opens_per_second": 256, "bytes_per_second": 20_000_000},
                "prefix": {"tunnels": None, "opens_per_second": None, "bytes_per_second": None},
            }
        )
        used = await use_of(relay, forward)
        assert set(used) == {"tunnels", "opens_per_second", "bytes_per_second", "refused", "at_limit"}
        assert (used["tunnels"], used["refused"], used["at_limit"]) == (1, 0, ["tunnels"])
        (shown,) = status["uses"]
        assert (shown["kind"], shown["holder"], shown["use"]["at_limit"]) == ("device", str(forward.id), ["tunnels"])
        (ready,) = relay.seen(Ready)
        (use,) = ready.fullest(5)
        assert (use.holder, use.tunnels, use.max_tunnels) == (str(forward.id), 1, 1)
        assert (await relay.server.measures())["relay_at_limit"] == {
            "device-tunnels": 1, "device-opens": 0, "device-rate": 0, "prefix-tunnels": 0, "prefix-opens": 0, "prefix-rate": 0,
        }  # fmt: skip
