"""The hop handshake M1 to M4, both ends: docs/spec/hop-handshake.md. SIGMA-I in one round trip, and no shortcut for a second time.

    device: HELLO ->                    REPLY, RELAY_AUTH -> M3 and the first messages ->  WELCOME -> channel
    relay:            HELLO -> M2 ->    DEVICE_AUTH -> DeviceIdentified -> verify() -> welcome() -> channel

The device proves the relay before it says who it is; the relay opens DEVICE_AUTH (cheap) before the caller looks anything up or a
signature is verified (dear).
"""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tuunel.address import HostPort
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError, Speaker
from tuunel.hkdf import AeadKey
from tuunel.identity import DeviceID, IdentityKey, ecdh, encode_point, sign_with, verify
from tuunel.relay import handshake_wire as layout
from tuunel.relay.certificates import RelayCredentials, verify_chain
from tuunel.relay.fields import Reader
from tuunel.relay.framing import MAX_RECORD, Frames, Opener, Sealer, frame
from tuunel.relay.handshake_wire import DeviceClaim, Hello, HelloReply, Kind, Proofs, Registration, RelayClaim, RelayParams, VersionRefusal
from tuunel.relay.keyschedule import KeySchedule
from tuunel.relay.protocol import HopChannel, may_carry
from tuunel.relay.wire import VERSION, HopError, Limits, Message, Params, Purpose, Side, Welcome

RELAY_SIGNATURE: Final = "tuunel/1 relay auth"
DEVICE_SIGNATURE: Final = "tuunel/1 device auth"
PING_INTERVAL: Final = 5  #: seconds of silence after which CONTROL pings

Random = Callable[[int], bytes]
Ephemeral = Callable[[], EllipticCurvePrivateKey]


@dataclass(frozen=True, slots=True)
class Register:
    """Ask to be enrolled: with an enrolment token (16 bytes) or none, under a name for people."""

    token: bytes | None = field(repr=False)
    label: str


@dataclass(frozen=True, slots=True)
class RelayAuthenticated:
    """The relay has proved that it is the pinned one; only now is there something to send that names this device."""

    params: RelayParams


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The relay has accepted this device: `channel` carries everything from here on."""

    welcome: Welcome
    channel: HopChannel


@dataclass(frozen=True, slots=True)
class DeviceIdentified:
    """Somebody who agreed on keys with this relay claims to be `device_id`. Nothing is proved before `verify`.

    `public_key` and `label` are there for a registration only; the label is untrusted text.
    """

    kind: Kind
    device_id: DeviceID
    public_key: bytes | None
    token: bytes | None = field(repr=False)
    label: str
    purpose: Purpose
    params: Params


class _Handshake:
    """What both ends share: bytes out, and frames in until the channel takes over."""

    def __init__(self) -> None:
        self._out = b""
        self._frames = Frames()
        self._over = False

    def data_to_send(self) -> bytes:
        """Bytes for the peer, once."""
        out, self._out = self._out, b""
        return out

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the peer; call `next_event` until it returns None."""
        if self._over:
            raise LocalProtocolError("the handshake is over")
        self._frames.receive_data(data)

    def receive_eof(self) -> None:
        """The peer has closed: always too early, RemoteProtocolError."""
        self._over = True
        raise RemoteProtocolError("the connection ended during the handshake")


