"""The hop handshake at both ends: what anybody on the way, or a hostile relay, may say before there is trust."""

import copy
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fuzz.harness import Choices, harness, pieces
from tests.relay import hops
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.identity import IdentityKey, encode_point, sign_with
from tuunel.relay import handshake_wire as layout
from tuunel.relay.fields import Reader
from tuunel.relay.framing import Frames, Opener, Sealer, frame
from tuunel.relay.handshake import (
    DEVICE_SIGNATURE,
    RELAY_SIGNATURE,
    DeviceHandshake,
    DeviceIdentified,
    RelayAuthenticated,
    RelayHandshake,
    Welcomed,
)
from tuunel.relay.handshake_wire import DeviceClaim, Registration, RelayClaim, RelayParams
from tuunel.relay.keyschedule import KeySchedule
from tuunel.relay.protocol import HopChannel, State
from tuunel.relay.wire import HopError, Params, Ping, Purpose, Role, Side, Welcome, encode_message

_EPHEMERAL: Final = hops.key(0xE1)
_DEVICE_EPHEMERAL: Final = hops.key(0xD1)
_PARAMS: Final = Params(Role.AGENT, hops.INSTANCE)
_LOGIN: Final = DeviceClaim(Purpose.CONTROL, hops.IDENTITY.device_id, None, _PARAMS).encode()
_REGISTER: Final = DeviceClaim(
    Purpose.READY, hops.IDENTITY.device_id, Registration(hops.IDENTITY.public_bytes, hops.TOKEN, "home"), _PARAMS
).encode()
_WELCOME: Final = Welcome(hops.IDENTITY.device_id, hops.OBSERVED, hops.NOW, hops.LIMITS)
_REFUSAL: Final = frame(layout.VersionRefusal(0, 1, 1).encode())


def _relay() -> RelayHandshake:
    return hops.relay(ephemeral=lambda: _EPHEMERAL)


def _device() -> DeviceHandshake:
    return hops.device(ephemeral=lambda: _DEVICE_EPHEMERAL)


_M1: Final = _device().data_to_send()


@harness(
    max_length=1200,
    seeds=[b"\0" + _M1, b"\7" + _M1 + bytes(530), b"\0" + _M1[:6] + b"\2\3" + _M1[8:], b"\0GET / HTTP/1.1\r\n\r\n"],
    words=[b"TNL1"],
)
def hello(data: bytes) -> None:
    """Any first bytes, in any pieces, get M2, a refusal that names the versions, or RemoteProtocolError; 530 bytes are the most wanted."""
    choices = Choices(data)
    size, data = choices.byte(), choices.rest()
    relay, said = _relay(), b""
    for piece in pieces(data, size):
        rest = piece
        while rest:
            wanted = relay.bytes_wanted
            assert 0 < wanted <= (layout.DEVICE_AUTH_SEALED + 2 if said else layout.HELLO_CEILING)
            relay.receive_data(rest[:wanted])
            rest = rest[wanted:]
            try:
                assert relay.next_event() is None, "nobody is identified without the keys"
            except RemoteProtocolError:
                assert relay.data_to_send() in (b"", _REFUSAL)
                assert relay.next_event() is None
                return
            said = said or relay.data_to_send()


class _Agreed:
    """Both ends behind M2, made once: what a stranger who plays by the rules up to there can reach for the price of one AES."""

    def __init__(self) -> None:
        self._relay = _relay()
        self._relay.receive_data(_M1)
        assert self._relay.next_event() is None
        m2 = self._relay.data_to_send()
        at = 2 + layout.HELLO_REPLY
        self._schedule = KeySchedule(_M1)
        relay_key, self.device_key = self._schedule.agree(m2[:at], _DEVICE_EPHEMERAL.exchange(ec.ECDH(), _EPHEMERAL.public_key()))
        plaintext = Opener(relay_key).open(m2[at + 2 :])
        reader = Reader(plaintext)
        RelayClaim.read(reader)
        self._schedule.add(plaintext[: reader.position])
        self._schedule.add(reader.take(layout.PROOFS - layout.MAC))
        self._schedule.add(reader.rest())

    def relay(self) -> RelayHandshake:
        relay: Any = copy.copy(self._relay)
        relay._frames = Frames()
        relay._schedule = copy.copy(self._relay._schedule)
        return relay

    def device_auth(self, claim: bytes, identity: IdentityKey) -> bytes:
        """The plaintext of M3 that proves `claim` with the key of `identity`."""
        schedule = copy.copy(self._schedule)
        signature = identity.sign(DEVICE_SIGNATURE, schedule.add(claim))
        schedule.add(signature)
        return claim + signature + schedule.mac("c fin")


