"""The hop handshake: what each end is sure of before it says or does more, and that nothing spoilt ever agrees on keys."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relay.hops import (
    AGENT,
    CREDENTIALS,
    IDENTITY,
    INSTANCE,
    LIMITS,
    NOW,
    OBSERVED,
    OFFER,
    OPEN,
    OTHER_ROOT,
    TOKEN,
    cut,
    device,
    key,
    relay,
    shake_hands,
)
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError, Speaker
from tuunel.identity import IdentityKey
from tuunel.relay import handshake
from tuunel.relay.certificates import DAY, make_leaf
from tuunel.relay.framing import MAX_RECORD, frame
from tuunel.relay.handshake import DeviceHandshake, DeviceIdentified, Register, RelayAuthenticated, RelayHandshake, Welcomed
from tuunel.relay.handshake_wire import (
    DEVICE_AUTH,
    EXTENSIONS_CEILING,
    HELLO_CEILING,
    HELLO_FIXED,
    MAGIC,
    RELAY_AUTH_CEILING,
    DeviceClaim,
    Kind,
    Registration,
)
from tuunel.relay.wire import HopError, Offer, Open, Params, Ping, Purpose, Role

GRAFTED = make_leaf(OTHER_ROOT, key(9), NOW).chain[0]
_, _, GOOD = shake_hands(device(), relay())


def relay_authenticated(d: DeviceHandshake, r: RelayHandshake) -> RelayAuthenticated:
    r.receive_data(d.data_to_send())
    assert r.next_event() is None
    d.receive_data(r.data_to_send())
    event = d.next_event()
    assert isinstance(event, RelayAuthenticated)
    return event


def identified(d: DeviceHandshake, r: RelayHandshake) -> DeviceIdentified:
    relay_authenticated(d, r)
    r.receive_data(d.data_to_send())
    event = r.next_event()
    assert isinstance(event, DeviceIdentified)
    return event


# What a good handshake tells


def test_a_registration_brings_the_key_the_token_and_a_label() -> None:
    event = identified(device(register=Register(TOKEN, "home")), relay())
    assert event == DeviceIdentified(
        kind=Kind.REGISTER,
        device_id=IDENTITY.device_id,
        public_key=IDENTITY.public_bytes,
        token=TOKEN,
        label="home",
        purpose=Purpose.CONTROL,
        params=Params(Role.AGENT, INSTANCE),
    )


def test_a_registration_needs_no_token() -> None:
    assert identified(device(register=Register(None, "")), relay()).token is None


def test_a_login_names_the_device_and_no_key() -> None:
    event = identified(device(Purpose.DIAL, register=None), relay())
    assert (event.kind, event.device_id, event.public_key, event.token, event.label) == (Kind.LOGIN, IDENTITY.device_id, None, None, "")
    assert event.purpose is Purpose.DIAL


def test_the_token_is_not_shown() -> None:
    assert TOKEN.decode() not in repr(identified(device(), relay())) + repr(Register(TOKEN, "home"))


def test_the_welcome_tells_what_the_relay_saw() -> None:
    d, r = device(), relay()
    identified(d, r)
    r.verify(IDENTITY.public_bytes)
    d.receive_data(r.welcome())
    event = d.next_event()
    assert isinstance(event, Welcomed)
    assert event.welcome.device_id == IDENTITY.device_id
    assert (event.welcome.observed, event.welcome.relay_time, event.welcome.limits) == (OBSERVED, NOW, LIMITS)


def test_a_registration_and_a_login_have_the_same_length() -> None:
    lengths = set()
    for register in (None, Register(None, ""), Register(TOKEN, "x" * 64)):
        d = device(register=register)
        relay_authenticated(d, relay())
        lengths.add(len(d.data_to_send()))
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("purpose", "first"), [(Purpose.READY, Offer(OFFER)), (Purpose.DIAL, Open(OPEN)), (Purpose.CONTROL, Ping(bytes(8)))]
)
def test_the_first_request_travels_with_the_login(purpose: Purpose, first: Offer | Open | Ping) -> None:
    _, r, _ = shake_hands(device(purpose, register=None, first=[first]), relay())
    assert r.next_event() == first


# The relay proves itself first


def test_nothing_that_identifies_the_device_leaves_before_the_relay_is_proved() -> None:
    def strangers_first_bytes(identity: IdentityKey) -> bytes:
        return device(identity=identity).data_to_send()

    assert strangers_first_bytes(IDENTITY) == strangers_first_bytes(AGENT)


@pytest.mark.parametrize(
    ("credentials", "changes"),
    [
        pytest.param(CREDENTIALS, {"pin": OTHER_ROOT.relay_id}, id="another pin"),
        pytest.param(make_leaf(OTHER_ROOT, key(9), NOW), {}, id="chain of another root"),
        pytest.param(replace(CREDENTIALS, leaf_key=key(9)), {}, id="signature of another key"),
        pytest.param(CREDENTIALS, {"now": NOW + 91 * DAY}, id="expired leaf"),
        pytest.param(CREDENTIALS, {"now": NOW - 2 * DAY}, id="leaf of the future"),
        pytest.param(replace(CREDENTIALS, chain=CREDENTIALS.chain[:1]), {}, id="no root"),
        pytest.param(replace(CREDENTIALS, chain=(CREDENTIALS.chain[1],) * 2), {}, id="root as leaf"),
        pytest.param(
            replace(CREDENTIALS, chain=(make_leaf(OTHER_ROOT, key(9), NOW).chain[0], CREDENTIALS.chain[1])), {}, id="grafted leaf"
        ),
        pytest.param(replace(CREDENTIALS, chain=(b"leaf", CREDENTIALS.chain[1])), {}, id="garbage"),
        pytest.param(replace(CREDENTIALS, relay_id=OTHER_ROOT.relay_id), {}, id="another relay's id"),
    ],
)
def test_a_relay_that_is_not_the_pinned_one_gets_nothing(credentials, changes) -> None:
    d, r = device(**changes), relay(credentials)
    r.receive_data(d.data_to_send())
    r.next_event()
    d.receive_data(r.data_to_send())
    with pytest.raises(Failure) as caught:
        d.next_event()
    assert (caught.value.reason, caught.value.speaker) == (Reason.RELAY_UNTRUSTED, Speaker.LOCAL)
    assert d.data_to_send() == b""
    assert d.next_event() is None


def test_a_relay_whose_keys_are_not_of_this_connection_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    d, r = device(), relay()
    r.receive_data(d.data_to_send())
    with monkeypatch.context() as patched:
        patched.setattr(handshake.KeySchedule, "mac", lambda *_: bytes(32))
        r.next_event()
    d.receive_data(r.data_to_send())
    with pytest.raises(Failure, match="do not belong to this connection"):
        d.next_event()
    assert d.data_to_send() == b""


def test_a_recorded_relay_cannot_be_replayed_to_another_connection() -> None:
    d = device(ephemeral=lambda: key(0xD2))
    d.data_to_send()
    d.receive_data(GOOD.m2)
    with pytest.raises(RemoteProtocolError):
        d.next_event()
    assert d.data_to_send() == b""


def test_a_relay_that_takes_smaller_records_than_this_version_sends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    d, r = device(), relay()
    r.receive_data(d.data_to_send())
    with monkeypatch.context() as patched:
        patched.setattr(handshake, "MAX_RECORD", MAX_RECORD - 1)
        r.next_event()
    d.receive_data(r.data_to_send())
    with pytest.raises(RemoteProtocolError, match="smaller records"):
        d.next_event()
    assert d.data_to_send() == b""


# The device proves itself


def test_a_login_with_another_key_is_refused() -> None:
    d, r = device(register=None), relay()
    identified(d, r)
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        r.verify(AGENT.public_bytes)
    with pytest.raises(LocalProtocolError):
        r.welcome()
    d.receive_data(r.refuse(Reason.AUTH_FAILED))
    with pytest.raises(Failure) as caught:
        d.next_event()
    assert (caught.value.reason, caught.value.speaker) == (Reason.AUTH_FAILED, Speaker.RELAY)


def test_a_login_under_anothers_id_is_refused() -> None:
    d, r = device(register=None), relay()
    d._claim = device(identity=AGENT, register=None)._claim
    identified(d, r)
    with pytest.raises(RemoteProtocolError, match="does not belong to its device ID"):
        r.verify(IDENTITY.public_bytes)  # it has proved this key


class Impostor(IdentityKey):
    """Claims the identity of another and signs with its own key."""

    def __init__(self, claimed: IdentityKey) -> None:
        super().__init__(key(0x666))
        self.public_bytes, self.device_id = claimed.public_bytes, claimed.device_id


@pytest.mark.parametrize("register", [None, Register(TOKEN, "home")])
def test_whoever_lacks_the_private_key_is_not_verified(register: Register | None) -> None:
    r = relay()
    identified(device(register=register, identity=Impostor(IDENTITY)), r)
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        r.verify(IDENTITY.public_bytes)


def test_a_registration_of_another_key_than_the_retained_one_is_refused() -> None:
    r = relay()
    identified(device(identity=AGENT), r)
    with pytest.raises(RemoteProtocolError):
        r.verify(IDENTITY.public_bytes)


def test_a_registration_does_not_smuggle_in_a_second_key() -> None:
    """The ID and the signature are this device's, the key to be stored is another's."""
    identity = IdentityKey(key(0x1D))
    identity.public_bytes = AGENT.public_bytes
    r = relay()
    assert identified(device(identity=identity), r).device_id == IDENTITY.device_id
    with pytest.raises(RemoteProtocolError, match="another key"):
        r.verify(IDENTITY.public_bytes)


def test_a_device_whose_keys_are_not_of_this_connection_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    d, r = device(), relay()
    r.receive_data(d.data_to_send())
    r.next_event()
    real = handshake.KeySchedule.mac
    with monkeypatch.context() as patched:
        patched.setattr(handshake.KeySchedule, "mac", lambda self, label: bytes(32) if label == "c fin" else real(self, label))
        d.receive_data(r.data_to_send())
        d.next_event()
    r.receive_data(d.data_to_send())
    r.next_event()
    with pytest.raises(RemoteProtocolError, match="do not belong to this connection"):
        r.verify(IDENTITY.public_bytes)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\4" + bytes(64), IDENTITY.public_bytes[:-1], b"\2" + IDENTITY.public_bytes[1:33]],
    ids=["nothing", "no point", "cut", "compressed"],
)
def test_a_retained_key_that_is_no_point_verifies_nobody(garbage: bytes) -> None:
    r = relay()
    identified(device(register=None), r)
    with pytest.raises(RemoteProtocolError):
        r.verify(garbage)


def test_a_login_cannot_be_forwarded_to_another_relay() -> None:
    """A malicious relay that holds the same ephemeral keys as the honest one, and passes M3 on, still signs with its own certificate."""
    evil = make_leaf(OTHER_ROOT, key(9), NOW)
    d = device(pin=OTHER_ROOT.relay_id, register=None)
    middle, honest = relay(evil), relay()
    m1 = d.data_to_send()
    middle.receive_data(m1)
    middle.next_event()
    honest.receive_data(m1)
    honest.next_event()
    d.receive_data(middle.data_to_send())
    assert isinstance(d.next_event(), RelayAuthenticated)
    honest.receive_data(d.data_to_send())
    assert isinstance(honest.next_event(), DeviceIdentified)  # the keys are equal: only the proofs are left to catch it
    with pytest.raises(RemoteProtocolError):
        honest.verify(IDENTITY.public_bytes)


def test_the_signature_alone_catches_a_forwarded_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake.hmac, "compare_digest", lambda *_: True)
    test_a_login_cannot_be_forwarded_to_another_relay()


# Cost order


def test_no_signature_is_verified_before_the_device_has_agreed_on_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = handshake.verify
    d, r = device(), relay()
    relay_authenticated(d, r)
    m3 = d.data_to_send()
    monkeypatch.setattr(handshake, "verify", lambda *arguments: (calls.append("verify"), real(*arguments)))
    spoilt = relay()
    spoilt.receive_data(GOOD.m1)
    spoilt.next_event()
    spoilt.receive_data(m3[:-1] + bytes([m3[-1] ^ 1]))
    with pytest.raises(RemoteProtocolError):
        spoilt.next_event()
    r.receive_data(m3)
    assert isinstance(r.next_event(), DeviceIdentified)
    assert calls == []
    r.verify(IDENTITY.public_bytes)
    assert calls == ["verify"]


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"SSH-2.0-", b"TNL2", MAGIC + b"\xff\xff", MAGIC + b"\0\0"])
def test_a_stranger_costs_the_relay_no_key(junk: bytes) -> None:
    made: list[object] = []
    r = relay(ephemeral=lambda: made.append(1))
    r.receive_data(junk)
    with pytest.raises(RemoteProtocolError):
        r.next_event()
    assert (made, r.data_to_send()) == ([], b"")


# Versions


def hello(ver_min: int, ver_max: int, extensions: bytes = b"") -> bytes:
    body = GOOD.m1[6:]
    return MAGIC + frame(bytes([ver_min, ver_max]) + body[2:] + extensions)


@pytest.mark.parametrize(("ver_min", "ver_max"), [(2, 9), (0, 0), (3, 0)])
def test_a_relay_without_a_common_version_says_which_it_speaks(ver_min: int, ver_max: int) -> None:
    r = relay()
    r.receive_data(hello(ver_min, ver_max))
    with pytest.raises(RemoteProtocolError):
        r.next_event()
    refusal = r.data_to_send()
    assert refusal == bytes.fromhex("0003 00 01 01")
    d = device()
    d.receive_data(refusal)
    with pytest.raises(Failure) as caught:
        d.next_event()
    assert (caught.value.reason, caught.value.speaker) == (Reason.VERSION, Speaker.RELAY)
    assert "1 to 1" in str(caught.value)


@pytest.mark.parametrize("version", [2, 255])
def test_a_version_that_was_not_offered_is_refused(version: int) -> None:
    d = device()
    d.receive_data(GOOD.m2[:2] + bytes([version]) + GOOD.m2[3:])
    with pytest.raises(RemoteProtocolError, match="not offered"):
        d.next_event()


def test_the_offered_range_is_under_the_keys() -> None:
    """Somebody in between who narrows or widens the range gets two ends that do not agree."""
    d, r = device(), relay()
    d.data_to_send()
    r.receive_data(hello(0, 1))
    assert r.next_event() is None
    d.receive_data(r.data_to_send())
    with pytest.raises(RemoteProtocolError):
        d.next_event()


def test_extensions_of_a_later_version_are_let_pass_up_to_the_ceiling() -> None:
    longest = hello(1, 7, b"e" * EXTENSIONS_CEILING)
    assert len(longest) == HELLO_CEILING
    r = relay()
    r.receive_data(longest)
    assert r.next_event() is None
    assert r.data_to_send()
    r = relay()
    r.receive_data(hello(1, 7, b"e" * (EXTENSIONS_CEILING + 1))[: len(MAGIC) + 2])
    with pytest.raises(RemoteProtocolError):
        r.next_event()


def test_a_hello_below_its_fixed_part_is_refused() -> None:
    r = relay()
    r.receive_data(MAGIC + frame(bytes(HELLO_FIXED - 1)))
    with pytest.raises(RemoteProtocolError):
        r.next_event()


def test_a_relay_auth_above_its_ceiling_is_refused_by_its_length() -> None:
    d = device()
    d.receive_data(GOOD.m2[:100] + (RELAY_AUTH_CEILING + 1).to_bytes(2))
    with pytest.raises(RemoteProtocolError, match="outside"):
        d.next_event()


# Refusals


@pytest.mark.parametrize("reason", [Reason.DEVICE_UNKNOWN, Reason.ENROLMENT_REQUIRED, Reason.DEVICE_BANNED, Reason.RATE_LIMITED])
def test_a_refusal_reaches_the_device_with_its_reason(reason: Reason) -> None:
    d, r = device(register=None), relay()
    identified(d, r)
    d.receive_data(r.refuse(reason, retry_after=7, detail="because"))
    with pytest.raises(Failure) as caught:
        d.next_event()
    assert (caught.value.reason, caught.value.speaker, caught.value.retry_after, caught.value.detail) == (
        reason,
        Speaker.RELAY,
        7,
        "because",
    )


def test_a_verified_device_may_still_be_refused_once() -> None:
    d, r = device(), relay()
    identified(d, r)
    r.verify(IDENTITY.public_bytes)
    assert r.refuse(Reason.QUOTA)
    for call in (r.welcome, lambda: r.refuse(Reason.QUOTA), lambda: r.channel):
        with pytest.raises(LocalProtocolError):
            call()


def test_the_relay_must_verify_before_it_welcomes() -> None:
    r = relay()
    for call in (r.welcome, lambda: r.verify(IDENTITY.public_bytes), lambda: r.refuse(Reason.QUOTA), lambda: r.channel):
        with pytest.raises(LocalProtocolError):
            call()
    identified(device(), r)
    with pytest.raises(LocalProtocolError):
        r.welcome()


def test_a_device_id_that_is_not_this_keys_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    d, r = device(), relay()
    identified(d, r)
    r.verify(IDENTITY.public_bytes)
    r._claim = replace(r._claim, device_id=AGENT.device_id)
    d.receive_data(r.welcome())
    with pytest.raises(RemoteProtocolError, match="not this key's"):
        d.next_event()


CLAIM = DeviceClaim(Purpose.CONTROL, IDENTITY.device_id, Registration(IDENTITY.public_bytes, TOKEN, "home"), Params(Role.AGENT, INSTANCE))


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(replace(CLAIM, purpose=Purpose.DIAL), id="an agent that dials"),
        pytest.param(replace(CLAIM, purpose=Purpose.READY, params=Params(Role.FORWARD, INSTANCE)), id="a forward proxy that waits"),
        pytest.param(replace(CLAIM, registration=Registration(IDENTITY.public_bytes, b"short", "")), id="a short token"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(claim: DeviceClaim) -> None:
    r = relay()
    r.receive_data(GOOD.m1)
    assert r.next_event() is None
    r.receive_data(handshake.Sealer(r._device_key).seal(claim.encode().ljust(DEVICE_AUTH, b"\0")))
    with pytest.raises(RemoteProtocolError):
        r.next_event()


@pytest.mark.parametrize(
    "changes", [{"params": Params(Role.FORWARD, INSTANCE), "purpose": Purpose.READY}, {"register": Register(b"short", "")}]
)
def test_our_own_device_does_not_even_try_that(changes: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        device(**changes)


@pytest.mark.parametrize("end", [device, relay])
def test_an_end_of_file_is_always_too_early(end: Callable[[], DeviceHandshake | RelayHandshake]) -> None:
    with pytest.raises(RemoteProtocolError):
        end().receive_eof()


def test_both_ends_are_over_when_the_channel_has_taken_over() -> None:
    d, r = device(), relay()
    shake_hands(d, r)
    for half in (d, r):
        assert half.next_event() is None
        with pytest.raises(LocalProtocolError):
            half.receive_data(b"x")


# Spoilt, cut and arbitrary bytes


def device_agrees(m2: bytes, m4: bytes) -> bool:
    """Whether a device ends up with a channel after these bytes from the relay."""
    d = device()
    d.data_to_send()
    try:
        d.receive_data(m2)
        if d.next_event() is None:
            return False
        d.receive_data(m4)
        return isinstance(d.next_event(), Welcomed)
    except (RemoteProtocolError, Failure):
        return False


def relay_agrees(m1: bytes, m3: bytes) -> bool:
    """Whether the relay ends up with a verified device after these bytes."""
    r = relay()
    try:
        r.receive_data(m1)
        r.next_event()
        r.receive_data(m3)
        event = r.next_event()
        if event is None:
            return False
        r.verify(event.public_key or IDENTITY.public_bytes)
    except RemoteProtocolError:
        return False
    return True


def test_the_good_flights_agree() -> None:
    assert device_agrees(GOOD.m2, GOOD.m4)
    assert relay_agrees(GOOD.m1, GOOD.m3)


FLIGHTS = st.sampled_from(["m1", "m2", "m3", "m4"])


@given(FLIGHTS, st.data())
def test_any_flipped_bit_leaves_no_agreement(name: str, data: st.DataObject) -> None:
    original = getattr(GOOD, name)
    position = data.draw(st.integers(0, len(original) * 8 - 1))
    flipped = bytearray(original)
    flipped[position // 8] ^= 1 << position % 8
    spoilt = GOOD.spoilt(name, bytes(flipped))
    agreed = device_agrees(spoilt.m2, spoilt.m4) if name in ("m2", "m4") else relay_agrees(spoilt.m1, spoilt.m3)
    assert not agreed


@given(FLIGHTS, st.data())
def test_any_cut_leaves_no_agreement(name: str, data: st.DataObject) -> None:
    original = getattr(GOOD, name)
    start = data.draw(st.integers(0, len(original) - 1))
    length = data.draw(st.integers(1, len(original) - start))
    spoilt = GOOD.spoilt(name, original[:start] + original[start + length :])
    agreed = device_agrees(spoilt.m2, spoilt.m4) if name in ("m2", "m4") else relay_agrees(spoilt.m1, spoilt.m3)
    assert not agreed


@pytest.mark.parametrize("name", ["m1", "m2", "m3", "m4"])
def test_every_single_byte_matters(name: str) -> None:
    original = getattr(GOOD, name)
    for position in range(0, len(original), 1 if len(original) < 200 else 7):
        spoilt = GOOD.spoilt(name, original[:position] + bytes([original[position] ^ 0x80]) + original[position + 1 :])
        agreed = device_agrees(spoilt.m2, spoilt.m4) if name in ("m2", "m4") else relay_agrees(spoilt.m1, spoilt.m3)
        assert not agreed, f"byte {position} of {name}"


@given(st.lists(st.integers(0, 5000), max_size=12))
def test_any_chunking_gives_the_same_events(points: list[int]) -> None:
    d, r = device(first=[Ping(bytes(8))]), relay()
    whole_d, whole_r = device(first=[Ping(bytes(8))]), relay()
    m1 = d.data_to_send()
    assert m1 == whole_d.data_to_send()
    for piece in cut(m1, points):
        r.receive_data(piece)
        r.next_event()
    whole_r.receive_data(m1)
    whole_r.next_event()
    m2 = r.data_to_send()
    assert m2 == whole_r.data_to_send()
    events = []
    for piece in cut(m2, points):
        d.receive_data(piece)
        events += filter(None, [d.next_event()])
    assert [type(event) for event in events] == [RelayAuthenticated]
    m3 = d.data_to_send()
    identified_by = []
    for piece in cut(m3, points):
        r.receive_data(piece)
        identified_by += filter(None, [r.next_event()])
    assert len(identified_by) == 1
    r.verify(IDENTITY.public_bytes)
    m4 = r.welcome()
    assert r.channel.next_event() == Ping(bytes(8))
    for piece in cut(m4, points):
        d.receive_data(piece)
        events += filter(None, [d.next_event()])
    assert [type(event) for event in events] == [RelayAuthenticated, Welcomed]


def test_reading_exact_sizes_takes_nothing_that_belongs_behind() -> None:
    d, r = device(Purpose.DIAL, register=None, first=[Open(OPEN)]), relay()
    wire = d.data_to_send()
    while r.bytes_wanted:
        wanted = r.bytes_wanted
        r.receive_data(wire[:wanted])
        wire = wire[wanted:]
        r.next_event()
        d.receive_data(r.data_to_send())
        d.next_event()
        wire += d.data_to_send()
    assert r.bytes_wanted == 0
    r.verify(IDENTITY.public_bytes)
    answer = r.welcome() + r.channel.send(HopError(Reason.QUOTA)) if wire == b"" else r.welcome()
    while not isinstance(d.next_event(), Welcomed):
        wanted = d.bytes_wanted
        d.receive_data(answer[:wanted])
        answer = answer[wanted:]
    assert answer == b""
    assert r.channel.bytes_wanted == 2
    r.channel.receive_data(wire)
    assert r.channel.next_event() == Open(OPEN)


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_only_ever_a_protocol_error(data: bytes) -> None:
    for end in (device(), relay()):
        end.receive_data(data)
        with suppress(RemoteProtocolError, Failure):
            assert end.next_event() is None


@given(st.binary(min_size=512, max_size=512))
def test_an_arbitrary_device_auth_is_only_ever_a_protocol_error(plaintext: bytes) -> None:
    """Even from somebody who did agree on keys."""
    r = relay()
    r.receive_data(GOOD.m1)
    r.next_event()
    r.receive_data(handshake.Sealer(r._device_key).seal(plaintext))
    try:
        event = r.next_event()
    except RemoteProtocolError:
        return
    assert event is not None
    with pytest.raises(RemoteProtocolError):
        r.verify(event.public_key or IDENTITY.public_bytes)
