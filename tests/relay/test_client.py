"""A device's connection to a relay: both proven, what goes wrong told by its reason, nothing left open."""

import os
from contextlib import suppress
from dataclasses import replace

import anyio
import pytest

from tests.relay.scripted import IDENTITY, ScriptedRelay, scripted_relay
from tests.world import LOOPBACK, open_descriptors
from tuunel.address import HostPort
from tuunel.devices import KnownRelay
from tuunel.errors import Failure, Reason, Speaker
from tuunel.listen import address_of, open_listeners
from tuunel.relay import client as module
from tuunel.relay import framing
from tuunel.relay.client import HopConnection, connect
from tuunel.relay.handshake import Register
from tuunel.relay.wire import Admission, HopError, Params, Ping, Pong, Purpose, Role, encode_message

pytestmark = pytest.mark.anyio

PARAMS = Params(Role.FORWARD, bytes(16))
NONCE = b"12345678"


async def dial(relay: KnownRelay, *first: Ping, register: Register | None = None) -> HopConnection:
    return await connect(relay, IDENTITY, purpose=Purpose.CONTROL, params=PARAMS, register=register, first=first)


async def failure_of(relay: KnownRelay) -> Failure:
    with pytest.raises(Failure) as caught:
        await dial(relay)
    return caught.value


async def test_what_goes_first_needs_no_round_trip_of_its_own() -> None:
    async with scripted_relay() as (relay, _):
        connection = await dial(relay.known, Ping(NONCE))
        link = await relay.next(Purpose.CONTROL)
        assert (link.device.kind, link.device.device_id) == (link.device.kind.LOGIN, IDENTITY.device_id)
        assert await link.hear(Ping) == Ping(NONCE)
        await link.say(Pong(NONCE))
        assert await connection.receive() == Pong(NONCE)
        connection.close()
        connection.close()


async def test_registration_carries_the_token() -> None:
    async with scripted_relay() as (relay, _):
        connection = await dial(relay.known, register=Register(bytes(range(16)), "a laptop"))
        link = await relay.next(Purpose.CONTROL)
        assert (link.device.token, link.device.label) == (bytes(range(16)), "a laptop")
        connection.close()


async def test_a_connection_whose_key_is_used_up_is_told_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_relay() as (relay, _):
        connection = await dial(relay.known)
        monkeypatch.setattr(framing, "MAX_RECORDS", 1)
        await connection.send(Ping(NONCE))
        with pytest.raises(Failure) as caught:
            await connection.send(Ping(NONCE))
        assert caught.value.reason is Reason.RELAY_UNREACHABLE
        connection.close()


async def test_another_relay_at_the_address_is_not_trusted() -> None:
    async with scripted_relay() as (relay, _):
        failure = await failure_of(replace(relay.known, id=os.urandom(32)))
        assert failure.reason is Reason.RELAY_UNTRUSTED


async def test_a_refusal_is_the_relays_word() -> None:
    async with scripted_relay() as (relay, _):
        relay.refusal = Reason.RATE_LIMITED, 7
        failure = await failure_of(relay.known)
        assert (failure.reason, failure.speaker, failure.retry_after) == (Reason.RATE_LIMITED, Speaker.RELAY, 7)


async def test_nobody_there() -> None:
    (listener,) = await open_listeners(LOOPBACK)
    address = address_of(listener)
    listener.close()
    assert (await failure_of(KnownRelay(bytes(32), address, True))).reason is Reason.RELAY_UNREACHABLE
    unknown = KnownRelay(bytes(32), HostPort("relay.invalid", 1), True)
    assert (await failure_of(unknown)).reason is Reason.RELAY_UNREACHABLE


