"""The relay as devices meet it: an in-process server on loopback, and small devices that speak the hop protocol."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.relay.devices import Device, Hop, connect, make_offer, make_open
from tuunel.address import HostPort
from tuunel.errors import Failure, Reason, Speaker, StateError
from tuunel.events import Alarm, ConnectionClosed, ConnectionOpened, DeviceSeen, Event, Notice, Ready
from tuunel.identity import DeviceID, IdentityKey, encode_point, verify
from tuunel.links import PLACEHOLDER_HOST, RelayLink, parse_link
from tuunel.relay import attendance, reception, registry, server, tunnels
from tuunel.relay import handshake as relay_handshake
from tuunel.relay.connection import ReadyConnection
from tuunel.relay.credentials import load_root, new_leaf
from tuunel.relay.handshake import DeviceHandshake, Register, RelayAuthenticated
from tuunel.relay.server import RelayServer
from tuunel.relay.store import StoredDevice
from tuunel.relay.wire import (
    Admission,
    Demand,
    DropToken,
    HopError,
    Mint,
    Minted,
    Open,
    PairedAgent,
    PairedForward,
    Ping,
    Pong,
    Purpose,
    Role,
    Switch,
    Unenrol,
    admission_records,
    token_hash,
    tunnel_id,
)
from tuunel.relay.wire import Notice as HopNotice
from tuunel.settings import Home

pytestmark = pytest.mark.anyio

LOOPBACK = HostPort("127.0.0.1", 0)
PATIENCE = 10.0


@dataclass
class Relay:
    """A running relay, what it said, and the devices that talk to it."""

    server: RelayServer
    events: list[Event] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)

    @property
    def link(self) -> RelayLink:
        """The relay's link, without the enrolment token."""
        admin = self.admin
        return RelayLink(admin.address, admin._relay_id)

    @property
    def admin(self) -> Any:
        return self.server._admin

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        answer: dict[str, Any] = await self.admin.handlers[command](arguments)
        return answer

    async def token(self, uses: int = 1) -> bytes:
        token = parse_link((await self.ask("link", uses=uses))["link"]).enrol
        assert token is not None
        return token

    def device(self, role: Role, **options: Any) -> Device:
        device = Device(self.link, role, **options)
        self.devices.append(device)
        return device

    async def agent(self, *paired: Device, **admission: Any) -> tuple[Device, Hop]:
        """An enrolled agent with its control connection, which admits `paired`."""
        agent = self.device(Role.AGENT)
        control = await agent.enrol(await self.token())
        await admit(control, *paired, **admission)
        return agent, control

    async def forward(self) -> Device:
        """An enrolled forward proxy, of which no connection is left."""
        forward = self.device(Role.FORWARD)
        hop = await forward.enrol(await self.token())
        hop.close()
        with anyio.fail_after(PATIENCE):
            while self.server._switchboard.registry.online(forward.id):
                await anyio.lowlevel.checkpoint()
        return forward

    def seen(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind: type[Event], condition: Callable[[Any], bool] = lambda _: True) -> Any:
        with anyio.fail_after(PATIENCE):
            while True:
                for event in self.seen(kind):
                    if condition(event):
                        return event
                await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def running(
    tmp_path: Path, *, listen: HostPort = LOOPBACK, advertise: str | None = None, open_enrolment: bool = False
) -> AsyncIterator[Relay]:
    events: list[Event] = []
    role = RelayServer(Home(tmp_path), listen=listen, advertise=advertise, open_enrolment=open_enrolment, emit=events.append)
    relay = Relay(role, events)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(role.run)
        await relay.until(Ready)
        try:
            yield relay
        finally:
            for device in relay.devices:
                device.close()
            role.stop()
    assert not relay.seen(Alarm)


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with running(tmp_path) as relay:
        yield relay


async def admit(control: Hop, *paired: Device, **fields: Any) -> None:
    await control.send(Admission(first=True, last=True, enrolled=False, paired=tuple(device.id for device in paired), **fields))
    await control.synchronise()


