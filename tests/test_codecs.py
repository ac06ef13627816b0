"""Every layout of every protocol, with values that nobody chose: what is written is read, and no byte can be changed unseen.

The layouts of structs are found by looking at all of them, so that none can be forgotten.
"""

import json
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.wires import Wire
from tests.relay.hops import AGENT, IDENTITY, cut
from tests.relay.hops import channels as hop_channels
from tests.test_httpproxy import door as http_door
from tuunel import control
from tuunel.address import HostPort
from tuunel.e2e import flows, params, service
from tuunel.e2e import wire as e2e
from tuunel.errors import Reason, RemoteProtocolError
from tuunel.frontdoor import Refused, Request
from tuunel.identity import DeviceID
from tuunel.links import Invite, RelayLink, parse_invite, parse_link
from tuunel.relay import fields, handshake_wire
from tuunel.relay import wire as hop
from tuunel.relay.handshake_wire import DeviceClaim, Registration
from tuunel.relay.protocol import State, may_carry
from tuunel.socks import udp
from tuunel.socks import wire as socks
from tuunel.socks.protocol import Socks4Door, Socks5Door

DEVICES = st.sampled_from([AGENT.device_id, IDENTITY.device_id])
GRAPHIC = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=255)


def all_structs(base: type[fields.Struct] = fields.Struct) -> list[type[fields.Struct]]:
    found = [kind for child in base.__subclasses__() for kind in [child, *all_structs(child)]]
    ours = {id(kind) for module in (e2e, flows, service, hop, handshake_wire) for kind in vars(module).values()}
    # with slots=True the class that the decorator replaced is still somebody's subclass
    return [kind for kind in found if id(kind) in ours and kind not in (e2e.Padded, fields.Struct)]


