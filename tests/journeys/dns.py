"""A real name server, and dig."""

import contextlib
from collections.abc import Iterator

from tests.journeys.peers import program
from tests.journeys.processes import Running, clean_environment, run, until
from tests.journeys.sockets import listens
from tests.journeys.targets import closed_port
from tests.journeys.world import LOOPBACK

NAMES = {"printer.example": "192.168.1.20", "nas.example": "192.168.1.21"}
_LONG = ",".join("x" * 200 for _ in range(3))


@contextlib.contextmanager
def dns_server() -> Iterator[int]:
    """dnsmasq with the `NAMES` and a TXT record `long.example`, and no other server to ask; yields its port."""
    port = closed_port()
    records = [f"--host-record={name},{address}" for name, address in NAMES.items()]
    options = [f"--listen-address={LOOPBACK}", "--bind-interfaces", f"--port={port}", "--user=", "--group=", "--pid-file="]
    alone = ["--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--local-service", "--log-facility=-"]
    command = [program("dnsmasq"), "--keep-in-foreground", *alone, *options, *records, f"--txt-record=long.example,{_LONG}"]
    with Running(command, clean_environment()) as process:
        until(lambda: listens(port) or not process.alive(), "dnsmasq listens")
        assert process.alive(), process.errors()
        yield port


def dig(port: int, name: str, kind: str = "A", *options: str) -> list[str]:
    """Ask the name server on this port of loopback once, over UDP, and return its answers."""
    command = [program("dig"), f"@{LOOPBACK}", "-p", str(port), "+short", "+tries=1", "+time=20", *options, name, kind]
    return run(command).stdout.decode().splitlines()
