"""The forward side's tunnels: standbys that are used once, stale ones that cost nothing, early bytes that are sent once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tests.world import PATIENCE, Trio, World, answer_after_end, echo, pool_of, trio, until, world
from tuunel import pool as module
from tuunel import reverse
from tuunel.address import HostPort
from tuunel.devices import Device, KnownRelay
from tuunel.dial import dial
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, PeerMismatch, Reason, Speaker
from tuunel.events import Alarm, ConnectionChanged, ConnectionClosed, Event
from tuunel.identity import IdentityKey
from tuunel.pool import ATTEMPTS, STANDBY, TunnelPool
from tuunel.rawstream import RawStream, receive_chunk, send_bytes
from tuunel.relay.client import HopConnection
from tuunel.relay.dialpool import DialPool
from tuunel.relay.wire import HopError, Open, PairedForward
from tuunel.reverse import ReverseTunnels
from tuunel.tunnel import Tunnel

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


def standbys(pool: TunnelPool, device: Device) -> int:
    return len(pool._standbys[device.id].waiting) if device.id in pool._standbys else 0


async def exchange(pool: TunnelPool, tunnel: Tunnel, data: bytes) -> bytes:
    await send_bytes(tunnel, pool._buffers, data)
    received = b""
    with anyio.fail_after(PATIENCE):
        while len(received) < len(data):
            received += await receive_chunk(tunnel, pool._buffers)
    return received


async def test_a_tunnel_reaches_the_target_and_early_bytes_go_first() -> None:
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        tunnel, bound = await pool.connect(roles.device, HostPort("", port), EarlyBytes(b"early "))
        assert bound.host == "127.0.0.1"
        await send_bytes(tunnel, pool._buffers, b"late")
        received = b""
        while len(received) < 10:
            received += await receive_chunk(tunnel, pool._buffers)
        assert received == b"early late"


async def test_what_the_agent_answers_is_raised_in_its_name_and_is_not_tried_again() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        opened = len(pool._live)
        with pytest.raises(Failure) as caught:
            await pool.connect(roles.device, HostPort("169.254.1.1", 80))
        assert (caught.value.reason, caught.value.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)
        assert len(pool._live) == opened + 1
        assert all(tunnel.closed for tunnel in pool._live)


@pytest.mark.parametrize("host", ["no name", "x" * 256, "naïve"])
async def test_a_host_that_no_name_can_be_costs_no_tunnel(host: str) -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        with pytest.raises(Failure) as caught:
            await pool.connect(roles.device, HostPort(host, 80))
        assert caught.value.reason is Reason.NAME_NOT_RESOLVED
        assert not pool._live


async def test_a_device_in_use_has_standbys_and_each_is_used_once() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        used = []
        for number in range(6):
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            assert await exchange(pool, tunnel, bytes([number])) == bytes([number])
            used.append(tunnel.id)
            await until(lambda: standbys(pool, roles.device) > 0)
        assert len(set(used)) == len(used)


async def finish(pool: TunnelPool, tunnel: Tunnel) -> None:
    """End a use cleanly at both ends."""
    await tunnel.write_eof()
    assert await receive_chunk(tunnel, pool._buffers) == b""
    await tunnel.aclose()


async def test_a_tunnel_that_has_ended_cleanly_is_used_again_without_a_handshake() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        used = []
        for number in range(20):
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            assert await exchange(pool, tunnel, bytes([number])) == bytes([number])
            used.append(tunnel.id)
            await finish(pool, tunnel)
        assert len(set(used)) == len(used)
        assert len({tunnel_id.partition(".")[0] for tunnel_id in used}) <= 1 + STANDBY
        assert len(pool._live) <= 1 + STANDBY
        told = [event.tunnel for event in roles.agent.seen(ConnectionChanged)]
        assert told == used  # both ends give each use the same name


@pytest.mark.parametrize("stays", [True, False], ids=["", "by a proxy that stops at once"])
async def test_a_service_that_has_ended_first_hears_the_apps_end_soon(stays: bool) -> None:
    """Which waits for a moment, to go with the next request; here none comes."""
    ends: list[bytes | None] = []

    async def answer_and_wait(stream: RawStream) -> None:
        await stream.write_eof()
        try:
            ends.append(await stream.receive())
        except OSError:
            ends.append(None)
        stream.close()

    async with three() as (made, roles):
        port = await made.target(answer_and_wait)
        async with pool_of(roles.home, warm=2) as pool:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            assert await receive_chunk(tunnel, pool._buffers) == b""
            await tunnel.write_eof()
            await tunnel.aclose()
            assert not ends
            if stays:
                await until(lambda: ends)
        await until(lambda: roles.agent.seen(ConnectionClosed))
        assert ends == [b""]
        assert [event.reason for event in roles.agent.seen(ConnectionClosed)] == ["done"]


async def test_what_is_asked_of_a_recycled_tunnel_is_judged_anew() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port))
        await finish(pool, tunnel)
        with pytest.raises(Failure) as caught:
            await pool.connect(roles.device, HostPort("169.254.1.1", port))
        assert (caught.value.reason, caught.value.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)


async def test_a_recycled_tunnel_that_is_lost_costs_no_connection() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port))
        await until(lambda: standbys(pool, roles.device) >= STANDBY)
        await finish(pool, tunnel)
        for live in list(roles.agent.role._tunnels.live):
            live.reset()
        tunnel, _ = await pool.connect(roles.device, HostPort("", port))
        assert await exchange(pool, tunnel, b"hello") == b"hello"


async def test_a_use_that_is_over_cannot_touch_the_next_one() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        first, _ = await pool.connect(roles.device, HostPort("", port))
        await finish(pool, first)
        second, _ = await pool.connect(roles.device, HostPort("", port))
        assert second.records is first.records
        first.reset()
        await first.aclose()
        assert await exchange(pool, second, b"hello") == b"hello"
        with pytest.raises(anyio.ClosedResourceError):
            await send_bytes(first, pool._buffers, b"from the past")
        assert first.broken()


async def test_commands_that_keep_nothing_ready_recycle_nothing() -> None:
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port))
        await finish(pool, tunnel)
        assert all(records.closed for records in pool._live)


async def test_many_at_once_share_no_tunnel() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)

        async def use(number: int) -> None:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            assert await exchange(pool, tunnel, str(number).encode() * 100) == str(number).encode() * 100
            tunnel.reset()

        await use(0)
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(use, number)


@pytest.mark.parametrize("early", [b"", b"early"])
async def test_a_stale_standby_costs_no_connection(monkeypatch: pytest.MonkeyPatch, early: bytes) -> None:
    """It does not answer: another tunnel is taken, and its early bytes, which it never got, go there."""
    monkeypatch.setattr(module, "LEAST_PATIENCE", 0.3)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        heard: list[bytes] = []
        port = await made.target(answer_after_end(b"answer", heard))
        (await pool.connect(roles.device, HostPort("", port)))[0].reset()
        await until(lambda: standbys(pool, roles.device) >= STANDBY)
        pool._rtt.clear()
        stale = [place.item for place in pool._standbys[roles.device.id].waiting._places]
        for each in stale:
            each.records.heard -= module.FRESH
        heard.clear()

        def swallow(self: RawStream, data: bytes, **how: bool) -> int:
            return len(data) if self in [tunnel.stream for tunnel in stale] else send_now(self, data, **how)

        send_now = RawStream.send_now
        monkeypatch.setattr(RawStream, "send_now", swallow)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(early))
        assert tunnel not in stale
        await tunnel.write_eof()
        assert await receive_chunk(tunnel, pool._buffers) == b"answer"
        assert heard == [early]


async def test_a_dial_that_takes_its_time_is_no_dead_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PATIENCE", 0.2)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        first, _ = await pool.connect(roles.device, HostPort("", port))
        await finish(pool, first)
        pool._rtt.clear()
        dialled: list[float] = []

        async def dial_late(where: HostPort, **how: Any) -> RawStream:
            dialled.append(anyio.current_time())
            await anyio.sleep(3 * module.LEAST_PATIENCE)
            return await dial(where, **how)

        monkeypatch.setattr(reverse, "dial_at_once", lambda where, allow: None)
        monkeypatch.setattr(reverse, "dial", dial_late)
        second, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(b"early"))
        assert second.records is first.records
        assert len(dialled) == 1
        assert await receive_chunk(second, pool._buffers) == b"early"


@pytest.mark.parametrize(("silent_for", "with_the_request"), [(0.0, True), (module.FRESH, False)])
async def test_early_bytes_travel_with_the_request_on_a_standby_that_was_just_heard_of(
    monkeypatch: pytest.MonkeyPatch, silent_for: float, with_the_request: bool
) -> None:
    """One round trip to the first byte; and one that has been silent for longer is asked first whether it lives."""
    early = bytes(5000)
    sent = 0
    sent_at_the_answer: list[int] = []
    send_now, connected = RawStream.send_now, Tunnel._connected
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        heard: list[bytes] = []
        port = await made.target(answer_after_end(b"answer", heard))
        (await pool.connect(roles.device, HostPort("", port)))[0].reset()
        await until(lambda: standbys(pool, roles.device) >= STANDBY)
        waiting = [place.item for place in pool._standbys[roles.device.id].waiting._places]
        for each in waiting:
            each.records.heard -= silent_for
        heard.clear()

        def note(self: RawStream, data: bytes, **how: bool) -> int:
            nonlocal sent
            sent += len(data) if self in [tunnel.stream for tunnel in waiting] else 0
            return send_now(self, data, **how)

        async def answer(self: Tunnel) -> HostPort:
            sent_at_the_answer.append(sent)
            return await connected(self)

        monkeypatch.setattr(RawStream, "send_now", note)
        monkeypatch.setattr(Tunnel, "_connected", answer)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(early))
        assert (sent_at_the_answer[0] > len(early)) == with_the_request
        await tunnel.write_eof()
        assert await receive_chunk(tunnel, pool._buffers) == b"answer"
        assert heard == [early]


async def test_what_was_sent_with_a_request_that_nobody_answered_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PATIENCE", 0.3)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        heard: list[bytes] = []
        port = await made.target(answer_after_end(b"answer", heard))
        (await pool.connect(roles.device, HostPort("", port)))[0].reset()
        await until(lambda: standbys(pool, roles.device) >= STANDBY)
        pool._rtt.clear()
        heard.clear()
        monkeypatch.setattr(RawStream, "send_now", lambda _, data, **__: len(data))
        with pytest.raises(Failure) as failed:
            await pool.connect(roles.device, HostPort("", port), EarlyBytes(b"early"))
        monkeypatch.undo()
        assert failed.value.reason is Reason.TUNNEL_LOST
        assert not standbys(pool, roles.device)
        assert not heard


async def test_standbys_that_the_agent_has_cut_are_not_offered() -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        (await pool.connect(roles.device, HostPort("", port)))[0].reset()
        await until(lambda: standbys(pool, roles.device) >= STANDBY)
        for tunnel in list(roles.agent.role._tunnels._idle):
            tunnel.reset()
        tunnel, _ = await pool.connect(roles.device, HostPort("", port))  # at once: the news may not have arrived
        assert await exchange(pool, tunnel, b"x") == b"x"


async def test_an_agent_that_lets_no_standby_wait_is_not_asked_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        opened: list[Tunnel] = []
        really_open = TunnelPool._open_somewhere

        async def open_to_be_cut(self: TunnelPool, device: Device, request: object, early: EarlyBytes) -> Tunnel:
            opened.append(tunnel := await really_open(self, device, request, early))  # type: ignore[arg-type]
            if request is None:
                tunnel.reset()
            return tunnel

        monkeypatch.setattr(TunnelPool, "_open_somewhere", open_to_be_cut)
        (await pool.connect(roles.device, HostPort("", port)))[0].reset()
        await until(lambda: not pool._standbys[roles.device.id].refill.running)
        assert len(opened) <= 1 + STANDBY


async def test_an_attempt_that_carried_early_bytes_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        tried: list[bytes] = []

        async def lose(_self: TunnelPool, _device: Device, _request: object, early: EarlyBytes) -> Tunnel:
            tried.append(early.take())
            raise Failure(Reason.TUNNEL_LOST)

        monkeypatch.setattr(TunnelPool, "_open", lose)
        for early, attempts in ((b"early", 1), (b"", ATTEMPTS)):
            tried.clear()
            with pytest.raises(Failure):
                await pool.connect(roles.device, HostPort("", 80), EarlyBytes(early))
            assert tried == [early] * attempts


async def test_what_an_app_says_while_the_relay_is_asked_goes_with_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first words over a new tunnel would come a round trip late, though a whole one goes by before INIT leaves."""
    answered: list[bool] = []
    taken_behind: list[bool] = []
    really_open = DialPool.open

    async def note(self: DialPool, request: Open) -> tuple[HopConnection, PairedForward | HopError]:
        answer = await really_open(self, request)
        answered.append(True)
        return answer

    def say() -> bytes:
        taken_behind.append(bool(answered))
        return b"hello"

    monkeypatch.setattr(DialPool, "open", note)
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(come=say))
        assert taken_behind == [True]
        assert await receive_chunk(tunnel, pool._buffers) == b"hello"


