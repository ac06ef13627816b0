"""The agent's own services: for clients with a grant, bounded in time, bytes and number, and never a way to anywhere else."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest

from tests.world import PATIENCE, Trio, World, pool_of, trio, world
from tuunel import reverse, services
from tuunel.buffers import MAX_BODY
from tuunel.e2e.service import QUESTION, Measure, RelayRtt, Service, Taken
from tuunel.e2e.wire import Command, Target
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import Alarm, ConnectionClosed, ConnectionOpened
from tuunel.inflow import Inflow
from tuunel.pool import TunnelPool
from tuunel.probe.way import ask_relay_rtt, ask_service
from tuunel.rawstream import send_bytes
from tuunel.relay.presence import Presence
from tuunel.tunnel import Tunnel

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


async def opened(pool: TunnelPool, roles: Trio, service: Service) -> Tunnel:
    tunnel = await pool.open(roles.device)
    await ask_service(tunnel, service)
    return tunnel


async def refusal(pool: TunnelPool, roles: Trio, name: str) -> Failure:
    """What the agent says to a request for the service of that name."""
    tunnel = await pool.open(roles.device)
    await tunnel.request(Target(Command.SERVICE, name, 0))
    with pytest.raises(Failure) as caught:
        await tunnel.answer(PATIENCE)
    assert caught.value.speaker is Speaker.AGENT
    tunnel.reset()
    return caught.value


async def read_all(pool: TunnelPool, tunnel: Tunnel, wanted: int) -> Inflow:
    inflow = Inflow(tunnel, pool._buffers, wanted)
    with anyio.fail_after(PATIENCE):
        while not inflow.ended:
            await inflow.step()
    return inflow


async def test_an_agent_tells_its_round_trip_to_the_relay_again_and_again_and_ends_when_the_client_does() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.RELAY_RTT)
        for _ in range(3):
            told = await ask_relay_rtt(tunnel, pool._buffers)
            assert told is not None
            assert 0 < told < PATIENCE
        await tunnel.write_eof()
        assert (await read_all(pool, tunnel, 0)).size == 0
        await tunnel.aclose()
        assert (await roles.agent.until(ConnectionOpened)).target == "service:relay-rtt"
        assert (await roles.agent.until(ConnectionClosed)).reason == "done"


async def test_an_agent_that_stops_does_not_wait_for_a_ping_to_end() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.RELAY_RTT)
        assert await ask_relay_rtt(tunnel, pool._buffers) is not None
        roles.agent.role.stop()
        with anyio.fail_after(PATIENCE):
            await roles.agent.over.wait()
        with pytest.raises(OSError, match="SHUTDOWN"):
            await read_all(pool, tunnel, 0)


async def test_questions_make_the_agent_ask_the_relay_twice_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    pings: list[float] = []
    measure = Presence._round_trip

    async def counted(presence: Presence) -> float:
        pings.append(time.monotonic())
        return await measure(presence)

    monkeypatch.setattr(Presence, "_round_trip", counted)
    async with three() as (_, roles), pool_of(roles.home) as pool:
        pings.clear()  # of the pairing
        started = time.monotonic()
        one, other = [await opened(pool, roles, Service.RELAY_RTT) for _ in range(2)]
        told = {await ask_relay_rtt(tunnel, pool._buffers) for tunnel in (one, other) * 20}
        assert len(told) == len(pings)
        assert len(pings) <= 1 + (time.monotonic() - started) / 0.5


async def test_an_agent_without_its_relay_says_that_it_does_not_know() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.RELAY_RTT)
        roles.agent.role._presence = None
        assert await ask_relay_rtt(tunnel, pool._buffers) is None


async def test_a_client_that_asks_before_it_was_answered_is_cut() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.RELAY_RTT)
        await send_bytes(tunnel, pool._buffers, QUESTION * 2)
        with pytest.raises(OSError):
            await read_all(pool, tunnel, RelayRtt.LENGTH)
        assert (await roles.agent.until(ConnectionClosed)).reason == "reset"


async def test_a_sink_says_what_it_took() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SINK)
        await send_bytes(tunnel, pool._buffers, Measure(5000).encode() + b"x")
        await send_bytes(tunnel, pool._buffers, bytes(100_000))
        await tunnel.write_eof()
        taken = Taken.decode((await read_all(pool, tunnel, Taken.LENGTH)).head)
        assert 0 < taken.size <= 100_001  # less what came first, for which there is no time
        assert taken.microseconds < PATIENCE * 1_000_000
        await tunnel.aclose()
        closed = await roles.agent.until(ConnectionClosed)
        (entry,) = roles.agent.seen(ConnectionOpened)
        assert (entry.target, entry.traffic.up, closed.reason) == ("service:sink", 100_001, "done")


async def test_a_sink_answers_when_the_time_is_over_although_the_client_goes_on() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SINK)
        await send_bytes(tunnel, pool._buffers, Measure(50).encode())
        answer = Inflow(tunnel, pool._buffers, Taken.LENGTH)

        async def go_on() -> None:
            while not answer.whole:
                await send_bytes(tunnel, pool._buffers, bytes(1000))
                await anyio.sleep(0.001)
            await tunnel.write_eof()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on)
                while not answer.ended:
                    await answer.step()
        assert Taken.decode(answer.head).microseconds >= 50_000
        await tunnel.aclose()


async def test_a_source_sends_for_as_long_as_it_was_asked_to() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SOURCE)
        started = time.monotonic()
        await send_bytes(tunnel, pool._buffers, Measure(100).encode())
        await tunnel.write_eof()
        came = await read_all(pool, tunnel, 0)
        assert time.monotonic() - started >= 0.1
        assert came.size > 0
        await tunnel.aclose()
        await roles.agent.until(ConnectionClosed, lambda event: event.reason == "done")
        assert roles.agent.seen(ConnectionOpened)[0].traffic.down == came.size


async def test_a_source_sends_nothing_that_another_client_has_sent() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SOURCE)
        lent = [roles.agent.role._tunnels._buffers.borrow() for _ in range(4)]
        for buffer in lent:
            buffer[: MAX_BODY + 1] = b"s" * (MAX_BODY + 1)
            roles.agent.role._tunnels._buffers.give_back(buffer)
        await send_bytes(tunnel, pool._buffers, Measure(50).encode())
        await tunnel.write_eof()
        came = await read_all(pool, tunnel, 100_000)
        assert came.head == bytes(100_000)
        await tunnel.aclose()


async def test_a_measurement_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MOST", 1_000_000)
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SOURCE)
        await send_bytes(tunnel, pool._buffers, Measure(60_000).encode())
        await tunnel.write_eof()
        assert 1_000_000 <= (await read_all(pool, tunnel, 0)).size < 1_000_000 + MAX_BODY
        await tunnel.aclose()
        tunnel = await opened(pool, roles, Service.SINK)
        await send_bytes(tunnel, pool._buffers, Measure(60_000).encode())
        answer = Inflow(tunnel, pool._buffers, Taken.LENGTH)

        async def send() -> None:
            while not answer.whole:
                await send_bytes(tunnel, pool._buffers, bytes(100_000))
            await tunnel.write_eof()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                while not answer.ended:
                    await answer.step()
        assert Taken.decode(answer.head).size < 1_000_000 + MAX_BODY
        await tunnel.aclose()


@pytest.mark.parametrize("service", [Service.SINK, Service.SOURCE])
@pytest.mark.parametrize("said", [b"", Measure(1).encode()[:3], Measure(2**32 - 1).encode()])
async def test_a_client_that_stalls_is_cut(monkeypatch: pytest.MonkeyPatch, service: Service, said: bytes) -> None:
    monkeypatch.setattr(services, "LONGEST", 0.1)
    monkeypatch.setattr(services, "GRACE", 0.1)
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, service)
        if said:
            await send_bytes(tunnel, pool._buffers, said)
        closed = await roles.agent.until(ConnectionClosed)  # who was answered and does not end is one of them
        assert closed.reason == Reason.LIMIT
        tunnel.reset()


async def test_a_measurement_is_no_longer_than_an_agent_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LONGEST", 0.1)
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SOURCE)
        await send_bytes(tunnel, pool._buffers, Measure(2**32 - 1).encode())
        await tunnel.write_eof()
        assert (await read_all(pool, tunnel, 0)).size > 0
        await tunnel.aclose()
        assert (await roles.agent.until(ConnectionClosed)).reason == "done"


@pytest.mark.parametrize("service", Service)
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_a_client_says_ends_its_own_tunnel_and_no_more(monkeypatch: pytest.MonkeyPatch, service: Service, seed: int) -> None:
    monkeypatch.setattr(services, "LONGEST", 0.05)
    monkeypatch.setattr(services, "GRACE", 0.05)
    chosen = random.Random(seed)
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, service)
        with suppress(OSError, anyio.ClosedResourceError):
            for _ in range(chosen.randrange(1, 6)):
                await send_bytes(tunnel, pool._buffers, chosen.randbytes(chosen.choice((1, 3, 4, 5, 1000, 70_000))))
                await anyio.lowlevel.checkpoint()
            if seed % 2:
                await tunnel.write_eof()
                await read_all(pool, tunnel, 0)
            tunnel.reset()
        closed = await roles.agent.until(ConnectionClosed)
        assert closed.reason in {"done", "reset", Reason.LIMIT}
        assert not roles.agent.seen(Alarm)
        tunnel.reset()
        (await opened(pool, roles, service)).reset()


async def test_a_request_for_nothing_is_a_breach() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await opened(pool, roles, Service.SOURCE)
        await tunnel.write_eof()
        with pytest.raises(OSError):
            await read_all(pool, tunnel, 0)


async def test_one_client_has_one_measurement_at_a_time() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        first = await opened(pool, roles, Service.SINK)
        assert (await refusal(pool, roles, Service.SOURCE)).reason is Reason.LIMIT
        first.reset()
        await roles.agent.until(ConnectionClosed, lambda event: event.reason == "reset")
        (await opened(pool, roles, Service.SOURCE)).reset()


async def test_all_clients_together_have_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "AT_ONCE", 1)
    async with three() as (made, roles):
        home, device = await made.paired(roles.agent, "other")
        async with pool_of(roles.home) as pool, pool_of(home) as others:
            tunnel = await opened(pool, roles, Service.SINK)
            other = Trio(made, roles.relay, roles.agent, home, device)
            assert (await refusal(others, other, Service.SINK)).reason is Reason.LIMIT
            tunnel.reset()


async def test_a_service_that_there_is_not_is_unsupported() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        assert (await refusal(pool, roles, "echo")).reason is Reason.UNSUPPORTED


async def test_a_grant_is_asked_for_at_every_service() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await pool.open(roles.device)
        roles.agent.role._grants.revoke(_client_of(roles), int(time.time()))
        await tunnel.request(Target(Command.SERVICE, Service.SINK, 0))
        with pytest.raises(Failure) as caught:
            await tunnel.answer(PATIENCE)
        assert caught.value.reason is Reason.POLICY_REVOKED
        tunnel.reset()


def _client_of(roles: Trio) -> str:
    (grant,) = roles.agent.role._grants.grants(int(time.time()))
    return grant.name


async def test_whoever_has_any_grant_may_measure_and_nothing_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dialled(*_: object, **__: object) -> None:
        raise AssertionError("a service dials nothing")

    async with world() as made:
        roles = await trio(made)
        home, device = await made.paired(roles.agent, "guest", targets=["10.1.2.3:80"])
        monkeypatch.setattr(reverse, "dial", dialled)
        monkeypatch.setattr(reverse, "dial_unix", dialled)
        guest = Trio(made, roles.relay, roles.agent, home, device)
        async with pool_of(home) as pool:
            for service in Service:
                (await opened(pool, guest, service)).reset()


async def test_an_older_agent_is_told_apart_and_its_tunnel_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.establish.ANNOUNCED", frozenset())
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await pool.open(roles.device)
        with pytest.raises(Failure) as caught:
            await ask_service(tunnel, Service.SINK)
        assert caught.value.reason is Reason.UNSUPPORTED
        assert "older" in str(caught.value)
        assert await tunnel.records.ping() > 0
        tunnel.reset()


async def test_many_pings_of_a_tunnel_and_their_answers() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tunnel = await pool.open(roles.device)
        rounds = [await tunnel.records.ping() for _ in range(20)]
        assert all(0 < each < PATIENCE for each in rounds)
        assert tunnel.rtt == pytest.approx(rounds[-1], abs=0.01)
        await roles.agent.kill()
        with pytest.raises(OSError), anyio.fail_after(PATIENCE):
            await tunnel.records.ping()
        tunnel.reset()
