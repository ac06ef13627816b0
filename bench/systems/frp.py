"""frp with `stcp` and `sudp`: a server, a client beside the service, and a visitor beside the app: the same four hops as tuunel.

The visitor encrypts to the server and the server to the client, each under a secret that the server has too.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.door import Door
from bench.peers import find, output
from bench.place import LOOPBACK, Place, Places
from bench.ports import await_listener, free_port
from bench.process import Process, Processes
from bench.systems.system import Route, Transport

_SERVER = """
bindAddr = "{address}"
bindPort = {relay}
auth.token = "benchmark"
log.level = "error"
"""

_CLIENT = """
serverAddr = "{address}"
serverPort = {relay}
auth.token = "benchmark"
log.level = "error"
"""

_SERVICE = """
[[proxies]]
name = "service"
type = "s{transport}"
secretKey = "between the two"
localIP = "127.0.0.1"
localPort = {service}
transport.useEncryption = true
"""

_VISITOR = """
[[visitors]]
name = "app"
type = "s{transport}"
serverName = "service"
secretKey = "between the two"
bindAddr = "127.0.0.1"
bindPort = {app}
transport.useEncryption = true
"""


class Frp:
    name = "frp"
    hops = "app - frpc visitor - frps - frpc - service"
    readable = "relay"
    socks = False
    transports = frozenset(Transport)

    def version(self) -> str:
        find("frpc")
        return output([find("frps"), "--version"])

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        relay_port, app = free_port(), free_port()
        values = {
            "address": places.relay.address,
            "relay": relay_port,
            "app": app,
            "service": service,
            "transport": transport.value,
        }
        with ExitStack() as ending:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))

            def start(role: str, place: Place, program: str, settings: str) -> Process:
                path = folder / f"{role}.toml"
                path.write_text(settings.format(**values))
                return ending.enter_context(Process([find(program), "-c", str(path)], place=place))

            relay = start("relay", places.relay, "frps", _SERVER)
            await_listener(relay, relay_port)
            agent = start("agent", places.service, "frpc", _CLIENT + _SERVICE)
            visitor = start("forward", places.app, "frpc", _CLIENT + _VISITOR)
            yield Route(Door(LOOPBACK, app), {"forward": Processes(visitor), "relay": Processes(relay), "agent": Processes(agent)})
