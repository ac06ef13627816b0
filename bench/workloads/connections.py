"""New connections, each for one short answer: what a browser or a script does all day."""

from bench.process import ProcessFailed
from bench.systems.system import System, Transport
from bench.workloads.connected import Connected, connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

SIZE = 1024
AT_ONCE = 50


class Connections:
    name = "connections"
    transport = Transport.TCP
    only: str | None = None
    in_quick = True
    what = f"New connections per second, each for an answer of 1 KB: one after the other, and {AT_ONCE} at once."
    figures: tuple[Figure, ...] = (
        Figure("sequential", "one by one /s"),
        Figure("at_once", f"{AT_ONCE} at once /s"),
        Figure("burst_ms", f"first {AT_ONCE} at once, ms"),
    )
    cpu_title = "CPU seconds per 1,000 connections"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        seconds = 0.7 if quick else 3.0
        with connected(system, self.transport, "bench.apps.tcp_opener") as running:
            _, burst = _open(running, {"at_once": AT_ONCE, "count": AT_ONCE})  # first, while nothing is there from earlier connections
            before = cpu_now(running.roles)
            one, one_took = _open(running, {"at_once": 1, "seconds": seconds})
            many, many_took = _open(running, {"at_once": AT_ONCE, "seconds": seconds})
            cpu = cpu_used(running.roles, before)
        return Measurement(
            {"sequential": one / one_took, "at_once": many / many_took, "burst_ms": burst * 1000},
            {role: used / (one + many) * 1000 for role, used in cpu.items()},
        )


def _open(running: Connected, order: dict[str, float]) -> tuple[int, float]:
    answer = running.app.ask({**order, "size": SIZE}, 90)
    if not answer["count"]:
        raise ProcessFailed("no connection was answered")
    return answer["count"], answer["seconds"]
