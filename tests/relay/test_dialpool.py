"""DIAL connections: one that waited answers sooner, and a stale one costs nobody a connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.relay.devices import make_open
from tests.relay.scripted import IDENTITY, Link, ScriptedRelay, scripted_relay
from tests.world import PATIENCE, until
from tuunel import refill
from tuunel.companions import companions
from tuunel.errors import Failure, Reason
from tuunel.identity import IdentityKey
from tuunel.rawstream import RawStream
from tuunel.relay import dialpool as module
from tuunel.relay.client import HopConnection
from tuunel.relay.dialpool import LARGEST, DialPool
from tuunel.relay.wire import HopError, Open, PairedForward, Params, Ping, Pong, Purpose, Role

pytestmark = pytest.mark.anyio

REQUEST = make_open(IdentityKey.generate().device_id)
OFFER = b"\x01" + bytes(1000)
OFFLINE = HopError(Reason.PEER_UNAVAILABLE, 0, "offline")


@asynccontextmanager
async def pool(smallest: int) -> AsyncIterator[tuple[ScriptedRelay, DialPool]]:
    async with scripted_relay() as (relay, tasks), companions() as carers:
        dials = DialPool(relay.known, IDENTITY, Params(Role.FORWARD, bytes(16)), tasks, carers, smallest=smallest)
        yield relay, dials
        dials.drop()


async def answer(link: Link, *messages: HopError | PairedForward | Ping | Pong) -> None:
    assert await link.hear(Open) == REQUEST
    await link.say(*messages)


async def opened(dials: DialPool, relay: ScriptedRelay, number: int, *answers: HopError | PairedForward | Ping | Pong) -> object:
    """Open while the relay answers on its `number`-th connection."""
    results: list[object] = []

    async def ask() -> None:
        connection, message = await dials.open(REQUEST)
        results.append(message)
        dials.give_back(connection) if isinstance(message, HopError) else connection.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await answer(await relay.next(Purpose.DIAL, number), *answers)
    return results[0]


async def test_without_a_reserve_every_open_connects() -> None:
    async with pool(0) as (relay, dials):
        assert await opened(dials, relay, 1, PairedForward(OFFER)) == PairedForward(OFFER)
        assert await opened(dials, relay, 2, OFFLINE) == OFFLINE
        await relay.links[1].until_gone()  # nothing is kept
        assert len(relay.links) == 2


async def test_a_connection_that_waits_is_used_and_replaced() -> None:
    async with pool(1) as (relay, dials):
        dials.fill()
        await relay.next(Purpose.DIAL)
        await until(lambda: len(dials._waiting) == 1)
        assert await opened(dials, relay, 1, PairedForward(OFFER)) == PairedForward(OFFER)
        await relay.next(Purpose.DIAL, 2)
        await until(lambda: len(dials._waiting) == 1)


async def test_an_error_leaves_the_connection_for_the_next_open() -> None:
    async with pool(1) as (relay, dials):
        assert await opened(dials, relay, 1, OFFLINE) == OFFLINE


async def test_what_was_on_its_way_is_not_taken_for_the_answer() -> None:
    async with pool(0) as (relay, dials):
        assert await opened(dials, relay, 1, Ping(b"12345678"), Pong(b"87654321"), OFFLINE) == OFFLINE


async def test_a_stale_connection_costs_nobody_anything() -> None:
    async with pool(1) as (relay, dials):
        dials.fill()
        stale = await relay.next(Purpose.DIAL)
        await until(lambda: len(dials._waiting) == 1)
        dials._smallest = dials._wanted = 0
        results: list[object] = []

        async def ask() -> None:
            connection, message = await dials.open(REQUEST)
            results.append(message)
            connection.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await stale.hear(Open)
            stale.stream.reset()
            await answer(await relay.next(Purpose.DIAL, 2), OFFLINE)
        assert results == [OFFLINE]


async def test_an_open_on_a_silent_connection_is_given_up_when_the_relay_is_known_to_be_gone() -> None:
    async with pool(1) as (relay, dials):
        dials.fill()
        silent = await relay.next(Purpose.DIAL)
        await until(lambda: len(dials._waiting) == 1)
        dials._smallest = dials._wanted = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dials.open, REQUEST)
            await silent.hear(Open)
            dials.drop()
            await (await relay.next(Purpose.DIAL, 2)).hear(Open)
            tasks.cancel_scope.cancel()


async def test_a_relay_that_never_answers_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.05)
    async with pool(0) as (relay, dials):
        with pytest.raises(Failure) as caught:
            await dials.open(REQUEST)
        assert caught.value.reason is Reason.RELAY_UNREACHABLE
        await relay.links[0].until_gone()


async def test_cancelling_an_open_closes_its_connection() -> None:
    async with pool(1) as (relay, dials):
        dials.fill()
        link = await relay.next(Purpose.DIAL)
        await until(lambda: len(dials._waiting) == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dials.open, REQUEST)
            await link.hear(Open)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE):
            await link.until_gone()


async def test_waiting_connections_answer_pings_and_refresh_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH", 0.05)
    async with pool(1) as (relay, dials):
        dials.fill()
        link = await relay.next(Purpose.DIAL)
        await link.hear(Ping)
        await link.say(Ping(b"12345678"))
        assert await link.hear(Pong) == Pong(b"12345678")


async def test_a_waiting_connection_whose_relay_falls_silent_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH", 0.05)
    async with pool(1) as (relay, dials):
        dials.fill()
        link = await relay.next(Purpose.DIAL)
        await link.hear(Ping)  # and nobody answers
        await link.until_gone()
        assert not len(dials._waiting)


async def test_a_connection_that_waited_and_acknowledges_nothing_is_given_up_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's machine is gone from there: what was sent is never acknowledged, and nobody need wait for the whole time."""
    monkeypatch.setattr(module, "ACK_LOOK", 0.05)
    monkeypatch.setattr(module, "ACK_DEAD", 0.1)
    monkeypatch.setattr(refill, "PATIENCE", PATIENCE)
    async with pool(1) as (relay, dials):
        dials.fill()
        old = await relay.next(Purpose.DIAL)
        await until(lambda: len(dials._waiting) == 1)
        gone = old.stream.peer

        def age(stream: RawStream) -> float | None:
            return 60.0 if stream.local == gone else None

        monkeypatch.setattr(RawStream, "unacknowledged", age)
        assert await opened(dials, relay, 2, PairedForward(OFFER)) == PairedForward(OFFER)


async def test_a_relay_that_lets_no_connection_wait_is_not_asked_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    really_connect = DialPool._connect

    async def connect_to_be_cut(self: DialPool) -> HopConnection:
        connection = await really_connect(self)
        connection.close()
        return connection

    monkeypatch.setattr(DialPool, "_connect", connect_to_be_cut)
    async with pool(2) as (relay, dials):
        dials.fill()
        await until(lambda: not dials._refill.running)
        assert len(relay.streams) <= 2


async def test_demand_is_followed_within_bounds() -> None:
    async with pool(1) as (relay, dials):
        dials.demand(3)
        await until(lambda: len(dials._waiting) == 3)
        dials.demand(60_000)
        assert dials._wanted == LARGEST
        dials.drop()
        assert len(dials._waiting) == 0
        assert len(relay.links) >= 3
