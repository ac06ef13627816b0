"""Free ports, for the systems that must be told one."""

import socket
import time
from pathlib import Path

from bench.process import Process, ProcessFailed

_LISTEN_SECONDS = 10.0
_LISTENING = "0A"  # the kernel's number of that state


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free for TCP and UDP at this moment."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def await_listener(process: Process, port: int) -> None:
    """Return once somebody in the network of `process` listens on TCP `port`; it is not connected to. ProcessFailed after 10 s."""
    end = time.monotonic() + _LISTEN_SECONDS
    while time.monotonic() < end:
        tables = (Path(f"/proc/{process.pid}/net/{name}") for name in ("tcp", "tcp6"))
        if any(port in listening_in(table.read_text(encoding="ascii")) for table in tables):
            return
        time.sleep(0.02)
    raise ProcessFailed(f"nobody listens on port {port}: {process.said()}")


def listening_in(table: str) -> set[int]:
    """Return the ports on which somebody listens, from the text of /proc/PID/net/tcp."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTENING}