@pytest.mark.parametrize("says", [b"early", b""])
async def test_nor_is_it_repeated_at_another_relay(monkeypatch: pytest.MonkeyPatch, says: bytes) -> None:
    """An agent may refuse with any word, also one that a relay would use."""
    async with three() as (_, roles), pool_of(roles.home) as pool:
        (here,) = roles.device.relays
        device = replace(roles.device, relays=(here, replace(here, address=HostPort("127.0.0.1", 1))))
        tried: list[KnownRelay] = []

        async def refuse(_: TunnelPool, _device: Device, relay: KnownRelay, _request: object, early: EarlyBytes) -> Tunnel:
            tried.append(relay)
            early.take()
            raise Failure(Reason.SHUTDOWN, Speaker.AGENT)

        monkeypatch.setattr(TunnelPool, "_open_by", refuse)
        with pytest.raises(Failure):
            await pool.connect(device, HostPort("", 80), EarlyBytes(says))
        assert tried == list(device.relays[: 1 if says else 2])


@pytest.mark.parametrize(("on", "stalls_at"), [("a new tunnel", "_admit"), ("a standby", "_carry")])
async def test_an_attempt_that_is_not_repeated_has_the_time_of_all(monkeypatch: pytest.MonkeyPatch, on: str, stalls_at: str) -> None:
    """An agent that stalls for a moment costs no connection, though the app has spoken first."""
    monkeypatch.setattr(module, "LEAST_PATIENCE", 0.3)
    really = getattr(ReverseTunnels, stalls_at)
    asked = 0

    async def late(*given: Any) -> Any:
        nonlocal asked
        asked += 1
        await anyio.sleep(2 * module.LEAST_PATIENCE)
        return await really(*given)

    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        if on == "a standby":
            (await pool.connect(roles.device, HostPort("", port)))[0].reset()
            await until(lambda: standbys(pool, roles.device) >= STANDBY)
        pool._rtt.clear()
        monkeypatch.setattr(ReverseTunnels, stalls_at, late)
        tunnel, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(b"early"))
        assert asked == 1
        assert await receive_chunk(tunnel, pool._buffers) == b"early"


