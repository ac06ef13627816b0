"""Four machines on a network that can be broken: relay, agent and laptop, each behind a router that drops, forgets and forwards.

    laptop (proxy)  10.1.0.2 --+
    agent           10.2.0.2 --+-- router        each a network namespace of its own; nothing of this is visible outside
    relay  10.3.0.2, 10.3.0.3 -+

The relay is known by a name, which hosts files (Linux: /etc/netns) give an address. Laptop and agent are behind a NAT when a test
wants one. The test itself stays outside, and makes the sockets of its apps and targets inside a machine (`inside`).
"""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.journeys import doors
from tests.journeys.house import remove_what_was_left
from tests.journeys.peers import network_namespaces, program
from tests.journeys.processes import clean_environment, run
from tests.journeys.targets import Handler, Target, serving
from tests.journeys.world import Agent, Machine, Proxy, Relay, World, port_of, world

RELAY_NAME = "relay.lab.example"
LAPTOP, AGENT, RELAY, RELAY_LATER = "10.1.0.2", "10.2.0.2", "10.3.0.2", "10.3.0.3"
ROUTER = {"laptop": "10.1.0.1", "agent": "10.2.0.1", "relay": "10.3.0.1"}
ADDRESS = {"laptop": LAPTOP, "agent": AGENT, "relay": RELAY}
PORT = 7443
_CLONE_NEWNET = 0x40000000


def _namespace(machine: str) -> str:
    return f"tuulab{machine}{os.getpid()}"


@contextlib.contextmanager
def inside(machine: str) -> Iterator[None]:
    """Sockets that this thread makes in the block belong to `machine`, and so do the processes that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as home, Path("/run/netns", _namespace(machine)).open("rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), _CLONE_NEWNET) == 0


class Network:
    """The four namespaces and the wires between them. Everything that is done to it can be undone with `heal`."""

    def __init__(self) -> None:
        self._ip, self._nft = network_namespaces(), program("nft")
        self._conntrack = program("conntrack")

    def build(self) -> None:
        """Make it; `remove` takes it down, whatever is there."""
        for name in ("router", *ADDRESS):
            self.ip(f"netns add {_namespace(name)}")
            self.ip("link set lo up", on=name)
        self.on("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for name, address in ADDRESS.items():
            etc = Path("/etc/netns") / _namespace(name)
            etc.mkdir(parents=True)
            (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            self.ip(f"link add {name} type veth peer name eth0 netns {_namespace(name)}", on="router")
            self.ip(f"address add {ROUTER[name]}/24 dev {name}", on="router")
            self.ip(f"link set {name} up", on="router")
            self.set_address(name, address)
        self.set_relay_address(RELAY)
        self.ip(f"address add {RELAY_LATER}/24 dev eth0", on="relay")

    def remove(self) -> None:
        for name in ("router", *ADDRESS):
            run([self._ip, "netns", "delete", _namespace(name)], check=False)
            shutil.rmtree(Path("/etc/netns") / _namespace(name), ignore_errors=True)

    def ip(self, command: str, *, on: str | None = None) -> None:
        run([self._ip, *(["-n", _namespace(on)] if on else []), *command.split()], clean_environment())

    def on(self, machine: str, *command: str) -> str:
        """Run a program on a machine, or on the router: its stdout."""
        return run([*self.prefix(machine), *command], clean_environment()).stdout.decode()

    def prefix(self, machine: str) -> tuple[str, ...]:
        """What is put before a command line, so that it runs there."""
        return self._ip, "netns", "exec", _namespace(machine)

    def set_relay_address(self, address: str) -> None:
        """What the relay's name means from now on, everywhere. Written in place: running programs see the same file."""
        for name in ADDRESS:
            (Path("/etc/netns") / _namespace(name) / "hosts").write_text(f"127.0.0.1 localhost\n{address} {RELAY_NAME}\n")

    def set_address(self, machine: str, address: str) -> None:
        """Give the machine this address alone, and a way out by it."""
        self.ip("address flush dev eth0", on=machine)
        self.ip(f"address add {address}/24 dev eth0", on=machine)
        self.plug(machine)

    def unplug(self, machine: str) -> None:
        """Its interface goes down: no way out, and nothing of it is heard any more."""
        self.ip("link set eth0 down", on=machine)

    def plug(self, machine: str) -> None:
        """Its interface is up, with a way out."""
        self.ip("link set eth0 up", on=machine)
        self.ip(f"route replace default via {ROUTER[machine]}", on=machine)

    def drop(self, *, source: str = "", destination: str = "") -> None:
        """The router drops from now on what comes from `source` and goes to `destination`, both addresses; one of them may be anything."""
        match = " ".join(part for part in (source and f"ip saddr {source}", destination and f"ip daddr {destination}") if part)
        self.nft(
            "add table ip lab",
            "add chain ip lab forward { type filter hook forward priority 0; }",
            f"add rule ip lab forward {match} drop",
        )

    def nft(self, *commands: str) -> None:
        """Change the router's rules, in one step."""
        self.on("router", self._nft, "; ".join(commands))

    def cut_off(self, machine: str) -> None:
        """Nothing comes from the machine and nothing gets there; it does not notice."""
        self.drop(source=ADDRESS[machine])
        self.drop(destination=ADDRESS[machine])

    def heal(self) -> None:
        """Drop nothing any more; what the NAT remembers stays."""
        self.nft("add table ip lab", "delete table ip lab")

    def masquerade(self, *, loose: bool) -> None:
        """The agent is behind a NAT that gives it other ports; `loose`: it takes up connections that it does not know, as most do."""
        self.on("router", "sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_loose={int(loose)}")
        self.nft(
            "add table ip nat",
            "add chain ip nat leaving { type nat hook postrouting priority 100; }",
            f"add rule ip nat leaving ip saddr {AGENT} oifname relay masquerade random",
            "add chain ip nat forward { type filter hook forward priority 0; }",
            "add rule ip nat forward ct state invalid drop",
        )

    def stop_masquerading(self) -> None:
        self.nft("delete table ip nat")

    def forget_connections(self) -> None:
        """The NAT has restarted, or its table was full: it knows no connection any more."""
        self.on("router", self._conntrack, "-F")