async def test_a_relay_that_says_nothing_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.05)
    async with scripted_relay() as (relay, _):
        relay.deaf = True
        assert (await failure_of(relay.known)).reason is Reason.RELAY_UNREACHABLE


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(1000), os.urandom(1000)], ids=["end", "http", "zeros", "noise"]
)
async def test_what_is_no_relay_fails_with_a_reason(answer: bytes) -> None:
    async with scripted_relay() as (relay, _):

        async def speak(self: ScriptedRelay = relay) -> None:
            while not self.streams:
                await anyio.lowlevel.checkpoint()
            await self.streams[0].send_all(answer)
            await self.streams[0].write_eof()

        relay.deaf = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak)
            failure = await failure_of(relay.known)
        if answer:
            assert failure.reason in {Reason.PROTOCOL, Reason.RELAY_UNTRUSTED, Reason.VERSION}
        else:  # it may be starting, or full: an agent must try again
            assert failure.reason is Reason.RELAY_UNREACHABLE


async def test_a_connection_that_ends_or_breaks_or_is_closed_here_is_told_as_lost() -> None:
    async with scripted_relay() as (relay, _):
        for number, how in enumerate(["end", "reset", "here"], 1):
            connection = await dial(relay.known)
            link = await relay.next(Purpose.CONTROL, number)
            if how == "end":
                await link.stream.write_eof()
            elif how == "reset":
                link.stream.reset()
            else:
                connection.close()
            with pytest.raises(Failure) as caught:
                await connection.receive()
            assert caught.value.reason is Reason.RELAY_UNREACHABLE
            if how != "end":
                with pytest.raises(Failure):
                    await connection.send(Ping(NONCE))
            connection.close()


@pytest.mark.parametrize("last", [encode_message(HopError(Reason.SHUTDOWN, 1, "")), b"nonsense"], ids=["an error", "a breach"])
async def test_what_is_sent_behind_the_relays_last_word_is_told_as_lost(last: bytes) -> None:
    async with scripted_relay() as (relay, _):
        connection = await dial(relay.known)
        link = await relay.next(Purpose.CONTROL)
        await link.stream.send_all(link.channel._sealer.seal(last))
        with suppress(Failure):
            assert isinstance(await connection.receive(), HopError)
        with pytest.raises(Failure) as caught:
            await connection.send(Ping(NONCE))
        assert caught.value.reason is Reason.RELAY_UNREACHABLE
        connection.close()


async def test_garbage_behind_the_handshake_is_a_protocol_error() -> None:
    async with scripted_relay() as (relay, _):
        connection = await dial(relay.known)
        await (await relay.next(Purpose.CONTROL)).stream.send_all(bytes(100))
        with pytest.raises(Failure) as caught:
            await connection.receive()
        assert caught.value.reason is Reason.PROTOCOL
        connection.close()


async def test_cancelling_a_receive_loses_nothing() -> None:
    async with scripted_relay() as (relay, _):
        connection = await dial(relay.known)
        link = await relay.next(Purpose.CONTROL)
        record = link.channel.send(Ping(NONCE))
        for part in (record[:5], record[5:]):
            with anyio.move_on_after(0.02):
                await connection.receive()
            await link.stream.send_all(part)
        assert await connection.receive() == Ping(NONCE)
        connection.close()


async def test_cancelling_the_handshake_leaves_nothing_open() -> None:
    async with scripted_relay() as (relay, _):
        relay.deaf = True
        before = open_descriptors()
        with anyio.move_on_after(0.05):
            await dial(relay.known)
        for stream in relay.streams:
            stream.close()
        assert open_descriptors() == before


async def test_a_relay_that_takes_nothing_holds_up_nobody_who_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT", 0.3)
    async with scripted_relay() as (relay, _):
        connection = await connect(relay.known, IDENTITY, purpose=Purpose.CONTROL, params=Params(Role.AGENT, bytes(16)))
        await relay.next(Purpose.CONTROL)
        invites = tuple(number.to_bytes(8) for number in range(256))
        flood = [Admission(first=True, last=True, enrolled=False, invites=invites)] * 4000
        with pytest.raises(Failure, match="took nothing") as caught:
            await connection.send(*flood)
        assert caught.value.reason is Reason.RELAY_UNREACHABLE
        with pytest.raises(Failure):  # and the connection is over for everybody
            await connection.receive()
