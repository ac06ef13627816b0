"""Presence at a relay: kept up, given up only for a final reason, watched for silence."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import anyio
import pytest

from tests.relay.scripted import IDENTITY, ScriptedRelay, scripted_relay
from tests.world import PATIENCE, until
from tuunel import networkwatch
from tuunel.backoff import Backoff
from tuunel.devices import KnownRelay
from tuunel.errors import Failure, Reason
from tuunel.events import Alarm, Event, Notice, RelayStateChanged
from tuunel.relay import attendance
from tuunel.relay import presence as module
from tuunel.relay.client import HopConnection
from tuunel.relay.presence import FINAL, FINAL_AT_FIRST, Presence
from tuunel.relay.wire import Demand, HopError, Message, Params, Ping, Pong, Purpose, Role
from tuunel.relay.wire import Notice as RelayNotice

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.0)


@dataclass
class Watched:
    """A presence and what it did."""

    events: list[Event] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    companies: list[HopConnection] = field(default_factory=list)
    ended: int = 0
    failure: Failure | None = None
    presence: Presence | None = None

    async def while_online(self, connection: HopConnection) -> None:
        self.companies.append(connection)
        try:
            await anyio.sleep_forever()
        finally:
            self.ended += 1

    async def on_message(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.events if isinstance(event, RelayStateChanged)]

    async def run(self, relay: KnownRelay) -> None:
        self.presence = Presence(
            relay,
            IDENTITY,
            Params(Role.FORWARD, bytes(16)),
            register=None,
            while_online=self.while_online,
            on_message=self.on_message,
            emit=self.events.append,
        )
        try:
            await self.presence.run()
        except Failure as failure:
            self.failure = failure


@asynccontextmanager
async def present() -> AsyncIterator[tuple[ScriptedRelay, Watched]]:
    async with scripted_relay() as (relay, tasks):
        watched = Watched()
        tasks.start_soon(watched.run, relay.known)
        await until(lambda: watched.companies)
        yield relay, watched


async def test_it_says_that_it_is_online_measures_the_way_and_passes_messages_on() -> None:
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        await link.say(Pong((await link.hear(Ping)).nonce), Demand(7))
        await until(lambda: watched.messages)
        assert watched.messages == [Demand(7)]
        assert watched.states == ["connecting", "online", "online"]
        assert watched.presence
        assert watched.presence.rtt is not None


async def test_pings_are_answered() -> None:
    async with present() as (relay, _):
        link = await relay.next(Purpose.CONTROL)
        await link.hear(Ping)
        await link.say(Ping(b"12345678"))
        assert await link.hear(Pong) == Pong(b"12345678")


@pytest.mark.parametrize("how", ["end", "reset", "garbage", "error"])
async def test_a_lost_connection_is_made_again_and_its_company_ends_with_it(how: str) -> None:
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        if how == "end":
            await link.stream.write_eof()
        elif how == "reset":
            link.stream.reset()
        elif how == "garbage":
            await link.stream.send_all(bytes(64))
        else:
            await link.say(HopError(Reason.SHUTDOWN, 0, "back soon"))
        await relay.next(Purpose.CONTROL, 2)
        await until(lambda: len(watched.companies) == 2)
        assert watched.ended == 1
        assert watched.states[:4] == ["connecting", "online", "offline", "connecting"]
        assert watched.failure is None


async def test_silence_is_pinged_and_then_taken_for_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(module, "DEAD", 0.15)
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        await link.say(Pong((await link.hear(Ping)).nonce))
        await link.say(Pong((await link.hear(Ping)).nonce))  # after silence
        await link.hear(Ping)  # and this one has no answer
        await relay.next(Purpose.CONTROL, 2)
        assert any("silent" in event.detail for event in watched.events if isinstance(event, RelayStateChanged))


async def test_any_message_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.1)
    monkeypatch.setattr(module, "DEAD", 0.2)
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        with anyio.move_on_after(0.6):
            while True:
                await link.say(Demand(2))
                await anyio.sleep(0.05)
        assert watched.states == ["connecting", "online"]


@pytest.mark.parametrize("reason", sorted(FINAL))
async def test_a_final_reason_ends_it_even_later(reason: Reason) -> None:
    async with present() as (relay, watched):
        await (await relay.next(Purpose.CONTROL)).say(HopError(reason, 0, ""))
        await until(lambda: watched.failure)
        assert watched.failure
        assert watched.failure.reason is reason


@pytest.mark.parametrize("reason", [Reason.AUTH_FAILED, Reason.PROTOCOL])
async def test_what_an_impostor_could_cause_ends_it_only_at_the_first_try(reason: Reason) -> None:
    assert reason in FINAL_AT_FIRST - FINAL
    async with scripted_relay() as (relay, _):
        relay.refusal = reason, 0
        first = Watched()
        with anyio.fail_after(PATIENCE):
            await first.run(relay.known)
        assert first.failure
        assert first.failure.reason is reason
    async with present() as (relay, watched):
        relay.refusal = reason, 0
        (await relay.next(Purpose.CONTROL)).stream.reset()
        await until(lambda: watched.states.count("connecting") > 3)
        assert watched.failure is None
        relay.refusal = None
        await relay.next(Purpose.CONTROL, 2)


async def test_an_untrusted_relay_is_an_alarm() -> None:
    async with scripted_relay() as (relay, _):
        watched = Watched()
        with anyio.fail_after(PATIENCE):
            await watched.run(replace(relay.known, id=os.urandom(32)))
        assert watched.failure
        assert watched.failure.reason is Reason.RELAY_UNTRUSTED
        assert any(isinstance(event, Alarm) for event in watched.events)


async def test_a_key_that_a_flood_has_used_up_costs_the_connection_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.relay.framing.MAX_RECORDS", 5)
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        await watched.companies[0].send(Ping(bytes(8)))  # as an agent its admission list: one record more than the relay has sent
        await link.say(*(Ping(bytes(8)) for _ in range(4)))  # WELCOME was the first: each end's fifth record is its last
        await relay.next(Purpose.CONTROL, 2)
        assert watched.failure is None


async def test_the_relay_may_ask_for_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(Backoff, "after", lambda _, seconds: asked.append(seconds) or 0.0)
    async with present() as (relay, _):
        await (await relay.next(Purpose.CONTROL)).say(HopError(Reason.SHUTDOWN, 9, ""))
        await until(lambda: asked)
        assert asked[0] == 9


@pytest.mark.parametrize(("steady", "ceilings"), [(60.0, [0.5, 1.0, 2.0]), (0.0, [0.5, 0.5, 0.5])])
async def test_a_relay_that_ends_each_connection_is_met_more_and_more_seldom(
    monkeypatch: pytest.MonkeyPatch, steady: float, ceilings: list[float]
) -> None:
    met: list[float] = []

    def note(backoff: Backoff) -> float:
        met.append(backoff._ceiling)
        backoff._ceiling *= 2
        return 0.0

    monkeypatch.setattr(Backoff, "next", note)
    monkeypatch.setattr(module, "STEADY", steady)
    async with present() as (relay, _):
        for number in (1, 2, 3):
            await (await relay.next(Purpose.CONTROL, number)).stream.send_all(bytes(64))
        await until(lambda: len(met) == 3)
    assert met == ceilings


async def test_notices_about_this_device_are_shown_once_a_minute_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        notices = [RelayNotice(Reason.DUPLICATE_DEVICE, "", f"no {number}") for number in range(1000)]
        of_a_tunnel = RelayNotice(Reason.PEER_UNAVAILABLE, "abcdefgh", "of a tunnel")
        await link.say(of_a_tunnel, *notices, Demand(7))
        await until(lambda: len(watched.messages) == 2)
        monkeypatch.setattr(module, "NOTICE_INTERVAL", 0.0)
        await link.say(RelayNotice(Reason.DUPLICATE_DEVICE, "", "again"), Demand(8))
        await until(lambda: len(watched.messages) == 3)
        assert watched.messages == [of_a_tunnel, Demand(7), Demand(8)]
        assert [event.text.partition(" ")[2] for event in watched.events if isinstance(event, Notice)] == [
            "DUPLICATE_DEVICE no 0",
            "DUPLICATE_DEVICE again (999 notices before this one are not shown)",
        ]
        assert watched.states == ["connecting", "online"]


# the machine has slept, or is somewhere else now


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the network change, once for each call."""
    monkeypatch.setattr(networkwatch, "LOOK", 0.01)
    ways = count()
    way = [next(ways)]
    monkeypatch.setattr(networkwatch.NetworkWatch, "_find_way", lambda _: (str(way[0]),))

    def change() -> None:
        way[0] = next(ways)

    return change


