"""Many connections that carry nothing, and one that carries all it can."""

import time

from bench.process import Process, Processes, python
from bench.systems.system import System, Transport
from bench.workloads.bulk import APP, move
from bench.workloads.connected import connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used, memory_now

_OPENING_DEADLINE = 120.0
_REST_SECONDS = 2.0  # in which buffers are given back


class Idle:
    name = "idle"
    transport = Transport.TCP
    only: str | None = None
    in_quick = False
    figures: tuple[Figure, ...] = (
        Figure("up_gbit", "up Gbit/s", 2),
        Figure("opening_s", "opening them, s", 1),
        Figure("relay_kb", "KB per tunnel: relay", 1),
        Figure("forward_kb", "forward", 1),
        Figure("agent_kb", "agent", 1),
    )
    cpu_title = "CPU seconds per GB"

    def __init__(self, count: int = 1000) -> None:
        self._count = count
        self.what = (
            f"{count:,} connections that once carried an echo, and bytes on one more, to the service. Memory is that of the processes."
        )

    def measure(self, system: System, *, quick: bool) -> Measurement:
        with connected(system, self.transport, "bench.apps.tcp_idler") as running:
            empty = memory_now(running.roles)
            opening = running.app.ask({"count": self._count}, _OPENING_DEADLINE)["seconds"]
            time.sleep(_REST_SECONDS)
            held = memory_now(running.roles)
            with Process(python(APP, *running.door.arguments())) as app:
                app.answer()
                roles = {**running.roles, "app": Processes(app)}
                before = cpu_now(roles)
                size, took = move(app, 1, "up", 0.7 if quick else 3.0)
                cpu = cpu_used(roles, before)
        per_tunnel = {role: (held[role] - empty[role]) / self._count / 1024 for role in held}
        return Measurement(
            {
                "up_gbit": size * 8 / 1e9 / took,
                "opening_s": opening,
                **{f"{role}_kb": per_tunnel.get(role) for role in ("relay", "forward", "agent")},
            },
            {role: used / (size / 1e9) for role, used in cpu.items()},
        )
