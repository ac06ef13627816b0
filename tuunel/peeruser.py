"""Which user of this machine is at the other end of a TCP connection: for front doors on loopback, which every user can reach.

The kernel knows it of each socket. It is asked for the client's own one, by the addresses and ports of the connection: through its
diagnostic interface (sock_diag(7)), else by reading /proc/net/tcp and tcp6 (proc(5)). Both exist on Linux only, and need no right.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, TypeAlias

from tuunel.address import HostPort
from tuunel.rawstream import RawStream

Address: TypeAlias = IPv4Address | IPv6Address

MAX_TABLE: Final = 2 * 1024 * 1024  #: bytes of a table that are read, some 14,000 sockets: reading holds up every other connection
TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
OVERFLOW_USER: Final = Path("/proc/sys/kernel/overflowuid")
USER_MAP: Final = Path("/proc/self/uid_map")
EVERY_USER: Final = ["0", "0", "4294967295"]  # user_namespaces(7): the map of the first namespace

#: include/net/tcp_states.h: a client that is connected, or has ended its side, or has been ended by ours.
ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 4, 5, 8, 9, 11
CONNECTED: Final = frozenset({ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING})

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
ALL_STATES: Final = 0xFFFFFFFF
NO_COOKIE: Final = 0xFFFFFFFF
HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
REQUEST: Final = struct.Struct("=BBxxI")  # family, protocol, states
PORTS: Final = struct.Struct(">HH")  # of this end, of the other
REST: Final = struct.Struct("=III")  # interface, cookie
ANSWER: Final = struct.Struct("=BBxx48x12xII")  # family, state, ... user, inode
MAX_ANSWER: Final = 65536


@dataclass(frozen=True, slots=True)
class _Owner:
    """What the kernel says of one socket."""

    state: int
    user: int
    inode: int

    @property
    def holds_it(self) -> bool:
        """Whether a process has the socket open. Of one that was closed the kernel says user 0, whoever has had it."""
        return self.state in CONNECTED and self.inode != 0


def peer_user(stream: RawStream) -> int | None:
    """Return the user ID that has opened the other end of a TCP connection within this machine; None where it cannot be told.

    It cannot be told: on other systems than Linux; of a peer on another machine or in another network namespace; of a user that this
    process's user namespace does not know; when the peer has closed its socket, or the connection is lost, before the answer is here.
    The answer is about who has opened the socket: whoever was given it later, and whatever a privileged service does for others, is
    its opener. Blocks for less than a millisecond; where there is no sock_diag, for as long as the kernel takes
    to write at most MAX_TABLE bytes.
    """
    if stream.is_unix or sys.platform != "linux":
        return None
    try:
        near, far = stream.local, stream.peer
        owner = _find(stream, far, near)
        if owner is None or not owner.holds_it:
            return None
        # Still the same connection: had it been lost before, others could have opened one with its addresses and ports by now.
        return owner.user if stream.peer == far and _is_known(owner.user) else None
    except (OSError, ValueError):
        return None


def _find(stream: RawStream, far: HostPort, near: HostPort) -> _Owner | None:
    """The socket of this machine that is the other end of the stream's."""
    try:
        found = _ask_kernel(far, near)
        if found is not None or _ask_kernel(near, far) is not None:
            return found
    except OSError:
        pass  # built without it, or its container forbids it
    if stream.peer != far:  # a lost connection is in no table
        return None
    return _read_tables(far, near)


def _ask_kernel(end: HostPort, other: HostPort) -> _Owner | None:
    """Ask for exactly this socket. OSError when the kernel does not answer such questions."""
    here, there = _packed(end.host), _packed(other.host)
    family = socket.AF_INET if len(here) == 4 else socket.AF_INET6
    ends = PORTS.pack(end.port, other.port) + here.ljust(16, b"\0") + there.ljust(16, b"\0")
    request = REQUEST.pack(family, socket.IPPROTO_TCP, ALL_STATES) + ends + REST.pack(0, NO_COOKIE, NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(0)  # the answer is there when the question has been sent
        asking.send(HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + request)
        answer = asking.recv(MAX_ANSWER)
    _, kind, _, _, _ = HEADER.unpack_from(answer)
    if kind != SOCK_DIAG_BY_FAMILY:
        (error,) = struct.unpack_from("=i", answer, HEADER.size)
        if -error == errno.ENOENT:  # there is no such socket; or nobody there to look for it
            return None
        raise OSError(-error, os.strerror(-error))
    _, state, user, inode = ANSWER.unpack_from(answer, HEADER.size)
    if PORTS.unpack_from(answer, HEADER.size + 4) != (end.port, other.port):
        return None  # a listener on the client's port, where the client's own socket is gone
    return _Owner(state, user, inode)


@lru_cache(maxsize=64)
def _packed(host: str) -> bytes:
    return ip_address(host).packed


def _read_tables(end: HostPort, other: HostPort) -> _Owner | None:
    """Look for the socket in the kernel's tables, as IPv4 and as IPv4 in the clothes of IPv6."""
    wanted = [f" {_written(here)} {_written(there)} " for here, there in _spellings(end, other)]
    for table in TABLES:
        content = _content(table)
        for ends in wanted:
            _, found, rest = content.partition(ends)
            fields = rest.partition("\n")[0].split()
            if found and len(fields) > 6:
                return _Owner(int(fields[0], 16), int(fields[4]), int(fields[6]))
    return None


def _content(table: Path) -> str:
    content = b""
    try:
        with table.open("rb", buffering=0) as file:
            while part := file.read(65536):
                content += part
                if len(content) > MAX_TABLE:
                    raise ValueError("too many sockets to look through")
    except FileNotFoundError:  # no IPv6 here
        pass
    return content.decode("ascii")


def _spellings(end: HostPort, other: HostPort) -> Iterator[tuple[tuple[Address, int], tuple[Address, int]]]:
    here, there = ip_address(end.host), ip_address(other.host)
    yield (here, end.port), (there, other.port)
    if isinstance(here, IPv4Address) and isinstance(there, IPv4Address):
        yield (_mapped(here), end.port), (_mapped(there), other.port)


def _mapped(address: IPv4Address) -> IPv6Address:
    return IPv6Address(0xFFFF << 32 | int(address))


def _written(endpoint: tuple[Address, int]) -> str:
    """As in the tables: 32-bit words in the machine's own order, then the port."""
    address, port = endpoint
    packed = address.packed
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    return f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"


def _is_known(user: int) -> bool:
    """Whether the number stands for one user. In a user namespace one number stands for everybody who has none there."""
    return _knows_everybody(USER_MAP) or user != int(OVERFLOW_USER.read_text())


@cache
def _knows_everybody(user_map: Path) -> bool:
    """Whether every user has a number in this process's user namespace. Asked once: a map is written once, and until then has nobody.

    Source: user_namespaces(7).
    """
    return user_map.read_text().split() == EVERY_USER
