"""Byte layouts of what the two proxies say to each other: OFFER, INIT, ACCEPT, and the types and bodies of records.

OPEN, which the relay reads too, is `tuunel.relay.wire.OpenRequest`. Decoding takes untrusted bytes and raises nothing but
RemoteProtocolError. Source: docs/spec/end-to-end.md (handshake), docs/spec/records.md (records).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Annotated, Final, Self

from tuunel.address import HostPort
from tuunel.e2e.params import Parameters, ParamsField
from tuunel.errors import Failure, Reason, RemoteProtocolError
from tuunel.relay.fields import U8, U16, U64, Enumeration, HostPortField, Prefixed, Raw, Reader, Struct, Text

VERSION: Final = 1
POINT: Final = 65  #: an uncompressed P-256 point
SIGNATURE: Final = 64  #: fixed r || s
DIGEST: Final = 32
KEM_PUBLIC: Final = 1184  #: ML-KEM-768 encapsulation key, FIPS 203 section 8
KEM_CIPHERTEXT: Final = 1088  #: ML-KEM-768 ciphertext, FIPS 203 section 8
INVITE_ID: Final = 8
INVITE_PROOF: Final = 32

PAD_BLOCK: Final = 256  #: messages whose length would tell the target's are padded to a multiple of this
HOST_CEILING: Final = 255  #: bytes; the longest DNS name, and far above any address text
UNIX_PATH_CEILING: Final = 107  #: bytes; what Linux takes as the path of a unix socket
DETAIL_CEILING: Final = 200  #: bytes; one sentence for a person
HANDSHAKE_CEILING: Final = 768  #: plaintext bytes of INIT or ACCEPT: every field and PARAMS_CEILING, rounded up to a block
PADDED_CEILING: Final = 512  #: body bytes of a padded record: its fields with HOST_CEILING, rounded up to a block

#: What an agent can say, and its byte in ACCEPT, ERROR, RESET and FLOW_CLOSE. 0 is no reason.
REASON_CODES: Final[Mapping[Reason, int]] = MappingProxyType(
    {
        Reason.NOT_PAIRED: 0x01,
        Reason.INVITE_INVALID: 0x02,
        Reason.POLICY_DENIED: 0x03,
        Reason.POLICY_REVOKED: 0x04,
        Reason.CONNECTION_REFUSED: 0x10,
        Reason.HOST_UNREACHABLE: 0x11,
        Reason.NET_UNREACHABLE: 0x12,
        Reason.NAME_NOT_RESOLVED: 0x13,
        Reason.CONNECT_TIMEOUT: 0x14,
        Reason.UNSUPPORTED: 0x15,
        Reason.LIMIT: 0x20,
        Reason.SHUTDOWN: 0x21,
        Reason.INTERNAL: 0x22,
        Reason.KILLED: 0x23,
    }
)
_REASONS: Final[Mapping[int, Reason]] = MappingProxyType({code: reason for reason, code in REASON_CODES.items()})


class RecordType(IntEnum):
    """The first plaintext byte of a record. docs/spec/records.md section 2."""

    DATA = 0x01
    FIN = 0x02
    RESET = 0x03
    CONNECT = 0x10
    CONNECTED = 0x11
    ERROR = 0x12
    KEY_UPDATE = 0x20
    PING = 0x21
    PONG = 0x22
    PAD = 0x23
    DGRAM = 0x30
    FLOW_OPEN = 0x31
    FLOW_CLOSE = 0x32
    # Reserved for later versions: no version 1 end sends them, and each is refused as an unknown type is.
    DATA_PADDED = 0x04
    CONTROL = 0x40


FIN_BODY: Final = b"\x00"  #: FIN's flags; bits that are not defined are ignored
FIN_RECYCLABLE: Final = b"\x01"  #: bit 0: the sender would use the tunnel again
PING_NONCE: Final = 8  #: body bytes of PING, given back by PONG


class Direction(Enum):
    """Which way a stream of records flows."""

    FORWARD_TO_AGENT = "f2r"
    AGENT_TO_FORWARD = "r2f"


class Phase(Enum):
    """Where one direction of a tunnel stands."""

    STANDBY = "standby"  #: nothing but housekeeping so far
    OPEN = "open"  #: app bytes or flows may come; the first record decides
    STREAM = "stream"  #: app bytes flow
    FLOWS = "flows"  #: flows are opened and closed, and carry datagrams
    FINISHED = "finished"  #: FIN has passed
    REFUSED = "refused"  #: ERROR has passed: no app bytes will ever flow
    ABORTED = "aborted"  #: RESET has passed


_HOUSEKEEPING: Final = (RecordType.KEY_UPDATE, RecordType.PING, RecordType.PONG, RecordType.PAD)
_Table = Mapping[tuple[Phase, RecordType], Phase]

#: What says something about one flow: its body begins with the flow's number.
FLOW_RECORDS: Final = (RecordType.FLOW_OPEN, RecordType.DGRAM, RecordType.FLOW_CLOSE)


def _table(opening: Mapping[RecordType, Phase], first_of_flows: tuple[RecordType, ...]) -> _Table:
    table = {(Phase.STANDBY, kind): phase for kind, phase in opening.items()}
    table |= {(phase, RecordType.DATA): Phase.STREAM for phase in (Phase.OPEN, Phase.STREAM)}
    table |= {(Phase.OPEN, kind): Phase.FLOWS for kind in first_of_flows}
    table |= {(Phase.FLOWS, kind): Phase.FLOWS for kind in FLOW_RECORDS}
    table |= {(phase, RecordType.FIN): Phase.FINISHED for phase in (Phase.OPEN, Phase.STREAM, Phase.FLOWS)}
    for phase in set(Phase) - {Phase.ABORTED}:
        table |= {(phase, kind): phase for kind in _HOUSEKEEPING}
        table[phase, RecordType.RESET] = Phase.ABORTED
    table[Phase.FINISHED, RecordType.KEY_UPDATE] = Phase.STANDBY  # the tunnel's next use, if both ends have offered it
    return MappingProxyType(table)


#: The order of records, for both ends: what may come in each phase, and the phase behind it. Anything else is a breach.
TRANSITIONS: Final[Mapping[Direction, _Table]] = MappingProxyType(
    {
        Direction.FORWARD_TO_AGENT: _table({RecordType.CONNECT: Phase.OPEN}, (RecordType.FLOW_OPEN,)),
        Direction.AGENT_TO_FORWARD: _table(
            {RecordType.CONNECTED: Phase.OPEN, RecordType.ERROR: Phase.REFUSED},
            (RecordType.FLOW_OPEN, RecordType.FLOW_CLOSE),  # an agent may refuse the first flow
        ),
    }
)

MAX_BODY: Final = 262144  #: above it a record costs more waiting and memory than it saves in CPU
MAX_EARLY_BODY: Final = 16384  #: while the peer's identity is not proven, nothing above it is sent or accepted
FLOW_NUMBER: Final = 2  #: bytes in front of every body of `FLOW_RECORDS`
MAX_DATAGRAM: Final = 65507  #: payload bytes; the most that UDP over IPv4 carries

#: Body lengths of a record: least, most, and what they are a multiple of.
BODY_LENGTHS: Final[Mapping[RecordType, tuple[int, int, int]]] = MappingProxyType(
    {
        RecordType.DATA: (1, MAX_BODY, 1),  # an empty one would read as an end
        RecordType.FIN: (1, 1, 1),
        RecordType.RESET: (1, 1, 1),
        RecordType.CONNECT: (PAD_BLOCK, PADDED_CEILING, PAD_BLOCK),
        RecordType.CONNECTED: (PAD_BLOCK, PADDED_CEILING, PAD_BLOCK),
        RecordType.ERROR: (PAD_BLOCK, PAD_BLOCK, PAD_BLOCK),
        RecordType.KEY_UPDATE: (0, 0, 1),
        RecordType.PING: (PING_NONCE, PING_NONCE, 1),
        RecordType.PONG: (PING_NONCE, PING_NONCE, 1),
        RecordType.PAD: (0, MAX_BODY, 1),
        RecordType.DGRAM: (FLOW_NUMBER, FLOW_NUMBER + MAX_DATAGRAM, 1),  # an empty datagram is one
        RecordType.FLOW_OPEN: (PAD_BLOCK, PADDED_CEILING, PAD_BLOCK),
        RecordType.FLOW_CLOSE: (PAD_BLOCK, PAD_BLOCK, PAD_BLOCK),
    }
)


def is_recyclable(flags: int) -> bool:
    """Whether FIN's flags say that the sender would use the tunnel again."""
    return bool(flags & FIN_RECYCLABLE[0])


