"""What a system under measurement offers."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bench.process import Process


@dataclass(frozen=True)
class Route:
    """A way from the app to the service: where the app sends, and the processes that stand between, by role."""

    address: tuple[str, int]
    roles: Mapping[str, Process]


class System(Protocol):
    """Something that carries an app's traffic to a service: one file of this folder each, listed in `bench.systems`."""

    name: str
    hops: str  # what stands between app and service
    readable: str  # who between app and service can read the traffic

    def version(self) -> str:
        """Return the version of the program that would run. PeerMissing when it is not here."""

    def udp(self, service: int) -> AbstractContextManager[Route]:
        """Start the system so that datagrams reach the UDP port `service` of 127.0.0.1; everything ends with the block.

        The route may need a moment after this returns: the app asks until the service answers.
        """
