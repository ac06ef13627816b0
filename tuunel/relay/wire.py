"""Byte layouts of the hop messages, which a device and the relay exchange under the keys of their handshake.

Normative text: docs/spec/tunnel.md section 2. Of an OPEN and an OFFER the relay reads only what stands here: who is asked
for, and the two public keys that name the tunnel.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final, Self

from tuunel.address import HostPort
from tuunel.errors import Reason, RemoteProtocolError
from tuunel.identity import DeviceID
from tuunel.relay.fields import (
    U8,
    U16,
    U32,
    U64,
    DeviceIDField,
    Enumeration,
    FlagField,
    HostPortField,
    ListOf,
    Nested,
    OutcomeField,
    Raw,
    ReasonField,
    Rest,
    Struct,
    Text,
)

VERSION: Final = 1
POINT: Final = 65  #: bytes of an uncompressed P-256 point
DETAIL_CEILING: Final = 200  #: bytes; one sentence for a person
OPEN_CEILING: Final = 100  #: bytes; an OPEN with an invite id, exactly
OFFER_CEILING: Final = 4096  #: bytes; an offer of version 1 has 1419
ADMISSION_ENTRIES: Final = 256  #: entries of each list in one ADMISSION: 256 x (25 + 8 + 25) stays below one record

AGENT_POINT_AT: Final = 1  #: where eR starts in an OFFER: behind its version byte


class Side(IntEnum):
    """Which end of a hop this is."""

    DEVICE = 1
    RELAY = 2


class Purpose(IntEnum):
    """What a connection to the relay is for."""

    CONTROL = 1
    READY = 2
    DIAL = 3


class Role(IntEnum):
    """What the device is on this connection."""

    AGENT = 1
    FORWARD = 2


_FLAG = FlagField()
_DEVICE = DeviceIDField()


# What messages are made of


@dataclass(frozen=True, slots=True)
class Params(Struct):
    """What a device says of a connection: its role there, and the random id of the running instance that it belongs to."""

    role: Annotated[Role, Enumeration(Role)]
    instance: Annotated[bytes, Raw(16)]


@dataclass(frozen=True, slots=True)
class Limits(Struct):
    """What the relay grants one device: READY connections, DIAL connections, and pipes at a time."""

    ready: Annotated[int, U16]
    dial: Annotated[int, U16]
    pipes: Annotated[int, U16]


# The messages


@dataclass(frozen=True, slots=True)
class Welcome(Struct):
    """M4, relay to device: authenticated. Issues the device ID; `observed` is where the relay saw the connection come from."""

    device_id: Annotated[DeviceID, _DEVICE]
    observed: Annotated[HostPort, HostPortField()]
    relay_time: Annotated[int, U64]
    limits: Annotated[Limits, Nested(Limits)]


@dataclass(frozen=True, slots=True)
class HopError(Struct):
    """Relay to device: the handshake or one OPEN is refused, or this connection ends. `retry_after` in seconds, 0 for nothing said."""

    reason: Annotated[Reason, ReasonField()]
    retry_after: Annotated[int, U32] = 0
    detail: Annotated[str, Text(DETAIL_CEILING)] = ""


@dataclass(frozen=True, slots=True)
class Ping(Struct):
    """Either way: are you there?"""

    nonce: Annotated[bytes, Raw(8)]


@dataclass(frozen=True, slots=True)
class Pong(Struct):
    """The answer to a `Ping`, with its nonce."""

    nonce: Annotated[bytes, Raw(8)]


@dataclass(frozen=True, slots=True)
class Offer(Struct):
    """READY, agent to relay: a signed one-time prekey. Opaque to the relay but for the public point that names the tunnel."""

    body: Annotated[bytes, Rest(OFFER_CEILING)]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """See `Struct`."""
        if len(data) < AGENT_POINT_AT + POINT:
            raise RemoteProtocolError("an OFFER has no point")
        return super(Offer, cls).decode(data)

    @property
    def point(self) -> bytes:
        """eR, 65 bytes, unchecked."""
        return self.body[AGENT_POINT_AT : AGENT_POINT_AT + POINT]


@dataclass(frozen=True, slots=True)
class OpenRequest(Struct):
    """What an OPEN says in clear to the relay: version, flags, the agent's device ID, and the forward proxy's public point."""

    version: Annotated[int, U8]
    flags: Annotated[int, U8]
    device: Annotated[DeviceID, _DEVICE]
    point: Annotated[bytes, Raw(POINT)]
    invite: Annotated[bytes, Rest(8)]

    HAS_INVITE = 1

    @property
    def invite_id(self) -> bytes | None:
        """The 8 bytes that name an invite of the agent, or None."""
        return self.invite or None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """See `Struct`."""
        request = super(OpenRequest, cls).decode(data)
        if request.version != VERSION or request.flags > cls.HAS_INVITE or len(request.invite) != 8 * request.flags:
            raise RemoteProtocolError("an OPEN has a version, flags or a length that mean nothing")
        return request


@dataclass(frozen=True, slots=True)
class Open(Struct):
    """DIAL, forward proxy to relay: connect me with that agent. `body` goes to the agent verbatim: it is under the end-to-end keys."""

    body: Annotated[bytes, Rest(OPEN_CEILING)]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """See `Struct`; an OPEN that says nothing sensible to the relay is refused here."""
        OpenRequest.decode(data)
        return super(Open, cls).decode(data)

    @property
    def request(self) -> OpenRequest:
        """What the relay may read."""
        return OpenRequest.decode(self.body)


@dataclass(frozen=True, slots=True)
class PairedForward(Struct):
    """DIAL, the relay's last hop record to the forward proxy: the agent's OFFER, verbatim."""

    offer: Annotated[bytes, Rest(OFFER_CEILING)]


@dataclass(frozen=True, slots=True)
class PairedAgent(Struct):
    """READY, the relay's last hop record to the agent: the other's identity key (as the relay retained it) and its OPEN, verbatim."""

    public_key: Annotated[bytes, Raw(POINT)]
    open: Annotated[bytes, Rest(OPEN_CEILING)]


@dataclass(frozen=True, slots=True)
class Switch(Struct):
    """READY, the agent's last hop record: what follows are the tunnel's own bytes."""


@dataclass(frozen=True, slots=True)
class Admission(Struct):
    """CONTROL, agent to relay: whom to let through. One list spans the records from `first` to `last` and then replaces the old one.

    `enrolled` admits every device enrolled at this relay; `revoked` may open once a minute, so that the agent itself can say so.
    """

    first: Annotated[bool, _FLAG]
    last: Annotated[bool, _FLAG]
    enrolled: Annotated[bool, _FLAG]
    paired: Annotated[tuple[DeviceID, ...], ListOf(_DEVICE, ADMISSION_ENTRIES)] = ()
    invites: Annotated[tuple[bytes, ...], ListOf(Raw(8), ADMISSION_ENTRIES)] = ()
    revoked: Annotated[tuple[DeviceID, ...], ListOf(_DEVICE, ADMISSION_ENTRIES)] = ()


@dataclass(frozen=True, slots=True)
class Demand(Struct):
    """CONTROL, relay to device: keep this many READY (agent) or DIAL (forward proxy) connections waiting."""

    want: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class Mint(Struct):
    """CONTROL, agent to relay: accept this enrolment token for the invite. The relay learns the token's hash only.

    `expires` in Unix seconds. `request` is echoed in the answer.
    """

    request: Annotated[int, U32]
    token_hash: Annotated[bytes, Raw(32)]
    invite_id: Annotated[bytes, Raw(8)]
    uses: Annotated[int, U16]
    expires: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class Minted(Struct):
    """CONTROL, relay to agent: the token of `request` is accepted (`reason` None), or why not."""

    request: Annotated[int, U32]
    reason: Annotated[Reason | None, OutcomeField()] = None
    retry_after: Annotated[int, U32] = 0
    detail: Annotated[str, Text(DETAIL_CEILING)] = ""


@dataclass(frozen=True, slots=True)
class DropToken(Struct):
    """CONTROL, agent to relay: that token's invite is gone, enrol nobody with it any more."""

    token_hash: Annotated[bytes, Raw(32)]


