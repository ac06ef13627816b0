"""As many bytes as go through, on one connection or on several at once."""

from bench.process import Process, ProcessFailed
from bench.systems.system import System, Transport
from bench.workloads.connected import connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

APP = "bench.apps.tcp_bulk"
DEADLINE = 120.0


class Bulk:
    transport = Transport.TCP
    only: str | None = None
    figures: tuple[Figure, ...] = (
        Figure("up_gbit", "up Gbit/s", 2),
        Figure("down_gbit", "down Gbit/s", 2),
    )
    cpu_title = "CPU seconds per GB"

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self.name = f"bulk-{streams}"
        self.in_quick = streams == 1
        self.what = f"Bytes on {streams} connection{'s at once' if streams > 1 else ''}, to the service and then from it."

    def measure(self, system: System, *, quick: bool) -> Measurement:
        seconds = 0.7 if quick else 3.0
        with connected(system, self.transport, APP) as running:
            before = cpu_now(running.roles)
            answers = {direction: move(running.app, self._streams, direction, seconds) for direction in ("up", "down")}
            cpu = cpu_used(running.roles, before)
        gigabytes = sum(size for size, _ in answers.values()) / 1e9
        return Measurement(
            {f"{direction}_gbit": size * 8 / 1e9 / took for direction, (size, took) in answers.items()},
            {role: used / gigabytes for role, used in cpu.items()},
        )


def move(app: Process, streams: int, direction: str, seconds: float) -> tuple[int, float]:
    """Have `app` move bytes for `seconds`; return how many arrived, and in which time."""
    answer = app.ask({"streams": streams, "direction": direction, "seconds": seconds}, DEADLINE)
    if not answer["bytes"]:
        raise ProcessFailed("nothing arrived")
    return answer["bytes"], answer["seconds"]
