"""Notices when trying again is worth it at once: this machine has slept, or goes to its relay by another address, or by none.

Looks once a second and costs two system calls then: it works on every system, and hears nothing of interfaces that do not matter.
Source: docs/spec/tunnel.md (liveness).
"""

import socket
import time
from typing import Final

import anyio

from tuunel.address import HostPort

LOOK: Final = 1.0  #: seconds
SLEPT: Final = 5.0  #: seconds between two looks, beside LOOK, that only a machine that slept, or stood still, lets pass
#: RFC 5737, RFC 3849: nobody is there. Which of this machine's addresses would be used to go there? Nothing is sent.
FAR_AWAY: Final = (HostPort("192.0.2.1", 9), HostPort("2001:db8::1", 9))
#: The clock that goes on while the machine sleeps: where the system has none, the time of day, whose setting does no harm.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)

Way = tuple[str | None, ...]


def local_address(place: HostPort) -> str | None:
    """The address that this machine would use to go to `place`, an IP address; None while there is no way. Nothing is sent."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((place.host, place.port))
            address: str = probe.getsockname()[0]
            return address
    except OSError:
        return None


def uptime() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.time() if _CLOCK is None else time.clock_gettime(_CLOCK)


class NetworkWatch:
    """Remembers this machine's way to a relay, at first to far away, and the time of the last look."""

    def __init__(self) -> None:
        self._places: tuple[HostPort, ...] = FAR_AWAY
        self._way = self._find_way()
        self._looked = uptime()

    def aim(self, place: HostPort) -> None:
        """Watch the way to `place` from now on, the IP address by which the relay has just been reached."""
        self._places = (place,)
        self._way = self._find_way()

    async def changed(self) -> None:
        """Wait until the machine has slept, or its way is another than at the last change."""
        while True:
            await anyio.sleep(LOOK)
            now, way = uptime(), self._find_way()
            slept, self._looked = now - self._looked > LOOK + SLEPT, now
            moved, self._way = way != self._way, way
            if slept or moved:
                return

    def _find_way(self) -> Way:
        return tuple(local_address(place) for place in self._places)
