"""The round trip of datagrams that come at a steady rate, as those of a game or a call do."""

from bench.apps.datagram import SIZE
from bench.process import ProcessFailed
from bench.summary import percentile
from bench.systems.system import System, Transport
from bench.workloads.connected import connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

RATE = 1000


class UdpLatency:
    name = "udp-latency"
    transport = Transport.UDP
    only: str | None = None
    in_quick = False
    what = f"Echo of {RATE:,} datagrams of {SIZE:,} bytes per second, sent on time whether answers have come or not."
    figures: tuple[Figure, ...] = (
        Figure("p50_us", "p50 µs"),
        Figure("p99_us", "p99 µs"),
        Figure("lost_percent", "lost %", 2),
    )
    cpu_title = "CPU seconds per second"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        seconds = 2.0 if quick else 5.0
        with connected(system, self.transport, "bench.apps.udp_pinger") as route:
            before = cpu_now(route.roles)
            answer = route.app.ask({"rate": RATE, "seconds": seconds})
            cpu = cpu_used(route.roles, before)
        rtts = [float(rtt) for rtt in answer["rtts"]]
        if not rtts:
            raise ProcessFailed("no answer came")
        return Measurement(
            {
                "p50_us": percentile(rtts, 50) * 1e6,
                "p99_us": percentile(rtts, 99) * 1e6,
                "lost_percent": 100 * (1 - len(rtts) / answer["sent"]),
            },
            {role: used / seconds for role, used in cpu.items()},
        )