async def test_unused_standbys_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STANDBY_LIFETIME", 0.5)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        (await pool.connect(roles.device, HostPort("", port)))[0].reset()
        await until(lambda: standbys(pool, roles.device) >= STANDBY)
        await until(lambda: standbys(pool, roles.device) == 0)


async def test_connections_that_come_and_go_need_no_more_tunnels_than_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_USE", PATIENCE)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)

        async def use_at_once(number: int) -> None:
            for tunnel in [(await pool.connect(roles.device, HostPort("", port)))[0] for _ in range(number)]:
                await finish(pool, tunnel)
            await until(lambda: not pool._standbys[roles.device.id].refill.running)

        for _ in range(2):
            await use_at_once(8)
        opened = set(pool._live)
        assert len(opened) <= 2 * 8
        for _ in range(3):
            await use_at_once(8)
        assert pool._live == opened


async def test_connections_that_stay_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT_USE", 0.0)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        for _ in range(6):
            await pool.connect(roles.device, HostPort("", port))
            wanted = pool._standbys[roles.device.id].wanted
            await until(lambda wanted=wanted: standbys(pool, roles.device) >= wanted / 2)  # type: ignore[misc]


async def test_spare_tunnels_of_a_device_in_use_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STANDBY_LIFETIME", 1.0)
    async with three() as (made, roles), pool_of(roles.home, warm=2) as pool:
        port = await made.target(echo)
        for tunnel in [(await pool.connect(roles.device, HostPort("", port)))[0] for _ in range(8)]:
            await finish(pool, tunnel)
        kept = pool._standbys[roles.device.id]
        kept.used = float("inf")
        await until(lambda: not kept.refill.running)
        assert len(kept.waiting) > STANDBY
        monkeypatch.setattr(module, "SPARE_LIFETIME", 0.0)
        await until(lambda: (len(kept.waiting), kept.wanted) == (STANDBY, STANDBY))
        tunnel, _ = await pool.connect(roles.device, HostPort("", port))
        assert await exchange(pool, tunnel, b"hello") == b"hello"


