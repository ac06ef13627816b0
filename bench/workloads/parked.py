"""Agents that wait at a relay and that nobody asks for."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.place import LOOPBACK
from bench.process import Process, Processes, python
from bench.systems.system import System, Transport
from bench.systems.tuunel import Tuunel
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used, memory_now

_DEADLINE = 400.0
_REST_SECONDS = 15.0  # two pings of every agent, and whatever the handshakes have left behind


class Parked:
    transport = Transport.TCP
    only: str | None = Tuunel.name
    in_quick = False
    figures: tuple[Figure, ...] = (Figure("agent_kb", "KB per agent", 1), Figure("per_second", "enrolled and parked /s"))
    cpu_title = "CPU seconds per second"

    def __init__(self, count: int) -> None:
        self._count = count
        self.name = f"parked-{count}"
        self.what = f"{count:,} agents at one relay, each with its CONTROL connection and one READY. Memory and CPU are the relay's."

    def measure(self, system: System, *, quick: bool) -> Measurement:
        with ExitStack() as ending:
            home = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="tuu")))
            serve = python("tuunel", "relay", "serve", "--listen", f"{LOOPBACK}:0", "--advertise", LOOPBACK, "--open-enrolment", "--json")
            process = ending.enter_context(Process(serve, env={"TUUNEL_HOME": str(home)}))
            link, roles = process.answer()["link"], {"relay": Processes(process)}
            agents = ending.enter_context(Process(python("bench.apps.parked_agents", link)))
            empty = memory_now(roles)["relay"]
            took = agents.ask({"count": self._count}, _DEADLINE)["seconds"]
            time.sleep(_REST_SECONDS)
            before, start = cpu_now(roles), time.monotonic()
            time.sleep(_REST_SECONDS)
            cpu, seconds = cpu_used(roles, before), time.monotonic() - start
            held = memory_now(roles)["relay"] - empty
        return Measurement(
            {"agent_kb": held / self._count / 1024, "per_second": self._count / took},
            {role: used / seconds for role, used in cpu.items()},
        )