def fits(kind: RecordType, length: int) -> bool:
    """Whether a record of this type can have a body of this length."""
    least, most, multiple = BODY_LENGTHS[kind]
    return least <= length <= most and not length % multiple


class ReasonField:
    """One byte of `REASON_CODES`; a reason that an agent has no business to say is written as INTERNAL."""

    def encode(self, value: Reason) -> bytes:
        """See `tuunel.relay.fields.Field`."""
        return bytes([REASON_CODES.get(value, REASON_CODES[Reason.INTERNAL])])

    def read(self, reader: Reader) -> Reason:
        """See `tuunel.relay.fields.Field`."""
        code = reader.integer(1)
        if code not in _REASONS:
            raise RemoteProtocolError(f"{code} is no reason code")
        return _REASONS[code]


class OptionalReasonField(ReasonField):
    """One byte: 0 for None, else as `ReasonField`."""

    def encode(self, value: Reason | None) -> bytes:
        """See `tuunel.relay.fields.Field`."""
        return b"\x00" if value is None else super().encode(value)

    def read(self, reader: Reader) -> Reason | None:  # type: ignore[override]
        """See `tuunel.relay.fields.Field`."""
        code = reader.take(1)
        return None if code == b"\x00" else super().read(Reader(code))


class HostField:
    """A host name or address text behind a one-byte length: printable ASCII without spaces, at most `HOST_CEILING` bytes; may be empty."""

    def encode(self, value: str) -> bytes:
        """Failure(NAME_NOT_RESOLVED) for a host that no name can be: it comes from an app."""
        if len(value) > HOST_CEILING or not _is_graphic(value):
            raise Failure(Reason.NAME_NOT_RESOLVED, detail="the host is too long or not printable ASCII")
        return _HOST.encode(value.encode())

    def read(self, reader: Reader) -> str:
        """See `tuunel.relay.fields.Field`."""
        host = _HOST.read(reader).decode("latin-1")
        if not _is_graphic(host):
            raise RemoteProtocolError("a host is not printable ASCII")
        return host


