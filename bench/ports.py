"""Free ports, for the systems that must be told one."""

import contextlib
import socket
import time

_LISTEN_SECONDS = 10.0


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


def await_listener(port: int) -> None:
    """Return once somebody accepts TCP connections on `port`; TimeoutError after 10 s. For clients that do not wait for their server."""
    end = time.monotonic() + _LISTEN_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")
