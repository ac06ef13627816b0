"""tuunel: a relay, an agent beside the service, and beside the app a static forward or the SOCKS5 proxy."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

from bench.door import Door
from bench.place import LOOPBACK, Place, Places
from bench.process import Process, Processes, python
from bench.systems.system import Route, Transport

NAME = "home.tuunel"


class Tuunel:
    name = "tuunel"
    readable = "nobody"

    def __init__(self, *, socks: bool = False) -> None:
        self.socks = socks
        self.name = f"{Tuunel.name}-socks" if socks else Tuunel.name
        self.hops = f"app - {'proxy' if socks else 'forward'} - relay - agent - service"
        self.transports = frozenset([Transport.TCP] if socks else Transport)

    def version(self) -> str:
        return metadata.version("tuunel")

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        with running(places) as started:
            if self.socks:
                listen = started.start("forward", places.app, started.laptop, "proxy", "--listen", f"{LOOPBACK}:0")["listen"]
                target = (NAME, service)
            else:
                udp = "/udp" if transport is Transport.UDP else ""
                listen = started.start("forward", places.app, started.laptop, "forward", f"{LOOPBACK}:0:{NAME}:{service}{udp}")["listen"]
                target = None
            port = int(listen.removesuffix("/udp").rpartition(":")[2])
            yield Route(Door(LOOPBACK, port, target), {role: started.roles[role] for role in ("forward", "relay", "agent")})


class Running:
    """A relay, an agent, and a laptop that is paired with it. `laptop` is the laptop's state, for more to be started there."""

    def __init__(self, ending: ExitStack, places: Places) -> None:
        self._ending = ending
        self.roles: dict[str, Processes] = {}
        relay, agent, self.laptop = (Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="tuu"))) for _ in range(3))
        address = places.relay.address
        link = self.start("relay", places.relay, relay, "relay", "serve", "--listen", f"{address}:0", "--advertise", address)["link"]
        invite = self.start("agent", places.service, agent, "agent", link)["invite"]
        pair = python("tuunel", "pair", invite, "--name", "home", "--json")
        with Process(pair, place=places.app, env={"TUUNEL_HOME": str(self.laptop)}) as pairing:
            pairing.answer()

    def start(self, role: str, place: Place, home: Path, *arguments: str) -> dict[str, str]:
        """Start a long-running command and return its ready line."""
        argv = python("tuunel", *arguments, "--json", "--log-level", "error")  # as its peers: who logs each connection has more to do
        process = Process(argv, place=place, env={"TUUNEL_HOME": str(home)})
        self.roles[role] = Processes(self._ending.enter_context(process))
        ready: dict[str, str] = process.answer()
        return ready


@contextmanager
def running(places: Places) -> Iterator[Running]:
    """Start a relay, an agent and a paired laptop; everything ends with the block."""
    with ExitStack() as ending:
        yield Running(ending, places)
