"""Three hosts on long lines: app - relay - service, each a network namespace that lives as long as a process of the benchmark."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peers import PeerMissing, find
from bench.place import Place, Places
from bench.process import Process, python

# RFC 2544 sets 198.18.0.0/15 aside for benchmarks
_APP, _RELAY = "198.18.0.1", "198.18.0.2"
_RELAY_INSIDE, _SERVICE = "198.18.1.2", "198.18.1.1"

_TOOLS = ("unshare", "nsenter", "ip")


def require() -> None:
    """PeerMissing, with what it takes, unless namespaces and TUN devices can be made here."""
    for tool in _TOOLS:
        find(tool)
    if os.geteuid() or not Path("/dev/net/tun").exists():
        raise PeerMissing("long lines need root and /dev/net/tun")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode:
        raise PeerMissing("this machine makes no network namespaces")


@contextmanager
def long_lines(milliseconds: float) -> Iterator[Places]:
    """Three places whose two lines hold every packet for `milliseconds` each way. What runs there must end before the block does."""
    require()
    with ExitStack() as ending:
        app, relay, service = (_namespace(ending) for _ in range(3))
        for near, near_address, far, far_address in ((app, _APP, relay, _RELAY), (relay, _RELAY_INSIDE, service, _SERVICE)):
            arguments = (f"{milliseconds:g}", str(near.pid), near_address, str(far.pid), far_address)
            link = ending.enter_context(Process(python("bench.delay.link", *arguments)))
            link.line()
        places = Places(*(Place(address, _prefix(host)) for host, address in ((app, _APP), (relay, _RELAY), (service, _SERVICE))))
        _run(places.relay, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        _run(places.app, "ip", "route", "add", "198.18.1.0/24", "via", _RELAY)
        _run(places.service, "ip", "route", "add", "198.18.0.0/24", "via", _RELAY_INSIDE)
        yield places


def _namespace(ending: ExitStack) -> Process:
    holder = ending.enter_context(Process(["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]))
    holder.line()
    return holder


def _prefix(holder: Process) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")


def _run(place: Place, *words: str) -> None:
    subprocess.run([*place.prefix, *words], check=True, stdin=subprocess.DEVNULL)
