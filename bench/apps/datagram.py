"""The datagrams of the UDP workloads: `kind u8 | trial u32 | sent_ns u64`, then zeros up to the size that is asked.

`sent_ns` is the monotonic clock, which all processes of one machine share.
"""

import struct
from typing import NamedTuple

SIZE = 1200  # what fits every path of the Internet, and what games and HTTP/3 send
LATE_NS = 100_000_000  # a datagram that waited longer is of no use to a call or a game

ECHO, COUNT, REPORT = 1, 2, 3  # send it back; count it; tell the count of this trial, as JSON

_HEADER = struct.Struct("!BIQ")


class Header(NamedTuple):
    kind: int
    trial: int
    sent_ns: int


def write(kind: int, trial: int = 0, sent_ns: int = 0, size: int = SIZE) -> bytearray:
    """Return a datagram."""
    datagram = bytearray(max(size, _HEADER.size))
    stamp(datagram, kind, trial, sent_ns)
    return datagram


def stamp(datagram: bytearray, kind: int, trial: int, sent_ns: int) -> None:
    """Write the header of `datagram` anew, in place."""
    _HEADER.pack_into(datagram, 0, kind, trial, sent_ns)


def read(datagram: bytes | bytearray | memoryview) -> Header:
    """Return the header; struct.error when the datagram is shorter than one."""
    return Header(*_HEADER.unpack_from(datagram))