_AGREED: Final = _Agreed()


@harness(
    max_length=520,
    seeds=[bytes([proven]) + claim for proven in (0, 1, 3) for claim in (_LOGIN, _REGISTER)] + [b"\2" + bytes(528)],
)
def device_auth(data: bytes) -> None:
    """Any M3 is a claim or RemoteProtocolError, and a claim is proved only by the key that its device ID is the hash of."""
    choices = Choices(data)
    mode, claim = choices.byte() % 4, choices.rest()
    proven = False
    if mode in (1, 3):
        try:
            reader = Reader(claim)
            claimed = DeviceClaim.read(reader)
            proven = mode == 1 and claimed.device_id == hops.IDENTITY.device_id
            claim = claim[: reader.position]
        except RemoteProtocolError:
            pass
        claim = _AGREED.device_auth(claim, hops.IDENTITY if mode == 1 else hops.AGENT)
    relay = _AGREED.relay()
    whole = claim[: layout.DEVICE_AUTH].ljust(layout.DEVICE_AUTH, b"\0")
    relay.receive_data(frame(claim) if mode == 2 else Sealer(_AGREED.device_key).seal(whole))
    try:
        identified = relay.next_event()
    except RemoteProtocolError:
        assert not relay.data_to_send()
        return
    if identified is None:  # raw bytes that announce more than they bring
        assert mode == 2
        return
    assert isinstance(identified, DeviceIdentified)
    assert len(identified.label.encode()) <= layout.LABEL_CEILING
    assert identified.token is None or len(identified.token) == layout.TOKEN
    _prove(relay, identified, proven=proven)


def _prove(relay: RelayHandshake, identified: DeviceIdentified, *, proven: bool) -> None:
    public_key = identified.public_key or hops.IDENTITY.public_bytes  # the retained one
    try:
        relay.verify(public_key)
    except RemoteProtocolError:
        assert not proven or public_key != hops.IDENTITY.public_bytes, "the device's own proof was refused"
        assert relay.refuse(Reason.AUTH_FAILED)
        return
    assert proven, "a claim was believed without its proof"
    assert public_key == hops.IDENTITY.public_bytes
    assert relay.welcome()
    assert relay.channel.state is State.IDLE


_REPLY: Final = frame(layout.HelloReply(1, b"R" * 32, encode_point(_EPHEMERAL.public_key())).encode())
_SHARED: Final = _EPHEMERAL.exchange(ec.ECDH(), _DEVICE_EPHEMERAL.public_key())
_CLAIM: Final = RelayClaim.of(hops.CREDENTIALS.chain, RelayParams(hops.ROOT.relay_id, 0, 16384, 5)).encode()


def _m2(claim: bytes) -> tuple[bytes, KeySchedule]:
    """M2 of whoever holds the key of the pinned relay's leaf, with any claim, and the transcript behind it."""
    schedule = KeySchedule(_M1)
    relay_key, _ = schedule.agree(_REPLY, _SHARED)
    signature = sign_with(hops.CREDENTIALS.leaf_key, RELAY_SIGNATURE, schedule.add(claim))
    schedule.add(signature)
    mac = schedule.mac("s fin")
    schedule.add(mac)
    return _REPLY + Sealer(relay_key).seal(claim + signature + mac), schedule


