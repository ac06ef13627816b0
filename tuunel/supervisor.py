"""What systemd, or whoever else started this process, hears of it: ready, reloading, stopping, a line of status, and signs of life.

The protocol of sd_notify(3): datagrams of `NAME=value` lines to the unix socket that NOTIFY_SOCKET names, `@` standing for the zero
byte of an abstract one. Nobody has to listen: without the variable nothing is sent, and a datagram that cannot be sent is dropped.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import anyio

from tuunel.events import Event, Ready, RelayStateChanged, printable

MICROSECONDS: Final = 1_000_000
GRACE: Final = 10.0  #: seconds to end in, after connections have had theirs


class Supervisor:
    """Whoever listens on NOTIFY_SOCKET. Call it with each event: `Ready` is passed on, and the state of relays becomes the status."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._status = ""
        self.interval = _watchdog_interval(environ) if self._address else None  #: seconds between signs of life; None: none are wanted

    def __call__(self, event: Event) -> None:
        """Pass on what a supervisor wants to know."""
        if isinstance(event, Ready):
            self._send("READY=1", *([] if self._status else [f"STATUS=ready{f' on {event.listen}' if event.listen else ''}"]))
        elif isinstance(event, RelayStateChanged):
            detail = f": {printable(event.detail)}" if event.detail else ""
            status = f"STATUS=relay {printable(event.relay)} {event.state}{detail}"
            if status != self._status:
                self._status = status
                self._send(status)

    def reloading(self) -> None:
        """The settings are being read again; `reloaded` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """The reload is over, well or not."""
        self._send("READY=1")

    def stopping(self, within: float) -> None:
        """The process ends in order, in so many seconds at most."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((within + GRACE) * MICROSECONDS)}")

    async def show_life(self) -> None:
        """Send a sign of life at half the time in which one is due, until cancelled: from the event loop, for one that hangs shows none."""
        while self.interval is not None:
            self._send("WATCHDOG=1")
            await anyio.sleep(self.interval)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0)  # a supervisor that does not read must not hold us up
            sender.sendto("\n".join(lines).encode(), address)


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC, in seconds, if it is meant for this process."""
    with suppress(ValueError):
        due = int(environ.get("WATCHDOG_USEC", ""))
        if due > 0 and int(environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid():
            return due / MICROSECONDS / 2
    return None