class DeviceHandshake(_Handshake):
    """The device's end. `pin` is the relay's id from the link; `first` are messages to send in the same flight as the login.

    `register` None logs in: the relay must know the device already. `now` in Unix seconds; `random(n)` gives n bytes, `ephemeral()` a
    new P-256 key. Failure(RELAY_UNTRUSTED) says that the relay is not the pinned one, Failure(VERSION) that it speaks no version of
    ours, Failure(..., RELAY) that it refused; RemoteProtocolError that this is no such relay at all. After any of them it is over.
    """

    def __init__(
        self,
        *,
        pin: bytes,
        identity: IdentityKey,
        register: Register | None,
        purpose: Purpose,
        params: Params,
        random: Random,
        ephemeral: Ephemeral,
        now: int,
        first: Sequence[Message] = (),
    ) -> None:
        super().__init__()
        if not may_carry(purpose, params.role) or (register and register.token and len(register.token) != layout.TOKEN):
            raise LocalProtocolError("the role does not fit the purpose, or the enrolment token has a wrong length")
        self._pin = pin
        self._identity = identity
        registration = None if register is None else Registration(identity.public_bytes, register.token or b"", register.label)
        self._claim = DeviceClaim(purpose, identity.device_id, registration, params)
        self._first = first
        self._now = now
        self._ephemeral: EllipticCurvePrivateKey | None = ephemeral()
        hello = Hello(VERSION, VERSION, random(layout.RANDOM), encode_point(self._ephemeral.public_key()))
        self._out = layout.MAGIC + frame(hello.encode())
        self._schedule = KeySchedule(self._out)
        self._step: Callable[[], RelayAuthenticated | Welcomed | None] = self._read_reply
        self._relay_key: AeadKey
        self._device_key: AeadKey
        self._channel: HopChannel | None = None

    @property
    def bytes_wanted(self) -> int:
        """How many bytes certainly belong to the relay's next message, once `next_event` has returned None."""
        return self._frames.bytes_wanted() if self._channel is None else self._channel.bytes_wanted

    def next_event(self) -> RelayAuthenticated | Welcomed | None:
        """The next step, or None when more bytes are needed. Send `data_to_send` after each; `Welcomed` hands over the channel."""
        if self._over:
            return None
        try:
            return self._step()
        except (Failure, RemoteProtocolError):
            self._over = True
            raise

    def _read_reply(self) -> RelayAuthenticated | None:
        payload = self._frames.next(floor=layout.VERSION_REFUSAL, ceiling=layout.HELLO_REPLY)
        if payload is None or self._ephemeral is None:
            return None
        if payload[0] == 0:
            refusal = VersionRefusal.decode(payload)
            raise Failure(Reason.VERSION, Speaker.RELAY, f"it speaks {refusal.ver_min} to {refusal.ver_max}, this machine {VERSION}")
        reply = HelloReply.decode(payload)
        if reply.version != VERSION:
            raise RemoteProtocolError(f"the relay chose version {reply.version}, which was not offered")
        shared = ecdh(self._ephemeral, reply.point)
        self._ephemeral = None
        self._relay_key, self._device_key = self._schedule.agree(frame(payload), shared)
        self._step = self._read_relay_auth
        return self._read_relay_auth()

    def _read_relay_auth(self) -> RelayAuthenticated | None:
        payload = self._frames.next(floor=layout.RELAY_AUTH_FLOOR, ceiling=layout.RELAY_AUTH_CEILING)
        if payload is None:
            return None
        reader = Reader(Opener(self._relay_key).open(payload))
        claim = RelayClaim.read(reader)
        params = self._check_relay(claim, Proofs.read(reader))
        self._channel = self._answer()
        self._step = self._read_welcome
        return RelayAuthenticated(params)

    def _check_relay(self, claim: RelayClaim, proofs: Proofs) -> RelayParams:
        signed = self._schedule.add(claim.encode())
        leaf = verify_chain(claim.certificates, self._pin, self._now)
        try:
            verify(encode_point(leaf), RELAY_SIGNATURE, signed, proofs.signature)
        except RemoteProtocolError:
            raise _untrusted("it does not hold the key of its certificate") from None
        self._schedule.add(proofs.signature)
        if not hmac.compare_digest(self._schedule.mac("s fin"), proofs.mac):
            raise _untrusted("its keys do not belong to this connection")
        self._schedule.add(proofs.mac, proofs.pad)
        params = claim.relay_params
        if params.relay_id != self._pin:
            raise _untrusted("it calls itself by another relay's id")
        if params.max_record < MAX_RECORD:
            raise RemoteProtocolError("the relay takes smaller records than version 1 may send")
        return params

    def _answer(self) -> HopChannel:
        claim = self._claim.encode()
        signature = self._identity.sign(DEVICE_SIGNATURE, self._schedule.add(claim))
        self._schedule.add(signature)
        mac = self._schedule.mac("c fin")
        pad = bytes(layout.DEVICE_AUTH - len(claim) - layout.PROOFS)
        self._schedule.add(mac, pad)
        m3 = Sealer(self._device_key).seal(claim + signature + mac + pad)
        send_key, receive_key = self._schedule.channel_keys()
        role = self._claim.params.role
        channel = HopChannel(Side.DEVICE, self._claim.purpose, role, send_key=send_key, receive_key=receive_key)
        self._out += m3 + b"".join(map(channel.send, self._first))
        return channel

    def _read_welcome(self) -> Welcomed | None:
        channel = self._channel
        if channel is None:
            return None
        channel.receive_data(self._frames.take_all())
        message = channel.next_event()
        if message is None:
            return None
        if isinstance(message, HopError):
            raise Failure(message.reason, Speaker.RELAY, message.detail, retry_after=message.retry_after)
        if not isinstance(message, Welcome) or message.device_id != self._identity.device_id:
            raise RemoteProtocolError("the relay issued a device ID that is not this key's")
        self._over = True
        return Welcomed(message, channel)


