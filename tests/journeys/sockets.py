"""What the kernel knows about sockets: whose they are, what is stuck in them, and when they are gone."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED, TIME_WAIT, LISTEN = 0x01, 0x06, 0x0A


@dataclass(frozen=True)
class Row:
    """One TCP or UDP socket of this machine; `queued` bytes wait in it, unread or unsent."""

    local: int
    remote: int
    state: int
    queued: int
    inode: int


def tcp_sockets() -> list[Row]:
    """Every TCP socket of this network namespace."""
    return _rows("/proc/net/tcp", "/proc/net/tcp6")


def udp_sockets() -> list[Row]:
    """Every UDP socket of this network namespace; those that are connected are `ESTABLISHED`."""
    return _rows("/proc/net/udp", "/proc/net/udp6")


def _rows(*tables: str) -> list[Row]:
    rows = []
    for table in tables:
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            queued = sum(int(part, 16) for part in fields[4].split(":"))
            local, remote = (int(fields[n].rpartition(":")[2], 16) for n in (1, 2))
            rows.append(Row(local, remote, int(fields[3], 16), queued, int(fields[9])))
    return rows


def live_connections(pid: int) -> set[int]:
    """The established TCP sockets of the process, which may live in another network namespace."""
    rows = _rows(f"/proc/{pid}/net/tcp", f"/proc/{pid}/net/tcp6")
    return {row.inode for row in rows if row.state == ESTABLISHED} & inodes_of(pid)


def flows_to(port: int) -> int:
    """How many UDP sockets are connected to this port."""
    return sum(1 for row in udp_sockets() if row.remote == port and row.state == ESTABLISHED)


def inodes_of(pid: int) -> set[int]:
    """The sockets that the process holds."""
    inodes = set()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                link = str(descriptor.readlink())
                if link.startswith("socket:["):
                    inodes.add(int(link[8:-1]))
    return inodes


def stuck(pid: int) -> set[int]:
    """The established sockets of the process in which bytes wait."""
    waiting = {row.inode for row in tcp_sockets() if row.state == ESTABLISHED and row.queued}
    return waiting & inodes_of(pid)


def listens(port: int) -> bool:
    """Whether something listens on this TCP port: asked without connecting, so that it does not notice."""
    return any(row.local == port and row.state == LISTEN for row in tcp_sockets())


def facing(remote: int, *, local: int | None = None) -> int:
    """How many sockets have `remote` as the port of their other end; those that only wait out their time do not count.

    Where `remote` is a port that the kernel chose for a client, another program's may have the same number: name the server's as `local`.
    """
    return sum(1 for row in tcp_sockets() if row.remote == remote and row.state != TIME_WAIT and local in {None, row.local})