_HOST: Final = Prefixed(1, HOST_CEILING)


def _is_graphic(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


@dataclass(frozen=True, slots=True)
class InviteProof:
    """Which invite the forward proxy holds, and HMAC-SHA256(proof key, t3), which shows it."""

    id: bytes
    proof: bytes


class InviteField:
    """Flags, one byte; with bit 0 an invite's id and proof follow. The other bits are refused."""

    def encode(self, value: InviteProof | None) -> bytes:
        """See `tuunel.relay.fields.Field`."""
        return b"\x00" if value is None else b"\x01" + Raw(INVITE_ID).encode(value.id) + Raw(INVITE_PROOF).encode(value.proof)

    def read(self, reader: Reader) -> InviteProof | None:
        """See `tuunel.relay.fields.Field`."""
        flags = reader.integer(1)
        if flags > 1:
            raise RemoteProtocolError("INIT has unknown flags")
        return InviteProof(reader.take(INVITE_ID), reader.take(INVITE_PROOF)) if flags else None


@dataclass(frozen=True, slots=True)
class Offer(Struct):
    """An agent's signed one-time keys for one connection. docs/spec/end-to-end.md section 2."""

    version: Annotated[int, U8]
    ephemeral: Annotated[bytes, Raw(POINT)]
    kem_public: Annotated[bytes, Raw(KEM_PUBLIC)]
    not_after: Annotated[int, U64]  #: unix seconds
    relay_id: Annotated[bytes, Raw(DIGEST)]
    identity: Annotated[bytes, Raw(POINT)]
    signature: Annotated[bytes, Raw(SIGNATURE)]

    LENGTH = 1 + POINT + KEM_PUBLIC + 8 + DIGEST + POINT + SIGNATURE

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """See `Struct`; nothing but form and version is checked here."""
        offer = super(Offer, cls).decode(data)
        if offer.version != VERSION:
            raise RemoteProtocolError(f"an offer has the unknown version {offer.version}")
        return offer


class Padded(Struct):
    """A struct that is followed by zeros up to a multiple of `PAD_BLOCK`."""

    __slots__ = ()

    def encode(self) -> bytes:
        """The bytes of this struct and its padding."""
        fields = super().encode()
        return fields + bytes(-len(fields) % PAD_BLOCK)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The struct that is exactly `data`, padding included."""
        reader = Reader(data)
        decoded = cls.read(reader)
        padding = reader.rest()
        if len(padding) >= PAD_BLOCK or len(data) % PAD_BLOCK or any(padding):
            raise RemoteProtocolError("a message has wrong padding")
        return decoded


class Purpose(IntEnum):
    """What the forward proxy wants the tunnel for."""

    STANDBY = 1  #: CONNECT comes later
    CONNECT = 2  #: CONNECT follows at once


@dataclass(frozen=True, slots=True)
class Init(Padded):
    """The plaintext of INIT. docs/spec/end-to-end.md section 5."""

    identity: Annotated[bytes, Raw(POINT)]
    signature: Annotated[bytes, Raw(SIGNATURE)]
    invite: Annotated[InviteProof | None, InviteField()]
    purpose: Annotated[Purpose, Enumeration(Purpose)]
    params: Annotated[Parameters, ParamsField()]


@dataclass(frozen=True, slots=True)
class Accept(Padded):
    """The plaintext of ACCEPT; `refusal` is None when the tunnel is accepted. docs/spec/end-to-end.md section 6."""

    refusal: Annotated[Reason | None, OptionalReasonField()]
    signature: Annotated[bytes, Raw(SIGNATURE)]
    params: Annotated[Parameters, ParamsField()]


class Command(IntEnum):
    """What CONNECT asks for, and what `host` and `port` of its `Target` are."""

    TCP = 1  #: a name or address text as seen from the agent, empty for the agent's own localhost; and its port
    UDP = 2  #: no target, "" and 0: each flow names its own
    UNIX = 3  #: the absolute path of a socket on the agent's machine, and 0
    SERVICE = 4  #: the name of a service of the agent itself, and 0; asked only of an agent that announces it


#: What an agent of this version announces: the commands that an older one takes for a breach.
ANNOUNCED: Final = frozenset({Command.SERVICE})


@dataclass(frozen=True, slots=True)
class Target(Padded):
    """Body of CONNECT. docs/spec/records.md section 2."""

    command: Annotated[Command, Enumeration(Command)]
    host: Annotated[str, HostField()]
    port: Annotated[int, U16]

    def encode(self) -> bytes:
        """The padded body; Failure(NAME_NOT_RESOLVED) for a host or path that none can be: it comes from a person or an app."""
        if not _is_meant(self.command, self.host, self.port):
            raise Failure(Reason.NAME_NOT_RESOLVED, detail=f"a {self.command.name} request cannot name {self.host!r}, port {self.port}")
        return super(Target, self).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """See `Padded`; a request with anything but its command's form is refused too."""
        target = super(Target, cls).decode(data)
        if not _is_meant(target.command, target.host, target.port):
            raise RemoteProtocolError(f"a {target.command.name} request has a wrong host or port")
        return target


def _is_meant(command: Command, host: str, port: int) -> bool:
    match command:
        case Command.UDP:
            return not host and not port
        case Command.UNIX:
            return host.startswith("/") and len(host) <= UNIX_PATH_CEILING and not port
        case Command.SERVICE:
            return bool(host) and not port
    return True


@dataclass(frozen=True, slots=True)
class Connected(Padded):
    """Body of CONNECTED: the local address of the agent's socket to the target."""

    bound: Annotated[HostPort, HostPortField()]


@dataclass(frozen=True, slots=True)
class Error(Padded):
    """Body of ERROR: why there is no connection to the target; `detail` is untrusted text, cut to `DETAIL_CEILING` bytes."""

    reason: Annotated[Reason, ReasonField()]
    detail: Annotated[str, Text(DETAIL_CEILING)]


@dataclass(frozen=True, slots=True)
class Reset(Struct):
    """Body of RESET; None means that the socket behind the sender was reset, or lost."""

    reason: Annotated[Reason | None, OptionalReasonField()]
