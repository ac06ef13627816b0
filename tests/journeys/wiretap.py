"""Stands in front of a relay and keeps a copy of every byte that passes, and reads what a process has in its memory."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.journeys.targets import LOOPBACK

CHUNK = 1 << 20
OVERLAP = 256  # more than any needle: one that lies across two chunks is found


@dataclass
class Wiretap:
    """A TCP forwarder to `relay_port`; `heard` is all that went either way."""

    port: int
    relay_port: int = 0
    heard: bytearray = field(default_factory=bytearray)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        """Copy one direction to its end."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self.lock:
                    self.heard += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def wiretap() -> Iterator[Wiretap]:
    """A tap whose `relay_port` is set once the relay listens; what is connected when the block ends, is cut."""
    sockets: list[socket.socket] = []
    listener = socket.create_server((LOOPBACK, 0))
    tap = Wiretap(listener.getsockname()[1])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                sockets.append(client)
                relay = socket.create_connection((LOOPBACK, tap.relay_port))
                sockets.append(relay)
                tap.connections += 1
                for ends in ((client, relay), (relay, client)):
                    threading.Thread(target=tap.carry, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield tap
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def found_in_memory(pid: int, wanted: re.Pattern[bytes]) -> set[bytes]:
    """Every text of this pattern in the memory that a process of this user can write. OSError where that may not be read."""
    found: set[bytes] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            extent, modes, *_ = line.split()
            if not modes.startswith("rw"):
                continue
            start, end = (int(each, 16) for each in extent.split("-"))
            for place in range(start, end, CHUNK):
                with contextlib.suppress(OSError, ValueError):  # gone, or not to be read as memory
                    memory.seek(place)
                    found |= set(wanted.findall(memory.read(min(CHUNK, end - place) + OVERLAP)))
    return found