async def test_a_wrong_peer_is_an_alarm_and_is_never_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    async with three() as (_, roles), pool_of(roles.home, emit=events.append) as pool:
        tried: list[bool] = []

        def refuse(*_: object) -> None:
            tried.append(True)
            raise PeerMismatch("another key")

        monkeypatch.setattr(module.Initiator, "receive_offer", refuse)
        with pytest.raises(PeerMismatch):
            await pool.connect(replace(roles.device, relays=roles.device.relays * 2), HostPort("", 80))
        assert len(tried) == 1
        assert [event for event in events if isinstance(event, Alarm)]


async def test_another_relay_of_the_device_is_tried() -> None:
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        gone = replace(roles.device.relays[0], address=HostPort("127.0.0.1", 1), id=bytes(32))
        device = replace(roles.device, relays=(gone, *roles.device.relays))
        tunnel, _ = await pool.connect(device, HostPort("", port))
        assert await exchange(pool, tunnel, b"x") == b"x"


async def test_a_device_that_is_offline() -> None:
    async with three() as (_, roles), pool_of(roles.home) as pool:
        stranger = replace(roles.device, id=IdentityKey.generate().device_id)
        with pytest.raises(Failure) as caught:
            await pool.connect(stranger, HostPort("", 80))
        assert (caught.value.reason, caught.value.speaker) == (Reason.PEER_UNAVAILABLE, Speaker.RELAY)


@pytest.mark.parametrize("steps", [*range(0, 60, 7), 100, 200, 400])
async def test_cancelling_a_connect_anywhere_leaves_nothing_open(steps: int) -> None:
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.connect, roles.device, HostPort("", port), EarlyBytes(b"early"))
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def test_what_the_body_raises_comes_out_alone() -> None:
    async with three() as (_, roles):
        with pytest.raises(KeyError):
            async with pool_of(roles.home, warm=2):
                raise KeyError