def values(field: Any) -> st.SearchStrategy[Any]:
    """Any value that a field can hold."""
    simple: dict[type, st.SearchStrategy[Any]] = {
        fields.DeviceIDField: DEVICES,
        fields.HostPortField: st.builds(HostPort, st.text(st.characters(codec="utf-8"), max_size=60), st.integers(0, 65535)),
        fields.ReasonField: st.sampled_from(sorted(fields.HOP_CODES)),
        fields.OutcomeField: st.none() | st.sampled_from(sorted(fields.HOP_CODES)),
        fields.FlagField: st.booleans(),
        e2e.ReasonField: st.sampled_from(sorted(e2e.REASON_CODES)),
        e2e.OptionalReasonField: st.none() | st.sampled_from(sorted(e2e.REASON_CODES)),
        e2e.HostField: GRAPHIC,
        params.ParamsField: st.builds(
            params.Parameters, st.text(st.characters(codec="utf-8"), max_size=16), st.frozensets(st.integers(0, 255), max_size=20)
        ),
        e2e.InviteField: st.none() | st.builds(e2e.InviteProof, st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32)),
    }
    if type(field) in simple:
        return simple[type(field)]
    match field:
        case fields.Integer(length):
            return st.integers(0, 256**length - 1)
        case fields.Raw(length):
            return st.binary(min_size=length, max_size=length) if length < 100 else st.integers(0, 255).map(lambda n: bytes([n]) * length)
        case fields.Rest(ceiling) | fields.Prefixed(_, ceiling):
            return st.binary(max_size=min(ceiling, 300))
        case fields.Text(ceiling):
            return st.text(st.characters(codec="utf-8"), max_size=ceiling // 4)
        case fields.Enumeration(kind):
            return st.sampled_from(list(kind))
        case fields.ListOf(item, ceiling):
            return st.lists(values(item), max_size=min(ceiling, 5)).map(tuple)
        case fields.Nested(struct):
            return structs(struct)
    raise AssertionError(f"no values for {field}")


OPENS = st.builds(
    lambda device, point, invite: hop.OpenRequest(hop.VERSION, 1 if invite else 0, device, point, invite),
    DEVICES,
    st.binary(min_size=65, max_size=65),
    st.just(b"") | st.binary(min_size=8, max_size=8),
)
TARGETS = (
    st.builds(e2e.Target, st.just(e2e.Command.TCP), GRAPHIC, st.integers(0, 65535))
    | st.just(e2e.Target(e2e.Command.UDP, "", 0))
    | GRAPHIC.map(lambda path: e2e.Target(e2e.Command.UNIX, f"/{path[:106]}", 0))
    | GRAPHIC.filter(bool).map(lambda name: e2e.Target(e2e.Command.SERVICE, name, 0))
)
#: Those whose fields depend on each other.
SPECIAL: Mapping[type[fields.Struct], st.SearchStrategy[Any]] = {
    hop.OpenRequest: OPENS,
    hop.Open: OPENS.map(lambda request: hop.Open(request.encode())),
    hop.Offer: st.binary(min_size=66, max_size=300).map(hop.Offer),
    e2e.Target: TARGETS,
}


def structs(kind: type[fields.Struct]) -> st.SearchStrategy[Any]:
    if kind in SPECIAL:
        return SPECIAL[kind]
    changes = {"version": st.just(e2e.VERSION)} if kind is e2e.Offer else {}
    return st.builds(kind, **{name: values(field) for name, field in kind._layout} | changes)


STRUCTS = sorted(all_structs(), key=lambda kind: (kind.__module__, kind.__name__))
EVERY_STRUCT = pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")


def test_every_message_is_looked_at() -> None:
    assert set(hop.MESSAGE_TYPES.values()) <= set(STRUCTS)
    assert {e2e.Offer, e2e.Init, e2e.Accept, e2e.Target, e2e.Connected, e2e.Error, e2e.Reset} <= set(STRUCTS)
    assert {service.Measure, service.RelayRtt, service.Taken} <= set(STRUCTS)
    assert {flows.FlowOpen, flows.FlowOpened, flows.FlowClose, handshake_wire.Hello, handshake_wire.RelayClaim} <= set(STRUCTS)


@EVERY_STRUCT
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_what_is_written_is_read(kind: type[fields.Struct], data: st.DataObject) -> None:
    value = data.draw(structs(kind))
    assert kind.decode(value.encode()) == value


@EVERY_STRUCT
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_changed_byte_is_refused_or_says_something_else(kind: type[fields.Struct], data: st.DataObject) -> None:
    value = data.draw(structs(kind))
    spoilt = bytearray(value.encode())
    if not spoilt:
        return
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = kind.decode(bytes(spoilt))
    except RemoteProtocolError:
        return
    if kind in (e2e.Init, e2e.Accept):  # they may hold parameters of a later version, which are skipped
        return
    assert read != value
    assert read.encode() == spoilt


@EVERY_STRUCT
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_a_cut_is_refused_or_says_something_else(kind: type[fields.Struct], data: st.DataObject) -> None:
    value = data.draw(structs(kind))
    whole = value.encode()
    if not whole:
        return
    try:
        read = kind.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    except RemoteProtocolError:
        return
    assert read != value


@given(
    st.sampled_from(list(hop.Purpose)),
    st.sampled_from(list(hop.Role)),
    DEVICES,
    st.none() | st.builds(Registration, st.just(AGENT.public_bytes), st.sampled_from([b"", b"t" * 16]), st.text(max_size=16)),
    st.binary(min_size=16, max_size=16),
)
def test_a_devices_claim_is_read_as_it_was_written(
    purpose: hop.Purpose, role: hop.Role, device: DeviceID, registration: Registration | None, instance: bytes
) -> None:
    claim = DeviceClaim(purpose, device, registration, hop.Params(role, instance))
    if may_carry(purpose, role):
        assert DeviceClaim.read(fields.Reader(claim.encode())) == claim
    else:
        with pytest.raises(RemoteProtocolError):
            DeviceClaim.read(fields.Reader(claim.encode()))


# hop records


@given(st.integers(0, 8 * 28 - 1), st.lists(st.integers(0, 80), max_size=5))
@settings(deadline=None)
def test_any_flipped_bit_of_a_hop_record_closes_the_channel(bit: int, points: list[int]) -> None:
    device, relay = hop_channels(hop.Purpose.CONTROL)
    record = bytearray(device.send(hop.Ping(b"12345678")))
    record[bit // 8 % len(record)] ^= 1 << bit % 8
    said = []
    try:
        for piece in cut(bytes(record) + device.send(hop.Ping(b"87654321")), points):
            relay.receive_data(piece)
            while (message := relay.next_event()) is not None:
                said.append(message)
    except RemoteProtocolError:
        assert relay.state is State.CLOSED
    assert not said


# links


@given(
    st.sampled_from(["relay.example.net", "192.0.2.1", "2001:db8::1", "xn--hu-eka.example"]),
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
    st.none() | st.binary(min_size=16, max_size=16),
    DEVICES,
    st.binary(min_size=16, max_size=16),
)
def test_links_and_invites_are_read_as_they_were_written(
    host: str, port: int, pin: bytes, enrol: bytes | None, device: DeviceID, secret: bytes
) -> None:
    link = RelayLink(HostPort(host, port), pin, enrol)
    invite = Invite(link, device, secret)
    assert parse_link(str(link)) == link
    assert parse_invite(str(invite)) == invite


# SOCKS

NAMES = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=255)
SOCKS_HOSTS = (
    st.ip_addresses(v=4).map(lambda ip: (str(ip), b"\x01" + ip.packed))
    | st.ip_addresses(v=6).map(lambda ip: (str(ip), b"\x04" + ip.packed))
    | NAMES.map(lambda name: (name, b"\x03" + bytes([len(name)]) + name.encode()))
)


@given(st.integers(0, 255), SOCKS_HOSTS, st.integers(0, 65535), st.binary(max_size=20))
def test_a_socks5_request_says_what_the_client_meant(command: int, host: tuple[str, bytes], port: int, behind: bytes) -> None:
    request = bytes([5, command, 0]) + host[1] + port.to_bytes(2)
    assert socks.read_socks5_request(request + behind) == (socks.Socks5Request(command, host[0], port), len(request))


@given(st.binary(max_size=255).filter(lambda user: b"\0" not in user), NAMES, st.integers(0, 65535), st.binary(max_size=20))
def test_a_socks4a_request_says_what_the_client_meant(user: bytes, name: str, port: int, behind: bytes) -> None:
    request = b"\x04\x01" + port.to_bytes(2) + b"\0\0\0\x01" + user + b"\0" + name.encode() + b"\0"
    assert socks.read_socks4_request(request + behind) == (socks.Socks4Request(1, name, port), len(request))


@given(st.binary(max_size=255), st.binary(max_size=255), st.binary(max_size=255), st.binary(max_size=20))
def test_greeting_and_password_are_what_the_client_sent(methods: bytes, user: bytes, password: bytes, behind: bytes) -> None:
    greeting = bytes([5, len(methods)]) + methods
    assert socks.read_methods(greeting + behind) == (methods, len(greeting))
    secret = bytes([1, len(user)]) + user + bytes([len(password)]) + password
    assert socks.read_password(secret + behind) == ((user, password), len(secret))


@given(st.data())
def test_a_changed_byte_of_a_socks_request_is_asked_refused_or_waited_for(data: st.DataObject) -> None:
    five = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x0bhome.tuunel\x00\x16"
    for door, whole in ((Socks5Door(), five), (Socks4Door(), b"\x04\x01\x00\x16\x00\x00\x00\x01me\x00home.tuunel\x00")):
        spoilt = bytearray(whole)
        spoilt[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        door.receive_data(bytes(spoilt))
        event = door.next_event()
        assert event is None or isinstance(event, Request | Refused) or type(event).__name__ == "AssociateRequest"
        if isinstance(event, Refused):
            assert door.data_to_send() or event.reason


@given(st.text(st.sampled_from("abcxyz0189-"), max_size=60),
       st.integers(1, 65535), st.binary(max_size=100))  # fmt: skip
def test_a_datagram_for_a_name_is_header_and_payload(name: str, port: int, payload: bytes) -> None:
    name = f"x{name}x.tuunel"
    header = b"\0\0\0\x03" + bytes([len(name)]) + name.encode() + port.to_bytes(2)
    assert udp.read_datagram(header + payload) == udp.Datagram(header, HostPort(name, port), payload)


# HTTP


@pytest.mark.parametrize(
    "whole",
    [b"CONNECT home.tuunel:22 HTTP/1.1\r\nHost: home.tuunel:22\r\n\r\n", b"GET http://home.tuunel/x HTTP/1.1\r\nHost: home.tuunel\r\n\r\n"],
)
@given(data=st.data())
def test_a_changed_byte_of_a_http_request_is_asked_refused_or_waited_for(whole: bytes, data: st.DataObject) -> None:
    spoilt = bytearray(whole)
    spoilt[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    door = http_door()
    door.receive_data(bytes(spoilt))
    event = door.next_event()
    if isinstance(event, Refused):
        assert event.reason in set(Reason)
        assert door.data_to_send().startswith(b"HTTP/1.1 ")


# the control socket


async def _heard(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"heard": dict(request)}


def answers_to(backend: str, pieces: list[bytes]) -> list[Any]:
    """What a role answers to a client that says this and ends."""

    async def converse() -> bytes:
        wire = Wire("client", "role", immediate=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(control._answer_requests, wire.far, {"hear": _heard})
            for piece in pieces:
                await wire.near.send_all(piece)
                await anyio.wait_all_tasks_blocked()
            await wire.near.write_eof()
        await wire.far.write_eof()
        answer = b""
        while data := await wire.near.receive():
            answer += data
        return answer

    return [json.loads(line) for line in anyio.run(converse, backend=backend).splitlines()]


BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
REQUESTS = st.dictionaries(st.text(max_size=10).filter(lambda key: key != "command"), JSON, max_size=4)


@BACKENDS
@given(requests=st.lists(REQUESTS, min_size=1, max_size=3), points=st.lists(st.integers(0, 400), max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_control_line_is_heard_in_any_pieces(backend: str, requests: list[dict[str, Any]], points: list[int]) -> None:
    said = [{"command": "hear", **request} for request in requests]
    wire = b"".join(json.dumps(request).encode() + b"\n" for request in said)
    assert answers_to(backend, list(cut(wire, points))) == [{"ok": True, "heard": request} for request in said]


@BACKENDS
@given(said=REQUESTS, data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_control_line_with_a_changed_byte_is_answered(backend: str, said: dict[str, Any], data: st.DataObject) -> None:
    line = bytearray(json.dumps({"command": "hear", **said}).encode())
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    answers = answers_to(backend, [bytes(line) + b"\n"])
    assert len(answers) == line.count(b"\n") + 1
    assert all(isinstance(answer["ok"], bool) for answer in answers)