@dataclass
class Lab:
    """Relay, agent and laptop, paired and serving. `home` is the agent. A test leaves it as it found it."""

    world: World
    network: Network
    relay: Relay
    agent: Agent
    laptop: Machine
    proxy: Proxy

    def open(self, port: int, *, early: bytes = b"") -> doors.Opened:
        """Ask the proxy for a port of the agent's machine, as an app on the laptop does."""
        with inside("laptop"):
            return doors.socks5(self.proxy.address, "home.tuunel", port, early=early)

    @contextlib.contextmanager
    def target(self, handler: Handler) -> Iterator[Target]:
        """A service on the agent's machine."""
        with contextlib.ExitStack() as stack:
            with inside("agent"):
                target = stack.enter_context(serving(handler))
            yield target

    def start_relay(self, address: str = RELAY) -> None:
        """Start the relay (again), at an address to which its name leads then."""
        self.network.set_relay_address(address)
        process = self.world.watch(self.relay.machine.start("relay", "serve", "--listen", f"{address}:{PORT}", "--advertise", RELAY_NAME))
        self.relay = Relay(self.relay.machine, process, port_of(process.ready()["listen"]), None)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """Build the network, serve, and take it down again."""
    network = Network()
    remove_what_was_left(network.prefix("router")[0])
    try:
        network.build()
        with world() as made:
            machines = {name: made.machine(network.prefix(name)) for name in ADDRESS}
            process = made.watch(machines["relay"].start("relay", "serve", "--listen", f"{RELAY}:{PORT}", "--advertise", RELAY_NAME))
            ready = process.ready()
            relay = Relay(machines["relay"], process, port_of(ready["listen"]), ready["link"])
            agent = made.agent(relay.link, machine=machines["agent"])
            assert agent.invite
            machines["laptop"].ask("pair", agent.invite, "--name", "home")
            yield Lab(made, network, relay, agent, machines["laptop"], made.proxy(machines["laptop"]))
    finally:
        network.remove()