def _untrusted(detail: str) -> Failure:
    return Failure(Reason.RELAY_UNTRUSTED, detail=detail)


class _Turn(Enum):
    """Whose turn it is in the relay's handshake."""

    DEVICE = auto()
    CALLER = auto()  #: to find the key that belongs to the claim
    VERDICT = auto()  #: the claim is proved
    WELCOMED = auto()
    OVER = auto()  #: refused or failed


class RelayHandshake(_Handshake):
    """The relay's end, for one connection from `observed`. Each step costs what the peer has earned.

    After `DeviceIdentified` the caller finds the device's key (retained, or `public_key` of a registration) and calls `verify`, then
    `welcome` or `refuse`. RemoteProtocolError ends it; `data_to_send` may then hold a last word (which versions are spoken here).
    """

    def __init__(
        self,
        *,
        credentials: RelayCredentials,
        random: Random,
        ephemeral: Ephemeral,
        now: int,
        limits: Limits,
        observed: HostPort,
    ) -> None:
        super().__init__()
        self._credentials = credentials
        self._random = random
        self._new_key = ephemeral
        self._now = now
        self._limits = limits
        self._observed = observed
        self._turn = _Turn.DEVICE
        self._schedule: KeySchedule | None = None
        self._device_key: AeadKey
        self._claim: DeviceClaim
        self._proofs: Proofs
        self._signed: bytes
        self._mac: bytes
        self._channel: HopChannel

    @property
    def bytes_wanted(self) -> int:
        """How many bytes certainly belong to the device's next message of the handshake; 0 once it has identified itself."""
        if self._turn is not _Turn.DEVICE:
            return 0
        return self._frames.bytes_wanted(layout.MAGIC if self._schedule is None else b"")

    def next_event(self) -> DeviceIdentified | None:
        """`DeviceIdentified` once, else None: more bytes are needed, or it is the caller's turn. Send `data_to_send` after each."""
        if self._over or self._turn is not _Turn.DEVICE:
            return None
        try:
            schedule = self._schedule or self._read_hello()
            return self._read_device_auth(schedule) if schedule else None
        except RemoteProtocolError:
            self._over, self._turn = True, _Turn.OVER
            raise

    def _read_hello(self) -> KeySchedule | None:
        payload = self._frames.next(magic=layout.MAGIC, floor=layout.HELLO_FIXED, ceiling=layout.HELLO_FIXED + layout.EXTENSIONS_CEILING)
        if payload is None:
            return None
        hello = Hello.decode(payload)
        if not hello.ver_min <= VERSION <= hello.ver_max:
            self._out = frame(VersionRefusal(0, VERSION, VERSION).encode())
            raise RemoteProtocolError(f"the device speaks versions {hello.ver_min} to {hello.ver_max}")
        ephemeral = self._new_key()
        shared = ecdh(ephemeral, hello.point)
        reply = frame(HelloReply(VERSION, self._random(layout.RANDOM), encode_point(ephemeral.public_key())).encode())
        schedule = self._schedule = KeySchedule(layout.MAGIC + frame(payload))
        relay_key, self._device_key = schedule.agree(reply, shared)
        self._out = reply + Sealer(relay_key).seal(self._prove(schedule))
        return schedule

    def _prove(self, schedule: KeySchedule) -> bytes:
        params = RelayParams(self._credentials.relay_id, 0, MAX_RECORD, PING_INTERVAL)
        claim = RelayClaim.of(self._credentials.chain, params).encode()
        signature = sign_with(self._credentials.leaf_key, RELAY_SIGNATURE, schedule.add(claim))
        schedule.add(signature)
        mac = schedule.mac("s fin")
        pad = bytes(-(len(claim) + layout.PROOFS) % layout.PAD_TO)
        schedule.add(mac, pad)
        return claim + signature + mac + pad

    def _read_device_auth(self, schedule: KeySchedule) -> DeviceIdentified | None:
        payload = self._frames.next(floor=layout.DEVICE_AUTH_SEALED, ceiling=layout.DEVICE_AUTH_SEALED)
        if payload is None:
            return None
        plaintext = Opener(self._device_key).open(payload)
        reader = Reader(plaintext)
        claim = self._claim = DeviceClaim.read(reader)
        signed = plaintext[: reader.position]
        self._finish(schedule, signed, Proofs.read(reader))
        self._turn = _Turn.CALLER
        registration = claim.registration
        return DeviceIdentified(
            kind=claim.kind,
            device_id=claim.device_id,
            public_key=registration.public_key if registration else None,
            token=(registration.token or None) if registration else None,
            label=registration.label if registration else "",
            purpose=claim.purpose,
            params=claim.params,
        )

    def _finish(self, schedule: KeySchedule, claim: bytes, proofs: Proofs) -> None:
        """Hashing only: the keys exist before the proofs are checked, so that a refusal can be said under them."""
        self._proofs = proofs
        self._signed = schedule.add(claim)
        schedule.add(proofs.signature)
        self._mac = schedule.mac("c fin")
        schedule.add(proofs.mac, proofs.pad)
        receive_key, send_key = schedule.channel_keys()
        purpose, role = self._claim.purpose, self._claim.params.role
        self._channel = HopChannel(Side.RELAY, purpose, role, send_key=send_key, receive_key=receive_key)

    def verify(self, public_key: bytes) -> None:
        """Check that the device holds the private key of `public_key` (65 bytes), and that this key is the claimed device's.

        RemoteProtocolError when not: `refuse` is what is left to do. With the key of somebody else it costs what it costs with the
        claimed device's: so a relay that has no key of that device can let nobody learn this from the time that the answer takes.
        """
        self._expect(_Turn.CALLER)
        registration = self._claim.registration
        if registration is not None and registration.public_key != public_key:
            raise RemoteProtocolError("the device registers another key than the retained one")
        if not hmac.compare_digest(self._mac, self._proofs.mac):
            raise RemoteProtocolError("the device's keys do not belong to this connection")
        verify(public_key, DEVICE_SIGNATURE, self._signed, self._proofs.signature)
        if DeviceID.from_public_key(public_key) != self._claim.device_id:
            raise RemoteProtocolError("the device's key does not belong to its device ID")
        self._turn = _Turn.VERDICT

    def welcome(self) -> bytes:
        """WELCOME for the verified device. After it `channel` is the connection."""
        self._expect(_Turn.VERDICT)
        self._over, self._turn = True, _Turn.WELCOMED
        self._channel.receive_data(self._frames.take_all())
        return self._channel.send(Welcome(self._claim.device_id, self._observed, self._now, self._limits))

    def refuse(self, reason: Reason, retry_after: int = 0, detail: str = "") -> bytes:
        """The refusal for a device that has identified itself, verified or not. Nothing may follow it."""
        self._expect(_Turn.CALLER, _Turn.VERDICT)
        self._over, self._turn = True, _Turn.OVER
        return self._channel.send(HopError(reason, retry_after, detail))

    @property
    def channel(self) -> HopChannel:
        """The channel of the welcomed device; LocalProtocolError before `welcome`."""
        self._expect(_Turn.WELCOMED)
        return self._channel

    def _expect(self, *turns: _Turn) -> None:
        if self._turn not in turns:
            raise LocalProtocolError(f"not now: the relay's handshake is at {self._turn.name}")
