"""A control connection that many want to speak on: one sends, in order, and a device that does not listen is let go."""

import socket
from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest

from tests.relay.devices import Gone, Hop
from tuunel.address import HostPort
from tuunel.errors import Failure, Reason, Speaker
from tuunel.hkdf import AeadKey
from tuunel.identity import IdentityKey
from tuunel.rawstream import RawStream
from tuunel.relay import connection as module
from tuunel.relay.attendance import Attendance
from tuunel.relay.connection import ControlConnection
from tuunel.relay.protocol import HopChannel
from tuunel.relay.switchboard import Switchboard
from tuunel.relay.wire import HopError, Limits, Notice, Params, Ping, Pong, Purpose, Role, Side, Welcome

pytestmark = pytest.mark.anyio

DEVICE = IdentityKey.from_private_value(1)
WELCOME = Welcome(DEVICE.device_id, HostPort("127.0.0.1", 1), 0, Limits(1, 1, 1))
KEYS = AeadKey(bytes(32), bytes(12)), AeadKey(bytes(32), bytes(range(12)))


@pytest.fixture
async def ends() -> AsyncIterator[tuple[ControlConnection, Hop]]:
    """A welcomed control connection and the device at its other end, with little room in between."""
    pair = socket.socketpair()
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    relay_end, device_end = RawStream(pair[0]), RawStream(pair[1])
    relay = HopChannel(Side.RELAY, Purpose.CONTROL, Role.AGENT, send_key=KEYS[0], receive_key=KEYS[1])
    device = HopChannel(Side.DEVICE, Purpose.CONTROL, Role.AGENT, send_key=KEYS[1], receive_key=KEYS[0])
    device.receive_data(relay.send(WELCOME))
    device.next_event()
    control = ControlConnection(relay_end, DEVICE.device_id, DEVICE.public_bytes, Params(Role.AGENT, bytes(16)))
    control.start(relay)
    yield control, Hop(device_end, device, WELCOME)
    relay_end.close()
    device_end.close()


async def test_what_is_posted_and_what_is_answered_never_mix_on_the_wire(ends: tuple[ControlConnection, Hop]) -> None:
    control, device = ends
    notices = [Notice(Reason.OPEN_TIMEOUT, f"t{number}", "x" * 150) for number in range(100)]
    pings = [Ping(number.to_bytes(8)) for number in range(50)]
    async with anyio.create_task_group() as tasks:
        for notice in notices:
            control.post(notice)
        control.deliver_with(partial(tasks.start_soon, control.deliver))
        tasks.start_soon(lambda: control.converse(silence=60, dead=120))
        await device.send(*pings)
        await anyio.wait_all_tasks_blocked()  # the delivery has filled the socket, the pings have been read
        received = [await device.receive_any() for _ in range(150)]
        tasks.cancel_scope.cancel()
    assert [message for message in received if isinstance(message, Notice)] == notices
    assert [message for message in received if isinstance(message, Pong)] == [Pong(ping.nonce) for ping in pings]


async def test_a_device_that_lets_messages_pile_up_is_closed(ends: tuple[ControlConnection, Hop], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POSTED", 3)
    control, device = ends
    for number in range(3):
        control.post(Ping(number.to_bytes(8)))
    assert control.stream.fileno() != -1
    control.post(Ping(bytes(8)))
    assert control.stream.fileno() == -1
    with pytest.raises(Gone):
        await device.receive_any()


async def test_notices_that_pile_up_are_lost_and_cost_no_connection(
    ends: tuple[ControlConnection, Hop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partner was banned in the midst of many tunnels: the device that is told of each has done nothing wrong."""
    monkeypatch.setattr(module, "MAX_POSTED", 3)
    control, device = ends
    notices = [Notice(Reason.PEER_UNAVAILABLE, f"t{number}", "") for number in range(5)]
    for notice in notices:
        control.post(notice)
    async with anyio.create_task_group() as tasks:
        control.deliver_with(partial(tasks.start_soon, control.deliver))
        assert [await device.receive_any() for _ in range(3)] == notices[:3]
        control.post(Ping(bytes(8)))
        assert await device.receive_any() == Ping(bytes(8))
        tasks.cancel_scope.cancel()


async def test_a_device_that_takes_nothing_is_let_go(ends: tuple[ControlConnection, Hop], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_DEADLINE", 0.05)
    control, _ = ends
    for number in range(400):
        control.post(Notice(Reason.OPEN_TIMEOUT, f"t{number}", "x" * 150))
    with pytest.raises(TimeoutError):
        await control.deliver()


async def test_nothing_follows_the_last_word(ends: tuple[ControlConnection, Hop]) -> None:
    control, device = ends
    control.post(Ping(bytes(8)))
    control.dismiss(Failure(Reason.SHUTDOWN, Speaker.RELAY, retry_after=1))
    control.post(Ping(bytes(8)))
    control.dismiss(Failure(Reason.DEVICE_BANNED, Speaker.RELAY))
    await control.deliver()
    control.stream.close()
    assert await device.receive_any() == Ping(bytes(8))
    assert await device.receive_any() == HopError(Reason.SHUTDOWN, 1)
    with pytest.raises(Gone):
        await device.receive_any()


async def test_what_is_posted_as_the_device_breaks_the_rules_is_no_fault_of_the_relay(
    ends: tuple[ControlConnection, Hop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its delivery has been started, and begins when the channel is closed."""
    control, _ = ends

    async def converse(*, silence: float, dead: float) -> None:
        control.post(Ping(bytes(8)))
        control._channel.receive_data(b"\xff" * 100)
        control._channel.next_event()

    monkeypatch.setattr(control, "converse", converse)
    switchboard = Switchboard(None, lambda _: None, clock=lambda: 0.0)  # type: ignore[arg-type]
    await Attendance(switchboard).serve(control)
    assert control.over
    control.post(Ping(bytes(8)))
    await control.deliver()