async def test_a_pause_ends_when_the_network_changes(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    monkeypatch.setattr(Backoff, "after", lambda _, seconds: 3600.0)
    async with present() as (relay, watched):
        (await relay.next(Purpose.CONTROL)).stream.reset()
        await until(lambda: "offline" in watched.states)
        change()
        await relay.next(Purpose.CONTROL, 2)


async def test_a_try_by_the_way_that_is_gone_is_given_up(change: Callable[[], None]) -> None:
    async with scripted_relay() as (relay, tasks):
        relay.deaf = True
        watched = Watched()
        tasks.start_soon(watched.run, relay.known)
        await until(lambda: relay.streams)
        relay.deaf = False
        change()
        await relay.next(Purpose.CONTROL)
        await until(lambda: watched.companies)
        assert "offline" not in watched.states


async def test_a_connection_that_outlives_the_change_is_kept(change: Callable[[], None]) -> None:
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        await link.say(Pong((await link.hear(Ping)).nonce))
        change()
        await link.say(Pong((await link.hear(Ping)).nonce))
        await until(lambda: watched.states.count("online") == 3)  # once more for each answer
        assert "offline" not in watched.states


async def test_a_connection_that_does_not_answer_after_the_change_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]
) -> None:
    monkeypatch.setattr(module, "DOUBT", 0.1)
    async with present() as (relay, watched):
        link = await relay.next(Purpose.CONTROL)
        await link.say(Pong((await link.hear(Ping)).nonce))
        change()
        await link.hear(Ping)
        await relay.next(Purpose.CONTROL, 2)
        assert module.SILENCE < PATIENCE < module.DEAD  # so it was the doubt that ended it
        assert watched.ended == 1


async def test_a_device_pings_before_its_relay_would() -> None:
    """One question is enough, and thousands that a busy relay has answered at one moment do not ask again at one moment."""
    waits = [Presence._silence() for _ in range(1000)]
    assert module.SILENCE / 2 < min(waits) < max(waits) <= module.SILENCE < attendance.SILENCE < attendance.DEAD
    assert max(waits) - min(waits) > module.SILENCE / 10
