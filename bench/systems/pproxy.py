"""pproxy with Shadowsocks: a relay at which backward connections wait, and a SOCKS5 proxy beside the app.

The relay decrypts what comes from the app's side and encrypts it again for the service's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.door import Door
from bench.peers import find, output
from bench.place import LOOPBACK, Place, Places
from bench.ports import await_listener, free_port
from bench.process import Process, Processes
from bench.systems.system import Route, Transport

_CIPHER = "chacha20-ietf-poly1305:benchmark"
_WAITING = 16  # backward connections: each serves one connection of an app, then another takes its place


class Pproxy:
    name = "pproxy"
    hops = "app - pproxy - pproxy relay - pproxy - service"
    readable = "relay"
    socks = True
    transports = frozenset([Transport.TCP])

    def version(self) -> str:
        return output([find("pproxy"), "--version"])

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        program, address = find("pproxy"), places.relay.address
        asked, waited_at, app = free_port(), free_port(), free_port()
        with ExitStack() as ending:

            def start(place: Place, *arguments: str) -> Process:
                return ending.enter_context(Process([program, *arguments], place=place))

            asks = f"ss://{_CIPHER}@{address}:{asked}"
            waits = f"ss{_WAITING * '+in'}://{_CIPHER}@{address}:{waited_at}"
            relay = start(places.relay, "-l", asks, "-r", waits)
            await_listener(relay, waited_at)
            # version 2.7.9 ends when it has backward connections only: another listener, which nobody uses, keeps it
            agent = start(places.service, "-l", f"socks5://{LOOPBACK}:{free_port()}", "-l", waits)
            forward = start(places.app, "-l", f"socks5://{LOOPBACK}:{app}", "-r", asks)
            await_listener(forward, app)
            door = Door(LOOPBACK, app, (LOOPBACK, service))
            yield Route(door, {"forward": Processes(forward), "relay": Processes(relay), "agent": Processes(agent)})
