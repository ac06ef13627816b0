"""chisel: a server, a reverse client beside the service whose SOCKS5 proxy is a port of the server, and a client beside the app.

Each client has an SSH connection of its own to the server, which reads in between.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.door import Door
from bench.peers import find, output
from bench.place import LOOPBACK, Place, Places
from bench.ports import await_listener, free_port
from bench.process import Process, Processes
from bench.systems.system import Route, Transport

_WHO = ("--auth", "benchmark:benchmark")


class Chisel:
    name = "chisel"
    hops = "app - chisel client - chisel server - chisel client - service"
    readable = "relay"
    socks = True
    transports = frozenset([Transport.TCP])

    def version(self) -> str:
        return output([find("chisel"), "--version"])

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        program, address = find("chisel"), places.relay.address
        relay_port, inside, app = free_port(), free_port(), free_port()
        with ExitStack() as ending:

            def start(place: Place, *arguments: str) -> Process:
                return ending.enter_context(Process([program, *arguments], place=place))

            relay = start(places.relay, "server", "--host", address, "--port", str(relay_port), "--reverse", *_WHO)
            await_listener(relay, relay_port)
            server = f"http://{address}:{relay_port}"
            agent = start(places.service, "client", *_WHO, server, f"R:{LOOPBACK}:{inside}:socks")
            await_listener(relay, inside)
            forward = start(places.app, "client", *_WHO, server, f"{LOOPBACK}:{app}:{LOOPBACK}:{inside}")
            await_listener(forward, app)
            door = Door(LOOPBACK, app, (LOOPBACK, service))
            yield Route(door, {"forward": Processes(forward), "relay": Processes(relay), "agent": Processes(agent)})
