"""Field codecs: how the byte layouts of docs/spec/hop-handshake.md and docs/spec/tunnel.md are written down once.

A `Struct` is a dataclass whose annotations carry the codec of each field, in wire order:

    @dataclass(frozen=True, slots=True)
    class Demand(Struct):
        want: Annotated[int, U16]

Integers are big-endian. Decoding takes untrusted bytes: whatever is missing, left over, above its ceiling or without a
meaning is a RemoteProtocolError. Encoding a value that its field cannot hold is a LocalProtocolError.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, Protocol, Self, get_type_hints

from tuunel.address import HostPort
from tuunel.errors import LocalProtocolError, Reason, RemoteProtocolError, UsageError
from tuunel.identity import DEVICE_ID_LENGTH, DeviceID

HOST_CEILING = 255  #: bytes; the longest DNS name, and far above any address text


class Reader:
    """Takes fields off the front of untrusted bytes."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def position(self) -> int:
        """How many bytes have been taken."""
        return self._position

    def take(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        end = self._position + length
        if end > len(self._data):
            raise RemoteProtocolError(f"a message ends {end - len(self._data)} bytes early")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def integer(self, length: int) -> int:
        """An unsigned big-endian integer of `length` bytes."""
        return int.from_bytes(self.take(length), "big")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data) - self._position)

    def end(self) -> None:
        """Check that nothing is left."""
        if self._position != len(self._data):
            raise RemoteProtocolError(f"a message has {len(self._data) - self._position} bytes too many")


class Field(Protocol):
    """One field of a layout: writes a trusted value, reads an untrusted one."""

    def encode(self, value: Any) -> bytes:
        """Bytes of `value`; LocalProtocolError when the field cannot hold it."""
        ...

    def read(self, reader: Reader) -> Any:
        """The value at the front of `reader`; RemoteProtocolError when there is none."""
        ...