async def refusal(attempt: Awaitable[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        await attempt
    assert caught.value.speaker is Speaker.RELAY
    return caught.value


async def pair(forward: Device, agent: Device) -> tuple[Hop, Hop]:
    """A pipe between two devices whose connections are in place: the forward's end and the agent's."""
    ready = await agent.ready()
    dial = await forward.dial(make_open(agent.id))
    await dial.receive(PairedForward)
    await ready.receive(PairedAgent)
    await ready.send(Switch())
    return dial, ready


async def exchanged(dial: Hop, ready: Hop) -> bool:
    await dial.stream.send_all(b"ping")
    await ready.stream.send_all(b"pong")
    return (await ready.stream.receive_exactly(4), await dial.stream.receive_exactly(4)) == (b"ping", b"pong")


# -- enrolment


async def test_a_device_registers_logs_in_and_is_told_where_it_was_seen(relay: Relay) -> None:
    device = relay.device(Role.FORWARD)
    registered = await device.enrol(await relay.token(), label="laptop")
    assert registered.welcome.device_id == device.id
    assert registered.welcome.observed == registered.stream.local
    again = await device.connect(Purpose.CONTROL)
    assert again.welcome.device_id == device.id
    (listed,) = (await relay.ask("devices"))["devices"]
    assert (listed["device_id"], listed["label"], listed["online"], listed["sponsor"]) == (str(device.id), "laptop", True, "operator")


async def test_enrolment_is_closed_without_a_token(relay: Relay) -> None:
    for token in (None, bytes(16)):
        device = relay.device(Role.FORWARD)
        assert (await refusal(device.enrol(token))).reason is Reason.ENROLMENT_REQUIRED
        assert (await refusal(device.connect(Purpose.CONTROL))).reason is Reason.DEVICE_UNKNOWN


async def test_a_token_enrols_one_device_once(relay: Relay) -> None:
    token = await relay.token()
    first, second = relay.device(Role.FORWARD), relay.device(Role.FORWARD)
    await first.enrol(token)
    assert (await refusal(second.enrol(token))).reason is Reason.ENROLMENT_REQUIRED
    await first.enrol(token)  # the first answer may have been lost
    await second.enrol(await relay.token())


async def test_open_enrolment_takes_everybody(tmp_path: Path) -> None:
    async with running(tmp_path, open_enrolment=True) as relay:
        await relay.device(Role.FORWARD).enrol(None)


async def test_a_restart_keeps_every_device_and_the_relays_identity(tmp_path: Path) -> None:
    identity = IdentityKey.generate()
    async with running(tmp_path) as relay:
        link = relay.link
        await relay.device(Role.FORWARD, identity=identity).enrol(await relay.token())
    async with running(tmp_path) as relay:
        assert relay.link.pin == link.pin
        await relay.device(Role.FORWARD, identity=identity).connect(Purpose.CONTROL)


async def test_a_device_with_another_key_than_the_retained_one_is_refused(relay: Relay) -> None:
    victim = await relay.forward()
    thief = relay.device(Role.FORWARD)
    handshake = thief.handshake(Purpose.DIAL)
    handshake._claim = victim.handshake(Purpose.DIAL)._claim
    assert (await verdict(relay, handshake))[0] is Reason.DEVICE_UNKNOWN


async def test_who_cannot_prove_a_device_does_not_learn_whether_it_is_enrolled(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled, stranger = await relay.forward(), relay.device(Role.FORWARD)
    proofs: list[bytes] = []

    def note(public_key: bytes, *arguments: Any) -> None:
        proofs.append(public_key)
        verify(public_key, *arguments)

    monkeypatch.setattr(relay_handshake, "verify", note)
    answers = []
    for victim in (enrolled, stranger):
        handshake = relay.device(Role.FORWARD).handshake(Purpose.DIAL)
        handshake._claim = victim.handshake(Purpose.DIAL)._claim
        answers.append(await verdict(relay, handshake))
    assert answers[0] == answers[1]
    assert answers[0][0] is Reason.DEVICE_UNKNOWN
    assert len([key for key in proofs if key != encode_point(relay.server._reception.credentials.leaf_key.public_key())]) == 2


async def verdict(relay: Relay, handshake: DeviceHandshake) -> tuple[Reason, int, str]:
    """The relay's refusal."""
    stream = await connect(relay.link.address)
    await stream.send_all(handshake.data_to_send())
    with pytest.raises(Failure) as caught:
        while True:
            handshake.receive_data(await stream.receive())
            handshake.next_event()
            await stream.send_all(handshake.data_to_send())
    stream.close()
    return caught.value.reason, caught.value.retry_after, caught.value.detail


async def test_a_registration_of_a_key_that_somebody_else_holds_is_refused(relay: Relay) -> None:
    register = Register(await relay.token(), "a thief")
    victim, thief = relay.device(Role.FORWARD), relay.device(Role.FORWARD)
    handshake = thief.handshake(Purpose.DIAL, register=register)
    handshake._claim = victim.handshake(Purpose.DIAL, register=register)._claim
    assert (await verdict(relay, handshake))[0] is Reason.AUTH_FAILED


# -- opening


async def test_offline_unknown_and_not_admitted_get_one_and_the_same_answer(relay: Relay) -> None:
    forward = await relay.forward()
    stranger = IdentityKey.generate().device_id
    offline = await relay.forward()
    agent, control = await relay.agent()
    await agent.ready()
    dial = await forward.dial()
    answers = []
    for target in (stranger, offline.id, agent.id):
        await dial.send(make_open(target))
        answers.append(await dial.receive(HopError))
    assert set(answers) == {HopError(Reason.PEER_UNAVAILABLE)}
    await admit(control, forward)
    await dial.send(make_open(agent.id))  # the connection stayed in hop mode
    await dial.receive(PairedForward)


async def test_a_pair_learns_each_others_keys_and_is_piped_both_ways_with_half_close(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    offer, request = make_offer(), make_open(agent.id)
    ready = await agent.ready(offer)
    dial = await forward.dial(request)
    assert await dial.receive(PairedForward) == PairedForward(offer)
    assert await ready.receive(PairedAgent) == PairedAgent(forward.identity.public_bytes, request.body)
    await ready.send(Switch())
    assert await exchanged(dial, ready)
    await dial.stream.write_eof()
    assert await ready.stream.receive() == b""
    payload = bytes(range(256)) * 4096
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ready.stream.send_all, payload)
        assert await dial.stream.receive_exactly(len(payload)) == payload
    await ready.stream.write_eof()
    assert await dial.stream.receive() == b""
    ended = await relay.until(ConnectionClosed)
    assert ended.reason == "done"
    (opened,) = relay.seen(ConnectionOpened)
    assert (opened.target, opened.device) == (str(agent.id), str(forward.id))
    assert opened.traffic.up == 4
    assert opened.traffic.down == 4 + len(payload)


async def test_first_bytes_do_not_wait_for_switch_and_none_are_lost_behind_it(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    ready = await agent.ready()
    dial = await forward.dial(make_open(agent.id))
    await dial.receive(PairedForward)
    await dial.stream.send_all(b"init")
    await ready.receive(PairedAgent)
    assert ready.channel.trailing_data + await ready.stream.receive_exactly(4 - len(ready.channel.trailing_data)) == b"init"
    crossing = ready.channel.send  # a ping that crossed PAIRED would come before; SWITCH and the tunnel's bytes come in one write
    await ready.stream.send_all(crossing(Switch()) + b"accept")
    assert await dial.stream.receive_exactly(6) == b"accept"
    assert await exchanged(dial, ready)


async def test_a_ping_that_crosses_paired_is_not_answered_and_not_piped(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    ready = await agent.ready()
    ping = ready.channel.send(Ping(bytes(8)))
    dial = await forward.dial(make_open(agent.id))
    await dial.receive(PairedForward)
    await ready.stream.send_all(ping)
    await ready.receive(PairedAgent)
    await ready.send(Switch())
    assert await exchanged(dial, ready)


async def test_an_open_waits_for_the_agent_to_bring_a_connection_and_says_so(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    dial = await forward.dial(make_open(agent.id))
    assert (await control.receive(Demand)).want > 2
    ready = await agent.ready()
    await dial.receive(PairedForward)
    await ready.receive(PairedAgent)


async def test_an_open_that_waits_too_long_is_told_and_may_open_again(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "OPEN_PATIENCE", 0.05)
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    dial = await forward.dial(make_open(agent.id))
    assert (await dial.receive(HopError)).reason is Reason.OPEN_TIMEOUT
    await agent.ready()
    await dial.send(make_open(agent.id))
    await dial.receive(PairedForward)


async def test_a_forward_proxy_that_goes_while_it_waits_takes_no_connection(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    gone = await forward.dial(make_open(agent.id))
    await control.receive(Demand)
    gone.close()
    with anyio.fail_after(PATIENCE):
        while (await relay.ask("status"))["hops"] > 1:
            await anyio.lowlevel.checkpoint()
    ready = await agent.ready()
    dial = await forward.dial(make_open(agent.id))
    await dial.receive(PairedForward)
    await ready.receive(PairedAgent)


async def test_bytes_between_open_and_its_answer_end_the_connection(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    dial = await forward.dial(make_open(agent.id))
    await control.receive(Demand)
    await dial.stream.send_all(b"not yet")
    assert await dial.is_closed()


async def test_bytes_in_the_flight_of_an_open_end_the_connection_though_an_agent_waits(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    await agent.ready()
    handshake = forward.handshake(Purpose.DIAL, [make_open(agent.id)])
    stream = await connect(relay.link.address)
    await stream.send_all(handshake.data_to_send())
    while (step := handshake.next_event()) is None:
        handshake.receive_data(await stream.receive())
    assert isinstance(step, RelayAuthenticated)

    await stream.send_all(handshake.data_to_send() + b"not yet")

    with anyio.fail_after(PATIENCE), suppress(ConnectionResetError):
        while await stream.receive():
            pass
    stream.close()
    assert not relay.seen(ConnectionOpened)


async def test_a_lost_ready_connection_is_passed_over(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    lost = await agent.ready()
    kept = await agent.ready()
    lost.stream.reset()
    dial = await forward.dial(make_open(agent.id))
    await dial.receive(PairedForward)
    await kept.receive(PairedAgent)


async def test_an_open_that_is_cut_in_the_very_act_leaves_no_connection_behind(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    taken = await agent.ready()
    claim = ReadyConnection.claim

    async def claim_while_banned(ready: ReadyConnection) -> bool:
        relay.server._switchboard.cut_device(forward.id, Reason.DEVICE_BANNED)
        return await claim(ready)

    monkeypatch.setattr(ReadyConnection, "claim", claim_while_banned)
    dial = await forward.dial()
    await dial.send(make_open(agent.id))
    assert await dial.is_closed()
    assert await taken.is_closed()
    await control.synchronise()
    assert (await relay.ask("status"))["hops"] == 1


async def test_ready_connections_die_with_their_control_and_pipes_do_not(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    dial, piped = await pair(forward, agent)
    parked = await agent.ready()
    control.close()
    assert await parked.is_closed()
    assert await exchanged(dial, piped)
    late = await forward.dial(make_open(agent.id))
    assert (await late.receive(HopError)).reason is Reason.PEER_UNAVAILABLE
    orphan = await agent.ready()
    assert (await orphan.receive(HopError)).reason is Reason.PROTOCOL
    assert await orphan.is_closed()


async def test_an_open_that_waits_is_told_when_the_agent_leaves(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    dial = await forward.dial(make_open(agent.id))
    await control.receive(Demand)
    control.close()
    assert (await dial.receive(HopError)).reason is Reason.PEER_UNAVAILABLE


async def test_an_agent_that_does_not_switch_ends_the_tunnel_and_both_are_told_why(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "SWITCH_DEADLINE", 0.05)
    forward = await relay.forward()
    presence = await forward.connect(Purpose.CONTROL)
    agent, control = await relay.agent(forward)
    offer, request = make_offer(), make_open(agent.id)
    ready = await agent.ready(offer)
    dial = await forward.dial(request)
    await dial.receive(PairedForward)
    await ready.receive(PairedAgent)
    name = tunnel_id(offer[1:66], request.request.point)
    for hop in (presence, control):
        notice = await hop.receive(HopNotice)
        assert (notice.reason, notice.tunnel_id) == (Reason.OPEN_TIMEOUT, name)
    with pytest.raises(ConnectionResetError):
        await dial.stream.receive()


async def test_a_reset_on_one_side_resets_the_other(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    for number in (0, 1):
        ends = await pair(forward, agent)
        assert await exchanged(*ends)
        ends[number].stream.reset()
        with pytest.raises(ConnectionResetError):
            await ends[1 - number].stream.receive()


async def test_an_admission_list_waits_for_no_disk(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent()
    control.close()
    await relay.until(DeviceSeen, lambda event: event.what == "offline" and event.device == str(agent.id))
    async with relay.server._switchboard.store._turn:  # as if another transaction took long
        with anyio.fail_after(PATIENCE):
            await admit(await agent.connect(Purpose.CONTROL), forward)
            await pair(forward, agent)


async def test_an_invite_id_admits_a_stranger_and_admit_enrolled_admits_all(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(invites=(b"invite-1",))
    await agent.ready()
    dial = await forward.dial(make_open(agent.id))
    assert (await dial.receive(HopError)).reason is Reason.PEER_UNAVAILABLE
    await dial.send(make_open(agent.id, b"invite-1"))
    await dial.receive(PairedForward)
    await control.send(Admission(first=True, last=True, enrolled=True))
    await control.synchronise()
    await agent.ready()
    await (await forward.dial(make_open(agent.id))).receive(PairedForward)


# -- one agent per device


async def test_a_living_agent_keeps_its_place_and_both_are_told(relay: Relay) -> None:
    agent, control = await relay.agent()
    twin = relay.device(Role.AGENT, identity=agent.identity)
    failures: list[Failure] = []

    async def appear() -> None:
        failures.append(await refusal(twin.connect(Purpose.CONTROL)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(appear)
        assert (await control.receive(HopNotice)).reason is Reason.DUPLICATE_DEVICE
    assert failures[0].reason is Reason.DUPLICATE_DEVICE
    await control.synchronise()


async def test_a_silent_agent_is_evicted_and_its_connections_with_it(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "RIVAL_PATIENCE", 0.05)
    agent, silent = await relay.agent()
    parked = await agent.ready()
    twin = relay.device(Role.AGENT, identity=agent.identity)
    control = await twin.connect(Purpose.CONTROL)
    assert (await silent.receive(HopError)).reason is Reason.DUPLICATE_DEVICE
    assert await silent.is_closed()
    assert await parked.is_closed()
    assert (await control.receive(HopNotice)).reason is Reason.DUPLICATE_DEVICE  # it may be alive elsewhere: its person is told as well
    await control.synchronise()
    await twin.ready()


async def test_an_agent_whose_machine_was_switched_off_is_no_rival(relay: Relay) -> None:
    """A machine that runs again answers the relay's question to its former self by a reset: no sign of life."""
    agent, lost = await relay.agent()
    twin = relay.device(Role.AGENT, identity=agent.identity)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(twin.connect, Purpose.CONTROL)
        await lost.receive(Ping)
        lost.stream.reset()
    await twin.hops[0].synchronise()


async def test_the_same_instance_replaces_its_own_lost_connection_at_once(relay: Relay) -> None:
    agent, lost = await relay.agent()
    control = await agent.connect(Purpose.CONTROL)
    assert await lost.is_closed()
    await control.synchronise()


async def test_forward_instances_live_side_by_side(relay: Relay) -> None:
    forward = await relay.forward()
    others = [relay.device(Role.FORWARD, identity=forward.identity) for _ in range(3)]
    controls = [await other.connect(Purpose.CONTROL) for other in others]
    for control in controls:
        await control.synchronise()


# -- liveness


async def test_a_silent_control_connection_is_pinged_and_then_dropped(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "SILENCE", 0.05)
    monkeypatch.setattr(attendance, "DEAD", 0.1)
    forward = await relay.forward()
    control = await forward.connect(Purpose.CONTROL)
    assert isinstance(await control.receive_any(), Ping)
    assert await control.is_closed()
    await relay.until(DeviceSeen, lambda event: (event.device, event.what) == (str(forward.id), "offline"))


async def test_waiting_connections_are_pinged_and_kept_while_they_answer(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "PARKED_SILENCE", 0.05)
    monkeypatch.setattr(tunnels, "PARKED_DEAD", 5.0)
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    ready, dial = await agent.ready(), await forward.dial()
    for hop in (ready, dial):
        for _ in range(2):
            ping = await hop.receive_any()
            assert isinstance(ping, Ping)
            await hop.send(Pong(ping.nonce))
    await dial.send(make_open(agent.id))
    await dial.receive(PairedForward)


async def test_who_was_here_is_noted_for_all_at_once_and_when_the_relay_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction for each would keep thousands of logins waiting, and a relay that is to end."""
    monkeypatch.setattr(attendance, "NOTE_INTERVAL", 3600.0)
    said: list[str] = []
    async with running(tmp_path) as relay:
        devices = [relay.device(Role.FORWARD) for _ in range(3)]
        controls = [await device.enrol(await relay.token()) for device in devices]
        relay.server._switchboard.store._db.set_trace_callback(said.append)
        for control in controls[:2]:
            control.close()
        for device in devices[:2]:
            await relay.until(DeviceSeen, lambda event, device=device: (event.device, event.what) == (str(device.id), "offline"))
        assert said == []
    assert [statement.split()[0] for statement in said] == ["BEGIN", "UPDATE", "UPDATE", "UPDATE", "COMMIT"]


# -- ban, un-enrolment, minting


async def test_a_ban_closes_connections_and_pipes_at_once_and_the_partner_learns_only_that_it_is_gone(relay: Relay) -> None:
    forward = await relay.forward()
    presence = await forward.connect(Purpose.CONTROL)
    agent, control = await relay.agent(forward)
    dial, piped = await pair(forward, agent)
    idle = await forward.dial()
    answer = await relay.ask("revoke", device=str(forward.id))
    assert answer == {"revoked": str(forward.id), "cut": 3}
    assert (await presence.receive(HopError)).reason is Reason.DEVICE_BANNED
    assert (await control.receive(HopNotice)).reason is Reason.PEER_UNAVAILABLE
    for hop in (dial, piped):
        with pytest.raises(ConnectionResetError):
            await hop.stream.receive()
    assert await idle.is_closed()
    assert (await refusal(forward.connect(Purpose.CONTROL))).reason is Reason.DEVICE_BANNED
    assert (await refusal(forward.enrol(await relay.token()))).reason is Reason.DEVICE_BANNED
    await control.synchronise()


async def test_a_banned_agent_is_offline(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    parked = await agent.ready()
    await relay.ask("revoke", device=agent.id.compact)
    assert (await control.receive(HopError)).reason is Reason.DEVICE_BANNED
    assert await parked.is_closed()
    dial = await forward.dial(make_open(agent.id))
    assert (await dial.receive(HopError)).reason is Reason.PEER_UNAVAILABLE


async def test_an_agent_mints_a_token_for_its_invite_and_drops_it(relay: Relay) -> None:
    _, control = await relay.agent()
    tokens = [bytes([number]) * 16 for number in (1, 2)]
    for number, token in enumerate(tokens):
        await control.send(Mint(number, token_hash(token), b"invite-1", 1, 2_000_000_000 if number else relay_time(control) + 900))
    assert await control.receive(Minted) == Minted(0)
    assert (await control.receive(Minted)).reason is Reason.QUOTA
    laptop = relay.device(Role.FORWARD)
    await laptop.enrol(tokens[0])
    await control.send(Mint(3, token_hash(tokens[1]), b"invite-2", 1, relay_time(control) + 900))
    assert await control.receive(Minted) == Minted(3)
    await control.send(DropToken(token_hash(tokens[1])))
    await control.synchronise()
    assert (await refusal(relay.device(Role.FORWARD).enrol(tokens[1]))).reason is Reason.ENROLMENT_REQUIRED


async def test_what_an_agents_token_enrolled_ends_when_the_agent_takes_it_back(relay: Relay) -> None:
    agent, control = await relay.agent()
    await control.send(Mint(1, token_hash(bytes(16)), b"invite-1", 1, relay_time(control) + 900))
    await control.receive(Minted)
    laptop = relay.device(Role.FORWARD)
    presence = await laptop.enrol(bytes(16))
    independent = await relay.forward()
    for device in (laptop, independent):
        await control.send(Unenrol(device.id))
    assert (await presence.receive(HopError)).reason is Reason.DEVICE_UNKNOWN
    await control.synchronise()
    assert (await refusal(laptop.connect(Purpose.CONTROL))).reason is Reason.DEVICE_UNKNOWN
    await independent.connect(Purpose.CONTROL)
    assert agent.id != laptop.id


def relay_time(hop: Hop) -> int:
    return hop.welcome.relay_time


# -- strangers


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", b"\x16\x03\x01" + bytes(600), b"TNL1\xff\xff", b"TNL1\x00\x00", bytes(5000)]
)
async def test_garbage_is_closed_without_a_word(relay: Relay, garbage: bytes) -> None:
    assert await everything_said_to(relay, garbage) == b""


async def everything_said_to(relay: Relay, words: bytes) -> bytes:
    """What the relay answers before it closes."""
    stream = await connect(relay.link.address)
    said = b""
    with anyio.fail_after(PATIENCE), suppress(ConnectionResetError):  # closed with our bytes unread
        await stream.send_all(words)
        while data := await stream.receive():
            said += data
    stream.close()
    return said


@pytest.mark.parametrize("stage", ["M1", "M3"])
async def test_slow_handshakes_time_out(relay: Relay, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(reception, "HELLO_DEADLINE", 0.1 if stage == "M1" else PATIENCE)
    monkeypatch.setattr(reception, "DEVICE_AUTH_DEADLINE", 0.1)
    hello = relay.device(Role.FORWARD).handshake(Purpose.DIAL).data_to_send()
    said = await everything_said_to(relay, hello if stage == "M3" else hello[:-1])
    assert bool(said) == (stage == "M3")


async def test_a_version_that_does_not_fit_is_told(relay: Relay) -> None:
    hello = bytearray(relay.device(Role.FORWARD).handshake(Purpose.DIAL).data_to_send())
    hello[6:8] = b"\x07\x09"
    assert await everything_said_to(relay, bytes(hello)) == b"\x00\x03\x00\x01\x01"


async def test_a_flood_that_proves_nothing_is_closed_at_the_door(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = relay.server._reception._gate
    monkeypatch.setattr(gate._buckets, "_burst", 2)
    monkeypatch.setattr(gate._buckets, "_rate", 0.0)
    hello = relay.device(Role.FORWARD).handshake(Purpose.DIAL).data_to_send()
    monkeypatch.setattr(reception, "DEVICE_AUTH_DEADLINE", 0.05)
    answered = [bool(await everything_said_to(relay, hello)) for _ in range(3)]
    assert answered == [True, True, False]
    assert gate.unproven == 0


async def test_a_device_above_its_rate_runs_dry_at_the_door(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = await relay.forward()
    monkeypatch.setattr(relay.server._switchboard.registry._requests, "_burst", 0)
    buckets = relay.server._reception._gate._buckets
    monkeypatch.setattr(buckets, "_burst", 2)
    monkeypatch.setattr(buckets, "_rate", 0.0)
    for _ in range(2):
        assert (await refusal(forward.dial())).reason is Reason.RATE_LIMITED
    hello = forward.handshake(Purpose.DIAL).data_to_send()
    assert await everything_said_to(relay, hello) == b""  # nothing was computed for it


async def test_a_device_above_its_rate_loses_its_control_connection_and_the_registry_is_not_asked(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, control = await relay.agent()
    minted: list[object] = []
    monkeypatch.setattr(relay.server._switchboard.store, "mint", lambda *arguments, **_: minted.append(arguments))
    monkeypatch.setattr(relay.server._switchboard.registry._requests, "_burst", 0)
    await control.send(Mint(1, bytes(32), b"invite-1", 1, 1))
    assert (await control.receive(HopError)).reason is Reason.RATE_LIMITED
    assert not minted


# -- links, start and end


async def test_a_link_is_made_at_start_only_while_no_device_is_enrolled(tmp_path: Path) -> None:
    async with running(tmp_path) as relay:
        (ready,) = relay.seen(Ready)
        link = parse_link(ready.link)
        assert ready.listen == str(link.address)
        assert link.pin == relay.link.pin
        await relay.device(Role.AGENT).enrol(link.enrol)
    async with running(tmp_path) as relay:
        (ready,) = relay.seen(Ready)
        assert ready.link is None


@pytest.mark.parametrize(
    ("advertise", "address"),
    [
        ("relay.example.net", HostPort("relay.example.net", 0)),
        ("relay.example.net:443", HostPort("relay.example.net", 443)),
        (None, LOOPBACK),
    ],
)
async def test_links_carry_the_advertised_name(tmp_path: Path, advertise: str | None, address: HostPort) -> None:
    async with running(tmp_path, advertise=advertise) as relay:
        port = HostPort.parse(relay.seen(Ready)[0].listen).port
        assert relay.admin.address == HostPort(address.host, address.port or port)


async def test_a_relay_without_a_public_address_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FAR_AWAY", (HostPort("127.0.0.1", 9),))
    async with running(tmp_path, listen=HostPort("0.0.0.0", 0)) as relay:
        assert relay.admin.address.host == PLACEHOLDER_HOST
        assert any("--advertise" in notice.text for notice in relay.seen(Notice))


async def test_a_relay_that_lost_its_root_but_not_its_devices_refuses_to_start(tmp_path: Path) -> None:
    async with running(tmp_path) as relay:
        await relay.device(Role.AGENT).enrol(await relay.token())
    Home(tmp_path).relay_dir.joinpath("root.pem").unlink()
    role = RelayServer(Home(tmp_path), listen=LOOPBACK, advertise=None, open_enrolment=False, emit=lambda _: None)
    with pytest.raises(StateError, match=r"root\.pem is missing"):
        await role.run()


async def test_the_leaf_is_renewed_while_running_and_devices_do_not_notice(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = load_root(Home(tmp_path).relay_dir / "root.pem")
    assert root is not None
    old = new_leaf(root, 1_000_000)
    relay.server._reception.credentials = old
    monkeypatch.setattr(server, "RENEWAL_INTERVAL", 0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.server._renew_leaf, root)
        with anyio.fail_after(PATIENCE):
            while relay.server._reception.credentials is old:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    await relay.device(Role.FORWARD).enrol(await relay.token())


async def test_shutdown_tells_every_device_and_lets_pipes_finish(tmp_path: Path) -> None:
    async with running(tmp_path) as relay:
        forward = await relay.forward()
        agent, control = await relay.agent(forward)
        dial, piped = await pair(forward, agent)
        parked = await agent.ready()
        waiting = await forward.dial()
        relay.server.stop()
        goodbye = await control.receive(HopError)
        assert goodbye.reason is Reason.SHUTDOWN
        assert goodbye.retry_after > 0
        assert await control.is_closed()
        assert await parked.is_closed()
        assert await waiting.is_closed()
        assert await exchanged(dial, piped)
        with pytest.raises(OSError):
            await connect(relay.link.address)


async def test_status_shows_tunnels_and_nothing_of_what_they_carry(relay: Relay) -> None:
    forward = await relay.forward()
    agent, _ = await relay.agent(forward)
    dial, piped = await pair(forward, agent)
    assert await exchanged(dial, piped)
    (tunnel,) = (await relay.ask("connections"))["connections"]
    assert (tunnel["device"], tunnel["target"]) == (str(forward.id), str(agent.id))
    status = await relay.ask("status")
    assert {(each["device_id"], each["tunnels"], each["agent"]) for each in status["devices"]} == {
        (str(forward.id), 1, False),
        (str(agent.id), 1, True),
    }
    assert status["connections"]["open"] == 1


async def test_one_device_cannot_use_up_the_relay(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_CONNECTIONS", 2)
    forward = await relay.forward()
    for _ in range(2):
        await forward.dial()
    assert (await refusal(forward.dial())).reason is Reason.QUOTA
    await (await relay.forward()).dial()


async def test_a_dial_connection_that_does_not_speak_the_protocol_is_closed(relay: Relay) -> None:
    forward = await relay.forward()
    dial = await forward.dial()
    await dial.stream.send_all(b"\x00\x20" + bytes(32))
    assert await dial.is_closed()
    cut_short = await forward.dial(Open(make_open(forward.id).body[:-1]))
    assert await cut_short.is_closed()


async def test_registering_on_every_kind_of_connection_works(relay: Relay) -> None:
    device = relay.device(Role.FORWARD)
    hop = await device.connect(Purpose.DIAL, register=Register(await relay.token(), "one shot"))
    await hop.synchronise()


# -- what must not go wrong


async def test_who_is_banned_while_he_logs_in_does_not_slip_in(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = await relay.forward()
    store = relay.server._switchboard.store
    look_up = store.device

    async def look_up_just_before_the_ban(device: DeviceID) -> StoredDevice | None:
        found = await look_up(device)
        monkeypatch.setattr(store, "device", look_up)
        await relay.ask("revoke", device=str(device))
        return found

    monkeypatch.setattr(store, "device", look_up_just_before_the_ban)
    assert (await refusal(forward.dial())).reason is Reason.DEVICE_BANNED


async def test_a_registry_that_cannot_be_written_refuses_the_device_and_alarms_the_operator(relay: Relay) -> None:
    store = relay.server._switchboard.store
    token = await relay.token()
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(Failure) as refused:
        await relay.device(Role.FORWARD).enrol(token)
    assert refused.value.reason is Reason.INTERNAL
    assert "devices.db" in (await relay.until(Alarm)).text
    store._db.execute("PRAGMA query_only = OFF")
    await relay.device(Role.FORWARD).enrol(token)
    relay.events.clear()


async def test_a_fault_of_ours_ends_one_connection_and_not_the_relay(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = await relay.forward()

    async def fail(_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(relay.server._tunnels, "serve_dial", fail)
        assert await (await forward.dial()).is_closed()
    assert "report" in (await relay.until(Alarm)).text
    relay.events.clear()
    await (await forward.dial()).synchronise()


async def test_a_long_admission_list_comes_in_several_records(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent()
    others = [DeviceID.from_public_key(b"\x04" + number.to_bytes(64)) for number in range(600)]
    await control.send(*admission_records(enrolled=False, paired=[*others, forward.id], invites=(), revoked=()))
    await control.synchronise()
    await agent.ready()
    await (await forward.dial(make_open(agent.id))).receive(PairedForward)


async def test_many_opens_at_once_are_all_served_by_an_agent_that_follows_demand(relay: Relay) -> None:
    forward = await relay.forward()
    agent, control = await relay.agent(forward)
    pairs = 100

    async def open_one() -> None:
        dial = await forward.dial(make_open(agent.id))
        await dial.receive(PairedForward)
        await dial.stream.send_all(b"x")

    async def serve_one() -> None:
        ready = await agent.ready()
        await ready.receive(PairedAgent)
        await ready.send(Switch())
        assert (ready.channel.trailing_data or await ready.stream.receive()) == b"x"

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(pairs):
                tasks.start_soon(open_one)
                tasks.start_soon(serve_one)
    assert (await relay.ask("status"))["connections"]["open"] == pairs
    await control.synchronise()