@harness(
    max_length=1600,
    seeds=[
        b"\0\0" + _m2(_CLAIM)[0][:1590],
        b"\0\3" + frame(b"\0\1\1"),
        b"\1\0" + _CLAIM,
        *(b"\2\0" + encode_message(message) for message in (_WELCOME, HopError(Reason.RATE_LIMITED, 3, "later"), Ping(bytes(8)))),
    ],
)
def relay_auth(data: bytes) -> None:
    """Any M2 and M4 leave a device that trusts the pinned relay's chain alone, and raise nothing but a named failure."""
    choices = Choices(data)
    mode, size, data = choices.byte() % 3, choices.byte(), choices.rest()
    try:
        if mode == 0:
            _listen(_TRUSTING.newcomer(), data, size)
        elif mode == 1:
            claim = data[: 16000 - layout.PROOFS]
            trusted = _listen(_TRUSTING.newcomer(), _m2(claim)[0], size)
            assert trusted or claim != _CLAIM
            assert not trusted or _same_relay(claim), "another key was trusted"
        else:
            _hear_verdict(data)
    except Failure as failure:
        if failure.reason not in (Reason.RELAY_UNTRUSTED, Reason.VERSION) and not (mode == 2 and failure.speaker is Speaker.RELAY):
            raise
    except RemoteProtocolError:
        pass


def _listen(device: DeviceHandshake, data: bytes, size: int) -> bool:
    """Feed M2; whether the device now trusts the relay. Before that it says nothing that names it."""
    for piece in pieces(data, size):
        device.receive_data(piece)
        event = _next(device)
        if event is not None:
            assert isinstance(event, RelayAuthenticated)
            assert event.params.relay_id == hops.ROOT.relay_id
            return True
        assert not device.data_to_send()
        assert device.bytes_wanted <= layout.RELAY_AUTH_CEILING
    return False


def _same_relay(claim: bytes) -> bool:
    """Whether the claim's leaf is of the pinned relay's key: its root may have signed more than one."""
    leaf = x509.load_der_x509_certificate(RelayClaim.read(Reader(claim)).certificates[0])
    return leaf.public_key() == hops.CREDENTIALS.leaf_key.public_key()


def _next(device: DeviceHandshake) -> RelayAuthenticated | Welcomed | None:
    try:
        return device.next_event()
    except (Failure, RemoteProtocolError):
        assert device.next_event() is None, "a dead handshake goes on"
        raise


class _Trusting:
    """A device that has said M1, and one that has heard M2 and said M3; made once, copied for each input."""

    def __init__(self) -> None:
        self._newcomer = _device()
        self._newcomer.data_to_send()
        self._device = self.newcomer()
        m2, schedule = _m2(_CLAIM)
        assert _listen(self._device, m2, 0)
        m3 = self._device.data_to_send()
        _, device_key = KeySchedule(_M1).agree(_REPLY, _SHARED)
        proven = Opener(device_key).open(m3[2 : 2 + layout.DEVICE_AUTH_SEALED])
        reader = Reader(proven)
        DeviceClaim.read(reader)
        schedule.add(proven[: reader.position])
        schedule.add(reader.take(layout.PROOFS - layout.MAC))
        schedule.add(reader.rest())
        self._device_keys, self._relay_key = schedule.channel_keys()

    def newcomer(self) -> DeviceHandshake:
        """It waits for M2."""
        device: Any = copy.copy(self._newcomer)
        device._frames = Frames()
        device._schedule = copy.copy(device._schedule)
        device._step = device._read_reply
        return device

    def device(self) -> DeviceHandshake:
        """It waits for M4."""
        device: Any = copy.copy(self._device)
        device._frames = Frames()
        device._channel = HopChannel(Side.DEVICE, Purpose.CONTROL, Role.AGENT, send_key=self._device_keys, receive_key=self._relay_key)
        device._step = device._read_welcome
        return device

    def sealed(self, plaintext: bytes) -> bytes:
        """The relay's first record."""
        return Sealer(self._relay_key).seal(plaintext)


def _hear_verdict(plaintext: bytes) -> None:
    device = _TRUSTING.device()
    device.receive_data(_TRUSTING.sealed(plaintext[:1500]))
    event = _next(device)
    assert isinstance(event, Welcomed)
    assert event.welcome.device_id == hops.IDENTITY.device_id
    assert encode_message(event.welcome) == plaintext[:1500]


_TRUSTING: Final = _Trusting()