class Struct:
    """A dataclass with a byte layout: its annotated fields in order, nothing between them."""

    __slots__ = ()

    _layout: ClassVar[tuple[tuple[str, Field], ...]] = ()

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True)
        cls._layout = tuple((name, hint.__metadata__[0]) for name, hint in hints.items() if hasattr(hint, "__metadata__"))

    def encode(self) -> bytes:
        """The bytes of this struct."""
        return b"".join(field.encode(getattr(self, name)) for name, field in self._layout)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """The struct at the front of `reader`; what follows stays there."""
        return cls(**{name: field.read(reader) for name, field in cls._layout})

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The struct that is exactly `data`."""
        reader = Reader(data)
        decoded = cls.read(reader)
        reader.end()
        return decoded


@dataclass(frozen=True, slots=True)
class Integer:
    """An unsigned integer of `length` bytes."""

    length: int

    def encode(self, value: int) -> bytes:
        """See `Field`."""
        try:
            return value.to_bytes(self.length, "big")
        except OverflowError:
            raise LocalProtocolError(f"{value} does not fit into {self.length} bytes") from None

    def read(self, reader: Reader) -> int:
        """See `Field`."""
        return reader.integer(self.length)


U8, U16, U32, U64 = Integer(1), Integer(2), Integer(4), Integer(8)


@dataclass(frozen=True, slots=True)
class Raw:
    """Exactly `length` bytes."""

    length: int

    def encode(self, value: bytes) -> bytes:
        """See `Field`."""
        if len(value) != self.length:
            raise LocalProtocolError(f"a field of {self.length} bytes cannot hold {len(value)}")
        return value

    def read(self, reader: Reader) -> bytes:
        """See `Field`."""
        return reader.take(self.length)


@dataclass(frozen=True, slots=True)
class Rest:
    """Everything up to the end of the message, at most `ceiling` bytes."""

    ceiling: int

    def encode(self, value: bytes) -> bytes:
        """See `Field`."""
        if len(value) > self.ceiling:
            raise LocalProtocolError(f"a field of at most {self.ceiling} bytes cannot hold {len(value)}")
        return value

    def read(self, reader: Reader) -> bytes:
        """See `Field`."""
        value = reader.rest()
        if len(value) > self.ceiling:
            raise RemoteProtocolError(f"a field of {len(value)} bytes is above its ceiling of {self.ceiling}")
        return value


@dataclass(frozen=True, slots=True)
class Prefixed:
    """A length of `width` bytes, then that many bytes, at most `ceiling`."""

    width: int
    ceiling: int

    def encode(self, value: bytes) -> bytes:
        """See `Field`."""
        if len(value) > self.ceiling:
            raise LocalProtocolError(f"a field of at most {self.ceiling} bytes cannot hold {len(value)}")
        return len(value).to_bytes(self.width, "big") + value

    def read(self, reader: Reader) -> bytes:
        """See `Field`."""
        length = reader.integer(self.width)
        if length > self.ceiling:
            raise RemoteProtocolError(f"a field of {length} bytes is above its ceiling of {self.ceiling}")
        return reader.take(length)


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 text behind a one-byte length, at most `ceiling` bytes: a longer text is cut at a character when written."""

    ceiling: int

    def encode(self, value: str) -> bytes:
        """See `Field`."""
        cut = value.encode("utf-8", "replace")[: self.ceiling].decode("utf-8", "ignore")
        return Prefixed(1, self.ceiling).encode(cut.encode())

    def read(self, reader: Reader) -> str:
        """See `Field`."""
        try:
            return Prefixed(1, self.ceiling).read(reader).decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError("a text is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class Enumeration:
    """A one-byte code; one that stands for nothing is refused."""

    kind: type[IntEnum]

    def encode(self, value: IntEnum) -> bytes:
        """See `Field`."""
        return bytes([value])

    def read(self, reader: Reader) -> IntEnum:
        """See `Field`."""
        code = reader.integer(1)
        try:
            return self.kind(code)
        except ValueError:
            raise RemoteProtocolError(f"{code} is no {self.kind.__name__.lower()}") from None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A two-byte count, then that many of `item`, at most `ceiling`."""

    item: Field
    ceiling: int

    def encode(self, value: tuple[Any, ...]) -> bytes:
        """See `Field`."""
        if len(value) > self.ceiling:
            raise LocalProtocolError(f"a list of at most {self.ceiling} cannot hold {len(value)}")
        return U16.encode(len(value)) + b"".join(map(self.item.encode, value))

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """See `Field`."""
        count = reader.integer(2)
        if count > self.ceiling:
            raise RemoteProtocolError(f"a list of {count} is above its ceiling of {self.ceiling}")
        return tuple(self.item.read(reader) for _ in range(count))


@dataclass(frozen=True, slots=True)
class Nested:
    """Another struct, in place."""

    struct: type[Struct]

    def encode(self, value: Struct) -> bytes:
        """See `Field`."""
        return value.encode()

    def read(self, reader: Reader) -> Struct:
        """See `Field`."""
        return self.struct.read(reader)


class DeviceIDField:
    """The 25 bytes of a device ID; one whose checksum is wrong is refused."""

    def encode(self, value: DeviceID) -> bytes:
        """See `Field`."""
        return value.raw

    def read(self, reader: Reader) -> DeviceID:
        """See `Field`."""
        try:
            return DeviceID(reader.take(DEVICE_ID_LENGTH))
        except UsageError:
            raise RemoteProtocolError("a device ID has a wrong checksum or version") from None


class HostPortField:
    """Host as text behind a one-byte length, then the port in two bytes."""

    def encode(self, value: HostPort) -> bytes:
        """See `Field`."""
        return Text(HOST_CEILING).encode(value.host) + U16.encode(value.port)

    def read(self, reader: Reader) -> HostPort:
        """See `Field`."""
        return HostPort(Text(HOST_CEILING).read(reader), reader.integer(2))


#: The relay's error codes. Total: a reason that the relay may say has a code, and every code a reason.
HOP_CODES: Final[dict[Reason, int]] = {
    Reason.PROTOCOL: 1,
    Reason.VERSION: 2,
    Reason.AUTH_FAILED: 3,
    Reason.DEVICE_UNKNOWN: 4,
    Reason.ENROLMENT_REQUIRED: 5,
    Reason.DEVICE_BANNED: 6,
    Reason.RATE_LIMITED: 7,
    Reason.PEER_UNAVAILABLE: 8,
    Reason.OPEN_TIMEOUT: 9,
    Reason.QUOTA: 10,
    Reason.SHUTDOWN: 11,
    Reason.DUPLICATE_DEVICE: 12,
    Reason.INTERNAL: 13,
    Reason.KILLED: 14,
}
HOP_REASONS: Final = {code: reason for reason, code in HOP_CODES.items()}


class ReasonField:
    """One byte: a code of `HOP_CODES`."""

    def encode(self, value: Reason) -> bytes:
        """See `Field`."""
        if value not in HOP_CODES:
            raise LocalProtocolError(f"{value} is nothing that the relay says")
        return bytes([HOP_CODES[value]])

    def read(self, reader: Reader) -> Reason:
        """See `Field`."""
        code = reader.integer(1)
        if code not in HOP_REASONS:
            raise RemoteProtocolError(f"{code} is no error code")
        return HOP_REASONS[code]


class OutcomeField:
    """One byte: 0 for success (None), else a code of `HOP_CODES`."""

    def encode(self, value: Reason | None) -> bytes:
        """See `Field`."""
        return b"\0" if value is None else ReasonField().encode(value)

    def read(self, reader: Reader) -> Reason | None:
        """See `Field`."""
        code = reader.integer(1)
        return None if code == 0 else ReasonField().read(Reader(bytes([code])))


class FlagField:
    """One byte that is 0 or 1."""

    def encode(self, value: bool) -> bytes:  # noqa: FBT001 - a codec's value
        """See `Field`."""
        return bytes([value])

    def read(self, reader: Reader) -> bool:
        """See `Field`."""
        value = reader.integer(1)
        if value > 1:
            raise RemoteProtocolError(f"a flag is {value}")
        return bool(value)
