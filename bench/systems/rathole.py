"""rathole with Noise: a server that the app sends to, and a client beside the service. It has no part beside the app: one hop fewer."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.door import Door
from bench.peers import find, output
from bench.place import Place, Places
from bench.ports import free_port
from bench.process import Process, Processes
from bench.systems.system import Route, Transport

_SERVER = """
[server]
bind_addr = "{address}:{relay}"
default_token = "benchmark"
[server.transport]
type = "noise"
[server.transport.noise]
local_private_key = "{private}"
[server.services.service]
type = "{transport}"
bind_addr = "{address}:{app}"
"""

_CLIENT = """
[client]
remote_addr = "{address}:{relay}"
default_token = "benchmark"
[client.transport]
type = "noise"
[client.transport.noise]
remote_public_key = "{public}"
[client.services.service]
type = "{transport}"
local_addr = "127.0.0.1:{service}"
"""


class Rathole:
    name = "rathole"
    hops = "app - rathole server - rathole client - service"
    readable = "relay"
    socks = False
    transports = frozenset(Transport)

    def version(self) -> str:
        return version_in(output([find("rathole"), "--version"]))

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        program = find("rathole")
        private, public = keys_in(output([program, "--genkey"]))
        app = free_port()
        values = {
            "address": places.relay.address,
            "relay": free_port(),
            "app": app,
            "service": service,
            "transport": transport.value,
            "private": private,
            "public": public,
        }
        with ExitStack() as ending:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))

            def start(role: str, place: Place, settings: str) -> Processes:
                path = folder / f"{role}.toml"
                path.write_text(settings.format(**values))
                return Processes(ending.enter_context(Process([program, str(path)], place=place, env={"RUST_LOG": "error"})))

            roles = {"relay": start("relay", places.relay, _SERVER), "agent": start("agent", places.service, _CLIENT)}
            yield Route(Door(places.relay.address, app), roles)


def version_in(text: str) -> str:
    """Return the version that `rathole --version` tells among other lines; "unknown" when it tells none."""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return lines.get("Build Version", "unknown").strip()


def keys_in(text: str) -> tuple[str, str]:
    """Return the private and the public key that `rathole --genkey` printed."""
    _, private, _, public = (line for line in text.splitlines() if line.strip())
    return private, public
