"""The highest rate of datagrams that arrive."""

import itertools
import json
import socket
import time
from dataclasses import dataclass

from bench.apps import datagram
from bench.apps.udp_socket import bound
from bench.process import ProcessFailed
from bench.search import highest
from bench.systems.system import System, Transport
from bench.workloads.connected import Connected, connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

LOSS = 0.01
START_RATE = 4000.0
_SETTLED_SECONDS = 0.1  # without a datagram, after which a trial is over
_SETTLE_DEADLINE = 10.0
_ASK_AGAIN_SECONDS = 0.2


@dataclass(frozen=True)
class RateTrial:
    """What one rate gave. `cpu` is CPU seconds per role, from the first datagram sent to the last counted."""

    asked: float  # datagrams per second
    sent: int
    seconds: float
    in_time: int
    span: float  # seconds from the first to the last that arrived in time
    cpu: dict[str, float]

    @property
    def held(self) -> bool:
        return self.in_time > (1 - LOSS) * self.sent

    @property
    def exhausted(self) -> bool:
        return self.sent < 0.95 * self.asked * self.seconds

    @property
    def delivered_rate(self) -> float:
        return (self.in_time - 1) / self.span if self.in_time > 1 else 0.0


class UdpRate:
    name = "udp-rate"
    transport = Transport.UDP
    only: str | None = None
    in_quick = False
    what = (
        f"Datagrams of {datagram.SIZE:,} bytes per second, one way, at the highest rate with less than {LOSS:.0%} lost or over 100 ms late."
    )
    figures: tuple[Figure, ...] = (Figure("per_second", "datagrams/s"), Figure("mbit_per_second", "Mbit/s"))
    cpu_title = "CPU seconds per GB"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        seconds = 0.5 if quick else 1.0
        numbers = itertools.count(1)
        with connected(system, self.transport, "bench.apps.udp_sender") as route:
            best = highest(lambda rate: attempt(route, next(numbers), rate, seconds), START_RATE)
        if best is None:
            raise ProcessFailed("lost datagrams at every rate")
        gigabytes = best.in_time * datagram.SIZE / 1e9
        return Measurement(
            {"per_second": best.delivered_rate, "mbit_per_second": best.delivered_rate * datagram.SIZE * 8 / 1e6},
            {role: used / gigabytes for role, used in best.cpu.items()},
        )


def attempt(route: Connected, number: int, rate: float, seconds: float) -> RateTrial:
    """Send at `rate` for `seconds`, wait until nothing of it comes any more, and return what arrived."""
    before = cpu_now(route.roles)
    answer = route.app.ask({"trial": number, "rate": rate, "seconds": seconds})
    with bound() as sock:
        sock.connect(("127.0.0.1", route.service))
        count = _settled(sock, number)
    cpu = cpu_used(route.roles, before)
    return RateTrial(rate, answer["sent"], answer["seconds"], count["in_time"], (count["last_ns"] - count["first_ns"]) / 1e9, cpu)


def _settled(sock: socket.socket, number: int) -> dict[str, int]:
    """Return the service's count of trial `number`, once it no longer grows."""
    end = time.monotonic() + _SETTLE_DEADLINE
    count = _report(sock, number, end)
    while time.monotonic() < end:
        time.sleep(_SETTLED_SECONDS)
        earlier, count = count, _report(sock, number, end)
        if count == earlier:
            return count
    return count


def _report(sock: socket.socket, number: int, end: float) -> dict[str, int]:
    """Ask the service, past the system, for its count of trial `number`; ProcessFailed when it does not answer until `end`."""
    sock.settimeout(_ASK_AGAIN_SECONDS)
    while time.monotonic() < end:
        try:
            sock.send(datagram.write(datagram.REPORT, number, size=0))
            count: dict[str, int] = json.loads(sock.recv(65_536))
        except (TimeoutError, ConnectionRefusedError):
            continue
        if count["trial"] == number:
            return count
    raise ProcessFailed("the service does not tell what it has counted")
