"""Where the processes of a system run: on loopback, or in network namespaces with a way between them."""

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """One host of a system: its address to the others, and what a command line must begin with to run there."""

    address: str = LOOPBACK
    prefix: tuple[str, ...] = ()

    @property
    def listen(self) -> str:
        """Where a service listens that both this host and the others shall reach."""
        return LOOPBACK if self.address == LOOPBACK else "0.0.0.0"


HERE = Place()


@dataclass(frozen=True)
class Places:
    """The three hosts of a system: the app's, the relay's and the service's. App and service reach the relay only."""

    app: Place = HERE
    relay: Place = HERE
    service: Place = HERE


ON_LOOPBACK = Places()
