"""gost with relay+tls: a relay, a remote forward beside the service, and a local one beside the app. TLS on each leg, none end to end."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.peers import find, output
from bench.ports import await_listener, free_port
from bench.process import Process
from bench.systems.system import Route


class Gost:
    name = "gost"
    hops = "app - gost - gost relay - gost - service"
    readable = "relay"

    def version(self) -> str:
        return output([find("gost"), "-V"])

    @contextmanager
    def udp(self, service: int) -> Iterator[Route]:
        program = find("gost")
        relay, inside, app = free_port(), free_port(), free_port()
        chain = ("-F", f"relay+tls://127.0.0.1:{relay}")
        with ExitStack() as ending:

            def start(*arguments: str) -> Process:
                return ending.enter_context(Process([program, *arguments]))

            server = start("-L", f"relay+tls://127.0.0.1:{relay}?bind=true")
            await_listener(relay)
            agent = start("-L", f"rudp://127.0.0.1:{inside}/127.0.0.1:{service}", *chain)
            forward = start("-L", f"udp://127.0.0.1:{app}/127.0.0.1:{inside}?keepAlive=true", *chain)
            yield Route(("127.0.0.1", app), {"forward": forward, "relay": server, "agent": agent})
