"""frp with `sudp`: a server, a client beside the service, and a visitor beside the app: the same four hops as tuunel.

The visitor encrypts to the server and the server to the client, each under a secret that the server has too.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peers import find, output
from bench.ports import await_listener, free_port
from bench.process import Process
from bench.systems.system import Route

_SERVER = """
bindAddr = "127.0.0.1"
bindPort = {relay}
auth.token = "benchmark"
log.level = "error"
"""

_CLIENT = """
serverAddr = "127.0.0.1"
serverPort = {relay}
auth.token = "benchmark"
log.level = "error"
"""

_SERVICE = """
[[proxies]]
name = "service"
type = "sudp"
secretKey = "between the two"
localIP = "127.0.0.1"
localPort = {service}
transport.useEncryption = true
"""

_VISITOR = """
[[visitors]]
name = "app"
type = "sudp"
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

    def version(self) -> str:
        find("frpc")
        return output([find("frps"), "--version"])

    @contextmanager
    def udp(self, service: int) -> Iterator[Route]:
        ports = {"relay": free_port(), "app": free_port(), "service": service}
        with ExitStack() as ending:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))

            def start(role: str, program: str, settings: str) -> Process:
                path = folder / f"{role}.toml"
                path.write_text(settings.format(**ports))
                return ending.enter_context(Process([find(program), "-c", str(path)]))

            relay = start("relay", "frps", _SERVER)
            await_listener(ports["relay"])
            agent = start("agent", "frpc", _CLIENT + _SERVICE)
            visitor = start("forward", "frpc", _CLIENT + _VISITOR)
            yield Route(("127.0.0.1", ports["app"]), {"forward": visitor, "relay": relay, "agent": agent})
