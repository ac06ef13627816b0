"""tuunel: a relay, an agent beside the service, and a static forward beside the app."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

from bench.process import Process, python
from bench.systems.system import Route

_LOOPBACK = "127.0.0.1"


class Tuunel:
    name = "tuunel"
    hops = "app - forward - relay - agent - service"
    readable = "nobody"

    def version(self) -> str:
        return metadata.version("tuunel")

    @contextmanager
    def udp(self, service: int) -> Iterator[Route]:
        with ExitStack() as ending:
            relay, agent, laptop = (Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="tuu"))) for _ in range(3))
            roles: dict[str, Process] = {}

            def start(role: str, home: Path, *arguments: str) -> dict[str, str]:
                process = ending.enter_context(Process(python("tuunel", *arguments, "--json"), env={"TUUNEL_HOME": str(home)}))
                roles[role] = process
                ready: dict[str, str] = process.answer()
                return ready

            link = start("relay", relay, "relay", "serve", "--listen", f"{_LOOPBACK}:0", "--advertise", _LOOPBACK)["link"]
            invite = start("agent", agent, "agent", link)["invite"]
            _pair(laptop, invite)
            listen = start("forward", laptop, "forward", f"{_LOOPBACK}:0:home.tuunel:{service}/udp")["listen"]
            yield Route(
                (_LOOPBACK, int(listen.removesuffix("/udp").rpartition(":")[2])),
                {role: roles[role] for role in ("forward", "relay", "agent")},
            )


def _pair(laptop: Path, invite: str) -> None:
    with Process(python("tuunel", "pair", invite, "--name", "home", "--json"), env={"TUUNEL_HOME": str(laptop)}) as pairing:
        pairing.answer()
