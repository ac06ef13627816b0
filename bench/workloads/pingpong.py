"""The round trip of something small on a connection that stays."""

from bench.process import ProcessFailed
from bench.summary import percentile
from bench.systems.system import System, Transport
from bench.workloads.connected import connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

SIZE = 64


class PingPong:
    name = "pingpong"
    transport = Transport.TCP
    only: str | None = None
    in_quick = True
    what = f"{SIZE} bytes to the service and back, one after the other on one connection."
    figures: tuple[Figure, ...] = (Figure("p50_us", "p50 µs"), Figure("p99_us", "p99 µs"))
    cpu_title = "CPU seconds per 10,000 round trips"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        with connected(system, self.transport, "bench.apps.tcp_pinger") as running:
            before = cpu_now(running.roles)
            rtts = running.app.ask({"size": SIZE, "seconds": 0.7 if quick else 3.0})["rtts"]
            cpu = cpu_used(running.roles, before)
        if not rtts:
            raise ProcessFailed("no answer came")
        return Measurement(
            {"p50_us": percentile(rtts, 50) * 1e6, "p99_us": percentile(rtts, 99) * 1e6},
            {role: used / len(rtts) * 10_000 for role, used in cpu.items()},
        )
