"""What a system under measurement offers."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bench.door import Door
from bench.place import Places
from bench.process import Processes


class Transport(Enum):
    """What an app speaks."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True)
class Route:
    """A way from the app to the service: the door that the app uses, and the processes that stand between, by role."""

    door: Door
    roles: Mapping[str, Processes]


class System(Protocol):
    """Something that carries an app's traffic to a service: one file of this folder each, listed in `bench.systems`."""

    name: str
    hops: str  # what stands between app and service
    readable: str  # who between app and service can read the traffic
    socks: bool  # the app says by SOCKS5 where it wants to go; else a port of the app's machine or the relay's leads to the service
    transports: frozenset[Transport]

    def version(self) -> str:
        """Return the version of the program that would run. PeerMissing when it is not here."""

    def route(self, service: int, transport: Transport, places: Places) -> AbstractContextManager[Route]:
        """Start the system so that the app reaches port `service` of the service's own loopback; everything ends with the block.

        The route may need a moment after this returns: the app asks until the service answers.
        """
