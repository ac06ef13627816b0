"""The layouts of SOCKS messages: RFC 1928 (SOCKS5), RFC 1929 (its user name and password), and the SOCKS4 and SOCKS4a papers.

Every `read_*` takes what has arrived so far and returns the message and the number of bytes it took, or None when more are needed.
RemoteProtocolError as soon as the bytes cannot become a message. No message is longer than `MAX_MESSAGE`.
"""

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError

VERSION_5: Final = 0x05
VERSION_4: Final = 0x04
VERSION_AUTH: Final = 0x01  # of the RFC 1929 sub-negotiation

MAX_MESSAGE: Final = 520  # the longest is SOCKS4a's: ver 1 | cmd 1 | port 2 | address 4 | user ID 255 | 00 | name 255 | 00
MAX_SOCKS4_FIELD: Final = 255  # user ID and name have no length field in SOCKS4: the ceiling is SOCKS5's


class Method(IntEnum):
    """How a SOCKS5 client shows who it is: RFC 1928 section 3."""

    NO_AUTH = 0x00
    PASSWORD = 0x02
    NONE_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """What a client asks for: RFC 1928 section 4."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class Reply(IntEnum):
    """The SOCKS5 replies that are not in `errors.ANSWERS`: RFC 1928 section 6."""

    SUCCEEDED = 0x00
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class Reply4(IntEnum):
    """The replies of SOCKS4."""

    GRANTED = 0x5A
    REJECTED = 0x5B


class AddressType(IntEnum):
    """The form of an address in SOCKS5: RFC 1928 section 5."""

    IPV4 = 0x01
    NAME = 0x03
    IPV6 = 0x04


_ADDRESS_TYPES: Final = frozenset(AddressType)


class UnknownAddressType(RemoteProtocolError):
    """The request's address has a form that RFC 1928 does not know."""


@dataclass(frozen=True, slots=True)
class Socks5Request:
    """ver 05 | cmd 1 | rsv 00 | atyp 1 | IPv4 4, IPv6 16, or length 1 and name | port u16."""

    command: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Socks4Request:
    """ver 04 | cmd 1 | port u16 | IPv4 4 | user ID | 00 | SOCKS4a: name | 00, when the address is 0.0.0.x with x not 0."""

    command: int
    host: str
    port: int


def read_methods(data: bytes) -> tuple[bytes, int] | None:
    """Read a SOCKS5 greeting, ver 05 | nmethods 1 | methods: the methods offered."""
    _check_version(data, VERSION_5)
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    end = 2 + data[1]
    return data[2:end], end


def read_password(data: bytes) -> tuple[tuple[bytes, bytes], int] | None:
    """Read RFC 1929's ver 01 | ulen 1 | uname | plen 1 | passwd: user name and password."""
    _check_version(data, VERSION_AUTH)
    if len(data) < 2 or len(data) < (end := 2 + data[1]) + 1 or len(data) < (last := end + 1 + data[end]):
        return None
    return (data[2:end], data[end + 1 : last]), last


def read_socks5_request(data: bytes) -> tuple[Socks5Request, int] | None:
    """Read a SOCKS5 request. UnknownAddressType for an address form that RFC 1928 does not have."""
    _check_version(data, VERSION_5)
    address = read_address(data, 3)
    if address is None:
        return None
    host, port, end = address
    return Socks5Request(data[1], host, port), end


def address_size(data: bytes, start: int) -> int | None:
    """Tell how long atyp 1 | IPv4 4, IPv6 16, or length 1 and name | port u16 is; None when too little is here to tell.

    UnknownAddressType for another atyp.
    """
    if len(data) > start and data[start] not in _ADDRESS_TYPES:  # told at once: such a client may send nothing more
        raise UnknownAddressType(f"address type {data[start]:#04x} is not known")
    if len(data) < start + 2:
        return None
    match data[start]:
        case AddressType.IPV4:
            return 7
        case AddressType.IPV6:
            return 19
        case _:
            return 4 + data[start + 1]


def read_address(data: bytes, start: int) -> tuple[str, int, int] | None:
    """Read what `address_size` measures: host, port, and where they end; None when more bytes are needed."""
    size = address_size(data, start)
    if size is None or len(data) < start + size:
        return None
    end = start + size
    is_name = data[start] == AddressType.NAME
    host = _read_name(data[start + 2 : end - 2]) if is_name else str(ip_address(data[start + 1 : end - 2]))
    return host, int.from_bytes(data[end - 2 : end]), end


def read_socks4_request(data: bytes) -> tuple[Socks4Request, int] | None:
    """Read a SOCKS4 or SOCKS4a request; the user ID is not told, because it proves nothing."""
    _check_version(data, VERSION_4)
    user = _read_field(data, 8)
    if user is None:
        return None
    _, end = user
    address = IPv4Address(data[4:8])
    host = str(address)
    if 0 < int(address) < 256:
        name = _read_field(data, end)
        if name is None:
            return None
        host, end = _read_name(name[0]), name[1]
    return Socks4Request(data[1], host, int.from_bytes(data[2:4])), end


def write_method(method: Method) -> bytes:
    """Write the answer to a greeting: ver 05 | method."""
    return bytes((VERSION_5, method))


def write_password_status(*, right: bool) -> bytes:
    """Write RFC 1929's answer: ver 01 | status, 00 for success."""
    return bytes((VERSION_AUTH, 0 if right else 1))


def write_socks5_reply(reply: int, bound: HostPort | None = None) -> bytes:
    """Write ver 05 | rep | rsv 00 | atyp | bound address | port; 0.0.0.0:0 when nothing numeric is known."""
    address, port = _numeric(bound)
    kind = AddressType.IPV4 if address.version == 4 else AddressType.IPV6
    return bytes((VERSION_5, reply, 0, kind)) + address.packed + port.to_bytes(2)


def write_socks4_reply(reply: Reply4) -> bytes:
    """Write ver 00 | reply | port u16 | IPv4; both are zero, since they mean nothing for CONNECT."""
    return bytes((0, reply)) + bytes(6)


def _check_version(data: bytes, version: int) -> None:
    if data and data[0] != version:
        raise RemoteProtocolError(f"version {data[0]:#04x} where {version:#04x} must stand")


def _read_name(name: bytes) -> str:
    try:
        return name.decode("ascii")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("a name must be ASCII; international names are written as xn--...") from error


def _read_field(data: bytes, start: int) -> tuple[bytes, int] | None:
    end = data.find(0, start, start + MAX_SOCKS4_FIELD + 1)
    if end >= 0:
        return data[start:end], end + 1
    if len(data) > start + MAX_SOCKS4_FIELD:
        raise RemoteProtocolError(f"a field is longer than {MAX_SOCKS4_FIELD} bytes")
    return None


def _numeric(bound: HostPort | None) -> tuple[IPv4Address | IPv6Address, int]:
    if bound is not None:
        try:
            return ip_address(bound.host), bound.port
        except ValueError:
            pass
    return IPv4Address(0), 0
