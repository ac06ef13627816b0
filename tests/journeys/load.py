"""A load of real processes: agents that wait at a relay, tunnels that are held and carry, and new ones all the time.

The relay, one agent and three laptops are ordinary ones. The agents that wait are one process, by the code of `tuunel agent`, from several
addresses; each laptop has a process of apps. All of them share the machine with what they load.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.door import Door
from bench.process import Process, cpu_seconds_of, python
from tests.journeys.figures import figure
from tests.journeys.leaks import Held
from tests.journeys.processes import Running
from tests.journeys.world import LOOPBACK, Machine, World

LAPTOPS = 3  #: an agent carries 1,024 tunnels of one client
ADDRESSES = [f"127.0.2.{number}" for number in range(1, 9)]
PATIENCE = 300.0  #: seconds more than an order is to take


@dataclass(frozen=True)
class Load:
    """The processes of one load, and what they are asked to do."""

    roles: Mapping[str, tuple[Running, Machine]]
    fleet: Process
    crowds: list[Process]
    service: Process

    def park(self, agents: int) -> None:
        """Have so many agents wait."""
        took = self.fleet.ask({"count": agents}, PATIENCE)["seconds"]
        figure(f"{agents} agents enrolled and parked", f"{agents / took:.0f} a second")

    def hold(self, tunnels: int) -> None:
        """Open so many tunnels, in equal parts by the laptops, and keep them."""
        parts = self.ask_all({"hold": tunnels // LAPTOPS}, PATIENCE)
        assert_whole(parts, tunnels // LAPTOPS)

    def be_busy(self, *, rate: float, seconds: float, beat: float) -> list[dict[str, Any]]:
        """Open `rate` tunnels a second while each that is held carries an echo every `beat` seconds: what each crowd saw. No byte wrong."""
        parts = self.ask_all({"rate": rate / LAPTOPS, "seconds": seconds, "beat": beat}, seconds + PATIENCE)
        assert_whole([part["new"] for part in parts], round(rate / LAPTOPS * seconds))
        assert_whole([part["beats"] for part in parts])
        return parts

    def end(self, tunnels: int) -> None:
        """End the tunnels that are held, all cleanly."""
        assert_whole(self.ask_all({"end": True}, PATIENCE), tunnels // LAPTOPS)

    def ask_all(self, order: Mapping[str, object], deadline: float) -> list[dict[str, Any]]:
        """Give each crowd the order, at once."""
        with ThreadPoolExecutor() as threads:
            return list(threads.map(lambda crowd: crowd.ask(order, deadline), self.crowds))

    def assert_well(self, agents: int) -> None:
        """None of the agents that wait has lost its relay meanwhile, and no role has met a fault."""
        assert self.fleet.ask({"count": agents}, PATIENCE)["lost"] == 0, self.fleet.said()
        for role, (process, _) in self.roles.items():
            assert "Traceback" not in process.errors(), role

    def held(self) -> dict[str, Held]:
        """What each role holds at this moment."""
        return {role: Held.by(process, machine) for role, (process, machine) in self.roles.items()}

    def cpu(self) -> dict[str, float]:
        """The CPU seconds that each role, and each side of the load, has used so far."""
        pids = {role: [process.pid] for role, (process, _) in self.roles.items()}
        proxies = [pid for role in list(pids) if role.startswith("proxy") for pid in pids.pop(role)]
        pids |= {"proxies": proxies, "parked agents": [self.fleet.pid], "apps": [each.pid for each in self.crowds]}
        pids |= {"service": [self.service.pid]}
        return {who: sum(cpu_seconds_of(pid) for pid in each) for who, each in pids.items()}


def assert_whole(tallies: list[dict[str, Any]], count: int | None = None) -> None:
    """Nothing failed, and each did as much as it was told to."""
    failures = [tally["failures"] for tally in tallies if tally["failures"]]
    assert not failures, failures
    if count is not None:
        assert [tally["count"] for tally in tallies] == [count] * len(tallies)


@contextlib.contextmanager
def load(world: World) -> Iterator[Load]:
    """Start everything; nothing waits or is held yet."""
    relay = world.relay(options=["--open-enrolment"])
    assert relay.link
    agent = world.agent(relay.link)
    roles = {"relay": (relay.process, relay.machine), "agent": (agent.process, agent.machine)}
    with contextlib.ExitStack() as ending:
        service = ending.enter_context(Process(python("bench.apps.tcp_service", LOOPBACK)))
        port = int(service.line())
        crowds = []
        for number in range(1, LAPTOPS + 1):
            laptop = world.laptop(agent.new_invite())
            proxy = world.proxy(laptop)
            roles[f"proxy {number}"] = proxy.process, laptop
            door = Door(LOOPBACK, proxy.port, ("home.tuunel", port))
            crowds.append(ending.enter_context(Process(python("bench.apps.tcp_crowd", *door.arguments()))))
            crowds[-1].answer()  # it has reached the service
        fleet = ending.enter_context(Process(python("bench.apps.parked_agents", relay.link, *ADDRESSES)))
        yield Load(roles, fleet, crowds, service)


@contextlib.contextmanager
def cpu_told(loaded: Load, what: str, count: int) -> Iterator[None]:
    """Tell what the body has cost each party in CPU time: in all and, `count` times, for each."""
    before, began = loaded.cpu(), time.monotonic()
    yield
    took = time.monotonic() - began
    used = {who: seconds - before[who] for who, seconds in loaded.cpu().items()}
    shown = ", ".join(f"{who} {seconds:.1f} s ({seconds / count * 1000:.1f} ms)" for who, seconds in used.items())
    figure(f"CPU for {what} ({count}), in {took:.0f} s", shown)
