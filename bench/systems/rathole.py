"""rathole with Noise: a server that the app sends to, and a client beside the service. It has no part beside the app: one hop fewer."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peers import find, output
from bench.ports import free_port
from bench.process import Process
from bench.systems.system import Route

_SERVER = """
[server]
bind_addr = "127.0.0.1:{relay}"
default_token = "benchmark"
[server.transport]
type = "noise"
[server.transport.noise]
local_private_key = "{private}"
[server.services.service]
type = "udp"
bind_addr = "127.0.0.1:{app}"
"""

_CLIENT = """
[client]
remote_addr = "127.0.0.1:{relay}"
default_token = "benchmark"
[client.transport]
type = "noise"
[client.transport.noise]
remote_public_key = "{public}"
[client.services.service]
type = "udp"
local_addr = "127.0.0.1:{service}"
"""


class Rathole:
    name = "rathole"
    hops = "app - rathole server - rathole client - service"
    readable = "relay"

    def version(self) -> str:
        return version_in(output([find("rathole"), "--version"]))

    @contextmanager
    def udp(self, service: int) -> Iterator[Route]:
        program = find("rathole")
        private, public = keys_in(output([program, "--genkey"]))
        app = free_port()
        values = {"relay": free_port(), "app": app, "service": service, "private": private, "public": public}
        with ExitStack() as ending:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))

            def start(role: str, settings: str) -> Process:
                path = folder / f"{role}.toml"
                path.write_text(settings.format(**values))
                return ending.enter_context(Process([program, str(path)], env={"RUST_LOG": "error"}))

            yield Route(("127.0.0.1", app), {"relay": start("relay", _SERVER), "agent": start("agent", _CLIENT)})


def version_in(text: str) -> str:
    """Return the version that `rathole --version` tells among other lines; "unknown" when it tells none."""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return lines.get("Build Version", "unknown").strip()


def keys_in(text: str) -> tuple[str, str]:
    """Return the private and the public key that `rathole --genkey` printed."""
    _, private, _, public = (line for line in text.splitlines() if line.strip())
    return private, public
