"""A small world of real tuunel processes with throw-away state: relays, agents, laptops and their proxies."""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.journeys.processes import DEADLINE, Json, Running, clean_environment, run, tuunel_argv

LOOPBACK = "127.0.0.1"


def port_of(listen: str) -> int:
    """Return the port of `host:port`."""
    return int(listen.rpartition(":")[2])


@dataclass
class Machine:
    """A state directory, and the commands that are run in it; `inside` is put before each command line (a network namespace)."""

    home: Path
    inside: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        return clean_environment(TUUNEL_HOME=str(self.home))

    def tuunel(
        self, *arguments: str, stdin: bytes = b"", check: bool = True, deadline: float = DEADLINE
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a one-shot command."""
        return run([*self.inside, *tuunel_argv(*arguments)], self.env, stdin=stdin, check=check, deadline=deadline)

    def ask(self, *arguments: str, stdin: bytes = b"") -> Json:
        """Run a one-shot command with --json and return its document."""
        document: Json = json.loads(self.tuunel(*arguments, "--json", stdin=stdin).stdout)
        return document

    def start(self, *arguments: str) -> Running:
        """Start a long-running command with --json."""
        return Running([*self.inside, *tuunel_argv(*arguments, "--json")], self.env)

    def nc(self, host: str, port: int, *, stdin: bytes = b"", deadline: float = DEADLINE) -> subprocess.CompletedProcess[bytes]:
        """Run `tuunel nc` to its end."""
        return self.tuunel("nc", host, str(port), stdin=stdin, check=False, deadline=deadline)


@dataclass
class Relay:
    machine: Machine
    process: Running
    port: int
    link: str | None

    def new_link(self, *options: str) -> str:
        link: str = self.machine.ask("relay", "link", *options)["link"]
        return link


@dataclass
class Agent:
    machine: Machine
    process: Running
    device_id: str
    invite: str | None

    def new_invite(self, *options: str) -> str:
        invite: str = self.machine.ask("invite", *options)["invite"]
        return invite


@dataclass
class Proxy:
    process: Running
    port: int

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, self.port


@dataclass
class Forwards:
    """A running `tuunel forward`; `listens` are the places where it listens, in the order in which they were given.

    As a context manager it ends with the block.
    """

    process: Running
    listens: list[str]

    def __enter__(self) -> "Forwards":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.stop()

    @property
    def port(self) -> int:
        """The port of the first."""
        return port_of(self.listens[0])


class World:
    """Makes machines and starts roles on them; everything ends with it, in reverse order."""

    def __init__(self) -> None:
        self._ending = contextlib.ExitStack()

    def machine(self, inside: tuple[str, ...] = ()) -> Machine:
        """A machine with an empty state directory. The path is short: the path of a unix socket is limited to about 104 bytes."""
        home = Path(tempfile.mkdtemp(prefix="tuu", dir="/tmp"))
        self._ending.callback(shutil.rmtree, home, ignore_errors=True)
        return Machine(home, inside)

    def watch(self, process: Running) -> Running:
        """End `process` with this world."""
        self._ending.callback(process.stop)
        return process

    def relay(self, machine: Machine | None = None, *, port: int = 0, host: str = LOOPBACK, options: Sequence[str] = ()) -> Relay:
        machine = machine or self.machine()
        process = self.watch(machine.start("relay", "serve", "--listen", f"{host}:{port}", "--advertise", host, *options))
        ready = process.ready()
        return Relay(machine, process, port_of(ready["listen"]), ready.get("link"))

    def agent(self, link: str | None, *options: str, machine: Machine | None = None) -> Agent:
        machine = machine or self.machine()
        process = self.watch(machine.start("agent", *([link] if link else []), *options))
        ready = process.ready()
        return Agent(machine, process, ready["device_id"], ready.get("invite"))

    def laptop(self, invite: str, name: str = "home") -> Machine:
        """A machine that is paired."""
        machine = self.machine()
        machine.ask("pair", invite, "--name", name)
        return machine

    def proxy(self, machine: Machine, *options: str, listen: str = f"{LOOPBACK}:0") -> Proxy:
        process = self.watch(machine.start("proxy", "--listen", listen, *options))
        return Proxy(process, port_of(process.ready()["listen"]))

    def forward(self, machine: Machine, *forwards: str, options: Sequence[str] = ()) -> Forwards:
        process = self.watch(machine.start("forward", *forwards, *options))
        return Forwards(process, [each["listen"] for each in process.ready()["forwards"]])

    def close(self) -> None:
        self._ending.close()


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A world that ends with the block."""
    made = World()
    try:
        yield made
    finally:
        made.close()


@dataclass
class Trio:
    """Relay, agent and proxy, paired and serving; the device is called `home`."""

    world: World
    relay: Relay
    agent: Agent
    laptop: Machine
    proxy: Proxy

    @cached_property
    def walker(self) -> Machine:
        """A paired machine that runs no proxy, made when it is first asked for."""
        return self.world.laptop(self.agent.new_invite())


def make_trio(in_world: World, *relay_options: str) -> Trio:
    """Start relay and agent, pair a laptop, start its proxy."""
    relay = in_world.relay(options=relay_options)
    assert relay.link
    agent = in_world.agent(relay.link)
    assert agent.invite
    laptop = in_world.laptop(agent.invite)
    return Trio(in_world, relay, agent, laptop, in_world.proxy(laptop))
