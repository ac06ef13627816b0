"""The header in front of each datagram of a UDP association. Source: RFC 1928 section 7, docs/spec/front-doors.md section 3.1."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError
from tuunel.frontdoor import read_target
from tuunel.socks.wire import address_size, read_address

FIXED: Final = 3  # bytes in front of the address: rsv 00 00 | frag 00
CACHED: Final = 1024  # headers whose meaning is kept, under 1 MiB: a client sends the same few over and over


@dataclass(frozen=True, slots=True)
class Datagram:
    """rsv 00 00 | frag 00 | atyp 1 | IPv4 4, IPv6 16, or length 1 and name | port u16, which is `header`; then `payload`.

    What the target answers goes back behind this very header, at most 262 bytes: then it names the target as the client did.
    """

    header: bytes
    target: HostPort
    payload: bytes


def read_datagram(data: bytes) -> Datagram:
    """Take a client's datagram apart.

    RemoteProtocolError for one that is cut short or malformed, for a target that none can be, and for fragments, which are not
    put together again (RFC 1928 section 7 wants them dropped then).
    """
    size = address_size(data, FIXED)
    if size is None or len(data) < FIXED + size:
        raise RemoteProtocolError("a datagram ends in the middle of its header")
    header = data[: FIXED + size]
    return Datagram(header, _read_header(header), data[FIXED + size :])


@lru_cache(maxsize=CACHED)
def _read_header(header: bytes) -> HostPort:
    if header[:2] != b"\x00\x00":
        raise RemoteProtocolError("the reserved bytes of a datagram are not zero")
    if header[2]:
        raise RemoteProtocolError("fragments of datagrams are not supported")
    address = read_address(header, FIXED)
    assert address is not None, "a header is whole"
    return read_target(*address[:2])
