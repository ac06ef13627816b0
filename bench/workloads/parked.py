"""Agents that wait at a relay and that nobody asks for."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.place import LOOPBACK
from bench.process import Process, Processes, python
from bench.systems.system import System, Transport
from bench.systems.tuunel import Tuunel
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

FEW, MANY = 1000, 5000
_DEADLINE = 400.0
_REST_SECONDS = 15.0  # two pings of every agent, and whatever the handshakes have left behind


class Parked:
    name = "parked"
    transport = Transport.TCP
    only: str | None = Tuunel.name
    in_quick = False
    what = f"{FEW:,} and then {MANY:,} agents at one relay, each with its CONTROL connection and one READY. Memory is the relay's."
    figures: tuple[Figure, ...] = (
        Figure("few_kb", f"KB per agent of {FEW:,}", 1),
        Figure("many_kb", f"of {MANY:,}", 1),
        Figure("per_second", "enrolled and parked /s"),
    )
    cpu_title = f"CPU seconds per second with {MANY:,} agents"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        with ExitStack() as ending:
            home = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="tuu")))
            serve = python("tuunel", "relay", "serve", "--listen", f"{LOOPBACK}:0", "--advertise", LOOPBACK, "--open-enrolment", "--json")
            relay = Processes(ending.enter_context(Process(serve, env={"TUUNEL_HOME": str(home)})))
            link = relay.processes[0].answer()["link"]
            agents = ending.enter_context(Process(python("bench.apps.parked_agents", link)))
            empty, took, memory = relay.memory_bytes(), 0.0, {}
            for count in (FEW, MANY):
                took += agents.ask({"count": count}, _DEADLINE)["seconds"]
                time.sleep(_REST_SECONDS)
                memory[count] = (relay.memory_bytes() - empty) / count / 1024
            roles = {"relay": relay}
            before, start = cpu_now(roles), time.monotonic()
            time.sleep(_REST_SECONDS)
            cpu, seconds = cpu_used(roles, before), time.monotonic() - start
        return Measurement(
            {"few_kb": memory[FEW], "many_kb": memory[MANY], "per_second": MANY / took},
            {role: used / seconds for role, used in cpu.items()},
        )