@dataclass(frozen=True, slots=True)
class Unenrol(Struct):
    """CONTROL, agent to relay: this device was revoked here; forget it unless somebody else sponsors it."""

    device: Annotated[DeviceID, _DEVICE]


@dataclass(frozen=True, slots=True)
class Notice(Struct):
    """CONTROL, relay to device: news of a tunnel (its id) or of the device itself (empty id)."""

    reason: Annotated[Reason, ReasonField()]
    tunnel_id: Annotated[str, Text(16)] = ""
    detail: Annotated[str, Text(DETAIL_CEILING)] = ""


Message = (
    Welcome | HopError | Ping | Pong | Offer | Open | PairedForward | PairedAgent | Switch
    | Admission | Demand | Mint | Minted | DropToken | Unenrol | Notice
)  # fmt: skip

#: The first byte of a hop record's plaintext.
MESSAGE_TYPES: Final[dict[int, type[Message]]] = {
    0x01: Welcome,
    0x02: HopError,
    0x03: Ping,
    0x04: Pong,
    0x10: Offer,
    0x11: Open,
    0x12: PairedForward,
    0x13: PairedAgent,
    0x14: Switch,
    0x20: Admission,
    0x21: Demand,
    0x22: Mint,
    0x23: Minted,
    0x24: DropToken,
    0x25: Unenrol,
    0x26: Notice,
}
_CODES: Final[dict[type[Message], int]] = {message: code for code, message in MESSAGE_TYPES.items()}


def encode_message(message: Message) -> bytes:
    """type u8 || body: the plaintext of one hop record."""
    return bytes([_CODES[type(message)]]) + message.encode()


def decode_message(plaintext: bytes) -> Message:
    """The message that a hop record's plaintext holds; RemoteProtocolError for anything else."""
    if not plaintext or plaintext[0] not in MESSAGE_TYPES:
        raise RemoteProtocolError("a hop record has no type or an unknown one")
    return MESSAGE_TYPES[plaintext[0]].decode(plaintext[1:])


def tunnel_id(agent_point: bytes, forward_point: bytes) -> str:
    """The name of a tunnel in all three logs: 8 characters from the two public points (docs/spec/tunnel.md section 4)."""
    digest = hashlib.sha256(b"tuunel/1 tunnel id\0" + agent_point + forward_point).digest()
    return base64.b32encode(digest[:5]).decode().lower()


def token_hash(token: bytes) -> bytes:
    """What the relay stores of an enrolment token: it never holds one that is still worth stealing."""
    return hashlib.sha256(b"tuunel/1 enrolment token\0" + token).digest()


def admission_records(
    *, enrolled: bool, paired: Iterable[DeviceID], invites: Iterable[bytes], revoked: Iterable[DeviceID]
) -> Iterator[Admission]:
    """An admission list of any length as the ADMISSION messages that carry it, in order; at least one."""
    members, open_invites, former = tuple(paired), tuple(invites), tuple(revoked)
    longest = max(len(members), len(open_invites), len(former))
    starts = range(0, max(longest, 1), ADMISSION_ENTRIES)
    for start in starts:
        part = slice(start, start + ADMISSION_ENTRIES)
        yield Admission(
            first=start == starts[0],
            last=start == starts[-1],
            enrolled=enrolled,
            paired=members[part],
            invites=open_invites[part],
            revoked=former[part],
        )
