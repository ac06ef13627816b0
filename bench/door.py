"""The port that an app is told to use."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Door:
    """Where the app connects: a port that leads to the service by itself, or, with `target`, a SOCKS5 proxy to be asked for that."""

    host: str
    port: int
    target: tuple[str, int] | None = None

    def arguments(self) -> list[str]:
        """Return the words that tell an app of this door on its command line."""
        return [self.host, str(self.port), *([self.target[0], str(self.target[1])] if self.target else [])]


def read_door(arguments: Sequence[str]) -> Door:
    """Return the door that `Door.arguments` has put into words."""
    host, port, *target = arguments
    return Door(host, int(port), (target[0], int(target[1])) if target else None)
