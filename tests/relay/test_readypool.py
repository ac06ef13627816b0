"""READY connections: each with an offer of its own, replaced when it is taken, gone with the pool."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import pytest

from tests.relay.devices import make_offer, make_open
from tests.relay.scripted import IDENTITY, Link, ScriptedRelay, scripted_relay
from tests.world import until
from tuunel.backoff import Backoff
from tuunel.errors import Reason
from tuunel.events import Alarm, Event
from tuunel.rawstream import RawStream
from tuunel.relay import readypool as module
from tuunel.relay.readypool import AT_REST, AT_START, LARGEST, ReadyPool
from tuunel.relay.wire import HopError, Offer, PairedAgent, Params, Ping, Pong, Purpose, Role, Switch

pytestmark = pytest.mark.anyio

PAIRED = PairedAgent(IDENTITY.public_bytes, make_open(IDENTITY.device_id).body)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.0)


@dataclass
class Served:
    """What the pool handed on."""

    offers: list[bytes] = field(default_factory=list)
    served: list[tuple[RawStream, bytes, PairedAgent, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def make_offer(self) -> tuple[bytes, int]:
        self.offers.append(make_offer())
        return self.offers[-1], len(self.offers) - 1

    async def serve(self, stream: RawStream, first: bytes, paired: PairedAgent, number: int) -> None:
        self.served.append((stream, first, paired, number))
        try:
            await anyio.sleep_forever()
        finally:
            stream.close()


@asynccontextmanager
async def pool() -> AsyncIterator[tuple[ScriptedRelay, Served, "ReadyPool[int]", anyio.CancelScope]]:
    async with scripted_relay() as (relay, tasks):
        served = Served()
        ready = ReadyPool(
            relay.known,
            IDENTITY,
            Params(Role.AGENT, bytes(16)),
            make_offer=served.make_offer,
            serve=served.serve,
            tasks=tasks,
            emit=served.events.append,
        )
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await ready.run()

        tasks.start_soon(run)
        yield relay, served, ready, scope


async def parked(relay: ScriptedRelay, count: int) -> list[Link]:
    return [await relay.next(Purpose.READY, number) for number in range(1, count + 1)]


async def test_a_relay_that_is_another_one_is_told_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "after", lambda *_: 0.0)
    async with scripted_relay() as (relay, tasks):
        served, other = Served(), replace(relay.known, id=bytes(32))
        ready = ReadyPool(
            other,
            IDENTITY,
            Params(Role.AGENT, bytes(16)),
            make_offer=served.make_offer,
            serve=served.serve,
            tasks=tasks,
            emit=served.events.append,
        )
        tasks.start_soon(ready.run)
        await until(lambda: len(served.offers) > 3 * AT_START)
        assert [type(event) for event in served.events] == [Alarm]
        assert not served.served
        tasks.cancel_scope.cancel()


async def test_it_starts_with_a_few_each_with_its_own_offer() -> None:
    async with pool() as (relay, served, ready, _):
        links = await parked(relay, AT_START)
        heard = [(await link.hear(Offer)).body for link in links]
        assert sorted(heard) == sorted(served.offers)
        assert len(set(heard)) == AT_START
        await until(ready.waiting.is_set)


async def test_a_paired_connection_is_switched_handed_on_with_its_secrets_and_replaced() -> None:
    async with pool() as (relay, served, _, __):
        link = (await parked(relay, AT_START))[0]
        offer = await link.hear(Offer)
        await link.stream.send_all(link.channel.send(PAIRED) + b"first bytes")
        await link.hear(Switch)
        await until(lambda: served.served)
        _stream, first, paired, number = served.served[0]
        assert (first, paired, served.offers[number]) == (b"first bytes", PAIRED, offer.body)
        await relay.next(Purpose.READY, AT_START + 1)


async def test_what_was_paired_outlives_the_pool_and_what_waits_does_not() -> None:
    async with pool() as (relay, served, _, scope):
        links = await parked(relay, AT_START)
        await links[0].hear(Offer)
        await links[0].say(PAIRED)
        await until(lambda: served.served)
        await relay.next(Purpose.READY, AT_START + 1)
        scope.cancel()
        for link in (links[1], relay.links[AT_START]):
            await link.until_gone()
        assert served.served[0][0].fileno() >= 0


async def test_demand_opens_more_and_a_lower_one_closes_none() -> None:
    async with pool() as (relay, served, ready, _):
        ready.demand(5)
        links = await parked(relay, 5)
        ready.demand(2)
        for link in links:
            await link.hear(Offer)
            await link.say(Ping(b"12345678"))
            assert await link.hear(Pong) == Pong(b"12345678")
        for number, link in enumerate(links[:3], 1):  # used and not replaced
            await link.say(PAIRED)
            await until(lambda number=number: len(served.served) == number)  # type: ignore[misc]
        await until(lambda: len(ready._workers) == 2)
        assert len(relay.links) == 5


async def test_demand_has_a_ceiling() -> None:
    async with pool() as (_, __, ready, scope):
        ready.demand(60_000)
        assert ready._wanted == LARGEST
        scope.cancel()


async def test_after_a_long_rest_only_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST", 0.1)
    async with pool() as (_, __, ready, ___):
        await until(lambda: len(ready._workers) == AT_REST)


@pytest.mark.parametrize("how", ["error", "reset", "refusal"])
async def test_a_lost_connection_is_replaced(how: str) -> None:
    async with pool() as (relay, _, __, ___):
        links = await parked(relay, AT_START)
        await links[0].hear(Offer)
        if how == "error":
            await links[0].say(HopError(Reason.SHUTDOWN, 0, ""))
        elif how == "reset":
            links[0].stream.reset()
        else:
            relay.refusal = Reason.QUOTA, 0
            links[0].stream.reset()
            seen = len(relay.streams)
            await until(lambda: len(relay.streams) > seen + 2)
            relay.refusal = None
        await relay.next(Purpose.READY, AT_START + 1)


async def test_an_offer_is_renewed_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWAL", 0.1)
    async with pool() as (relay, served, _, __):
        links = await parked(relay, AT_START)
        await relay.next(Purpose.READY, AT_START + 1)
        await links[0].until_gone()
        assert len(set(served.offers)) == len(served.offers)


async def test_a_waiting_connection_whose_relay_falls_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NAT may have forgotten it: whatever is sent there goes nowhere."""
    monkeypatch.setattr(module, "REFRESH", 0.05)
    async with pool() as (relay, _, __, ___):
        link = (await parked(relay, 1))[0]
        await link.hear(Offer)
        await link.hear(Ping)  # and nobody answers
        await link.until_gone()
        await parked(relay, 3)


async def test_waiting_connections_refresh_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH", 0.05)
    async with pool() as (relay, _, __, ___):
        link = (await parked(relay, 1))[0]
        await link.hear(Offer)
        await link.hear(Ping)
