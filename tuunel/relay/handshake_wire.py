"""Byte layouts of the hop handshake's messages M1 to M3: docs/spec/hop-handshake.md section 3. (M4, WELCOME, is a hop message.)"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final, Self

from tuunel.errors import RemoteProtocolError
from tuunel.identity import POINT_LENGTH, SIGNATURE_LENGTH, DeviceID
from tuunel.relay.fields import U8, U16, U32, DeviceIDField, Enumeration, ListOf, Prefixed, Raw, Reader, Rest, Struct, Text
from tuunel.relay.framing import LENGTH, TAG
from tuunel.relay.protocol import may_carry
from tuunel.relay.wire import Params, Purpose, Role

MAGIC: Final = b"TNL1"
RANDOM: Final = 32
MAC: Final = 32
TOKEN: Final = 16  #: bytes of an enrolment token
LABEL_CEILING: Final = 64  #: bytes; a device's name for people, nothing depends on it
HELLO_CEILING: Final = 512  #: bytes of M1 in all: one small segment is all that an unknown peer gets to say
HELLO_FIXED: Final = 2 + RANDOM + POINT_LENGTH
EXTENSIONS_CEILING: Final = HELLO_CEILING - len(MAGIC) - LENGTH - HELLO_FIXED
HELLO_REPLY: Final = 1 + RANDOM + POINT_LENGTH
VERSION_REFUSAL: Final = 3  #: 00 || lowest || highest version that the relay speaks
CHAIN_CEILING: Final = 8192  #: bytes of certificates: a leaf, a root and room for two between them
CERTIFICATES_CEILING: Final = 4
PARAMS_CEILING: Final = 256  #: bytes; version 1 uses far less, later versions may append
PAD_TO: Final = 256  #: RELAY_AUTH is padded to a multiple of this
DEVICE_AUTH: Final = 512  #: plaintext of DEVICE_AUTH, always: a registration looks like a login
DEVICE_AUTH_SEALED: Final = DEVICE_AUTH + TAG
PROOFS: Final = SIGNATURE_LENGTH + MAC
RELAY_AUTH_CEILING: Final = 2 + CHAIN_CEILING + 2 + PARAMS_CEILING + PROOFS + PAD_TO + TAG
RELAY_AUTH_FLOOR: Final = 2 + 2 + PROOFS + TAG


class Kind(IntEnum):
    """Whether a device brings its identity key, or only the ID under which the relay retained it."""

    REGISTER = 1
    LOGIN = 2


@dataclass(frozen=True, slots=True)
class Hello(Struct):
    """M1 behind magic and length. Extensions are a later version's: ignored, but under both signatures."""

    ver_min: Annotated[int, U8]
    ver_max: Annotated[int, U8]
    random: Annotated[bytes, Raw(RANDOM)]
    point: Annotated[bytes, Raw(POINT_LENGTH)]
    extensions: Annotated[bytes, Rest(EXTENSIONS_CEILING)] = b""


@dataclass(frozen=True, slots=True)
class HelloReply(Struct):
    """The clear part of M2 behind its length."""

    version: Annotated[int, U8]
    random: Annotated[bytes, Raw(RANDOM)]
    point: Annotated[bytes, Raw(POINT_LENGTH)]


@dataclass(frozen=True, slots=True)
class VersionRefusal(Struct):
    """Instead of HELLO_REPLY: the relay speaks none of the versions offered. Nothing vouches for it."""

    version: Annotated[int, U8]
    ver_min: Annotated[int, U8]
    ver_max: Annotated[int, U8]


@dataclass(frozen=True, slots=True)
class RelayParams(Struct):
    """What a relay says of itself under its signature. `max_record` in bytes, `ping_interval` in seconds of silence."""

    relay_id: Annotated[bytes, Raw(32)]
    features: Annotated[int, U32]
    max_record: Annotated[int, U16]
    ping_interval: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class RelayClaim(Struct):
    """What sigS signs: the certificate chain (DER, leaf first) and the relay's parameters."""

    chain: Annotated[bytes, Prefixed(2, CHAIN_CEILING)]
    params: Annotated[bytes, Prefixed(2, PARAMS_CEILING)]

    @classmethod
    def of(cls, certificates: tuple[bytes, ...], params: RelayParams) -> Self:
        """The claim of these certificates and parameters."""
        return cls(_CERTIFICATES.encode(certificates), params.encode())

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """The chain, taken apart."""
        reader = Reader(self.chain)
        certificates = _CERTIFICATES.read(reader)
        reader.end()
        return certificates

    @property
    def relay_params(self) -> RelayParams:
        """The parameters known to this version; a later one may have appended more."""
        return RelayParams.read(Reader(self.params))


_CERTIFICATES: Final = ListOf(Prefixed(2, CHAIN_CEILING), CERTIFICATES_CEILING)


@dataclass(frozen=True, slots=True)
class Registration(Struct):
    """What only REGISTER carries: the identity key, an enrolment token or nothing, and a name for people (untrusted text)."""

    public_key: Annotated[bytes, Raw(POINT_LENGTH)]
    token: Annotated[bytes, Prefixed(1, TOKEN)] = field(repr=False)
    label: Annotated[str, Text(LABEL_CEILING)]


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """What sigP signs: who the device is and what this connection is for. `registration` is None for a login."""

    purpose: Purpose
    device_id: DeviceID
    registration: Registration | None
    params: Params

    @property
    def kind(self) -> Kind:
        """REGISTER or LOGIN."""
        return Kind.LOGIN if self.registration is None else Kind.REGISTER

    def encode(self) -> bytes:
        """kind u8 || purpose u8 || device id 25 || [registration] || params length u16 || params."""
        registration = b"" if self.registration is None else self.registration.encode()
        params = Prefixed(2, PARAMS_CEILING).encode(self.params.encode())
        return bytes([self.kind, self.purpose]) + self.device_id.raw + registration + params

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """The claim at the front of `reader`."""
        kind = Enumeration(Kind).read(reader)
        purpose = Purpose(Enumeration(Purpose).read(reader))
        device_id = DeviceIDField().read(reader)
        registration = Registration.read(reader) if kind is Kind.REGISTER else None
        if registration is not None and len(registration.token) not in (0, TOKEN):
            raise RemoteProtocolError("an enrolment token has a wrong length")
        params = Params.read(Reader(Prefixed(2, PARAMS_CEILING).read(reader)))
        if not may_carry(purpose, Role(params.role)):
            raise RemoteProtocolError("that role opens no connection for that purpose")
        return cls(purpose, device_id, registration, params)


@dataclass(frozen=True, slots=True)
class Proofs(Struct):
    """What ends RELAY_AUTH and DEVICE_AUTH: a signature over the transcript, a MAC under the agreed key, and padding."""

    signature: Annotated[bytes, Raw(SIGNATURE_LENGTH)]
    mac: Annotated[bytes, Raw(MAC)]
    pad: Annotated[bytes, Rest(DEVICE_AUTH)]
