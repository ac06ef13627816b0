"""gost with relay+tls: a relay, a remote forward beside the service, and a local one beside the app. TLS on each leg, none end to end."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.door import Door
from bench.peers import find, output
from bench.place import LOOPBACK, Place, Places
from bench.ports import await_listener, free_port
from bench.process import Process, Processes
from bench.systems.system import Route, Transport


class Gost:
    name = "gost"
    hops = "app - gost - gost relay - gost - service"
    readable = "relay"
    socks = False
    transports = frozenset(Transport)

    def version(self) -> str:
        return output([find("gost"), "-V"])

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        program, kind, address = find("gost"), transport.value, places.relay.address
        relay_port, inside, app = free_port(), free_port(), free_port()
        chain = ("-F", f"relay+tls://{address}:{relay_port}")
        flow = "?keepAlive=true" if transport is Transport.UDP else ""
        with ExitStack() as ending:

            def start(place: Place, *arguments: str) -> Process:
                return ending.enter_context(Process([program, *arguments], place=place))

            relay = start(places.relay, "-L", f"relay+tls://{address}:{relay_port}?bind=true")
            await_listener(relay, relay_port)
            agent = start(places.service, "-L", f"r{kind}://{LOOPBACK}:{inside}/{LOOPBACK}:{service}", *chain)
            forward = start(places.app, "-L", f"{kind}://{LOOPBACK}:{app}/{LOOPBACK}:{inside}{flow}", *chain)
            yield Route(Door(LOOPBACK, app), {"forward": Processes(forward), "relay": Processes(relay), "agent": Processes(agent)})
