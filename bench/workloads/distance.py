"""The same job between continents: every packet is held on each leg."""

import statistics

from bench.delay.network import long_lines
from bench.systems.raw import Raw
from bench.systems.system import System, Transport
from bench.workloads.bulk import move
from bench.workloads.connected import connected
from bench.workloads.workload import Figure, Measurement, cpu_now, cpu_used

_APP = "bench.apps.tcp_distant"
_PAUSE_ROUND_TRIPS = 8  # between two connections: time for a system to make ready what the last one used up


class Distance:
    transport = Transport.TCP
    only: str | None = None
    in_quick = False
    figures: tuple[Figure, ...] = (
        Figure("up_mbit", "up Mbit/s"),
        Figure("down_mbit", "down Mbit/s"),
        Figure("first_ms", "first connection's first byte, ms"),
        Figure("next_ms", "later ones', ms"),
        Figure("first_rtt", "first, round trips", 2),
        Figure("next_rtt", "later, round trips", 2),
    )
    cpu_title = "CPU seconds per GB"

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds
        self._rtt = 4 * milliseconds / 1000  # two legs, both ways
        self.name = f"delay-{milliseconds}"
        self.what = (
            f"{milliseconds} ms one way on each leg, {4 * milliseconds} ms from app to service and back: bytes on one connection; and the "
            "time to the first byte of new ones, of the very first and of later ones, beside it in round trips from end to end."
        )

    def measure(self, system: System, *, quick: bool) -> Measurement:
        connections, seconds = (3, 3.0) if quick else (7, 6.0)
        settle = 30 * self._rtt
        with long_lines(self._milliseconds) as places, connected(system, self.transport, _APP, places, settle) as running:
            first = running.reached["first_byte"]
            order = {"connections": connections, "pause": _PAUSE_ROUND_TRIPS * self._rtt}
            later = statistics.median(running.app.ask(order, 60)["first_bytes"])
            before = cpu_now(running.roles)
            moved = {direction: move(running.app, 1, direction, seconds) for direction in ("up", "down")}
            cpu = cpu_used(running.roles, before)
        gigabytes = sum(size for size, _ in moved.values()) / 1e9
        return Measurement(
            {
                **{f"{direction}_mbit": size * 8 / 1e6 / took for direction, (size, took) in moved.items()},
                "first_ms": first * 1000,
                "next_ms": later * 1000,
                "first_rtt": first / self._rtt,
                "next_rtt": later / self._rtt,
            },
            {role: used / gigabytes for role, used in cpu.items()},
        )


class LinkLimit:
    """What the long lines can carry when they hold nothing."""

    name = "delay-0"
    transport = Transport.TCP
    only: str | None = Raw.name
    in_quick = False
    what = "The limit of the long lines themselves: plain TCP over both of them, no packet held."
    figures: tuple[Figure, ...] = (Figure("up_mbit", "up Mbit/s"), Figure("down_mbit", "down Mbit/s"))
    cpu_title = "CPU seconds per GB"

    def measure(self, system: System, *, quick: bool) -> Measurement:
        with long_lines(0) as places, connected(system, self.transport, _APP, places) as running:
            before = cpu_now(running.roles)
            moved = {direction: move(running.app, 1, direction, 1.0 if quick else 3.0) for direction in ("up", "down")}
            cpu = cpu_used(running.roles, before)
        gigabytes = sum(size for size, _ in moved.values()) / 1e9
        return Measurement(
            {f"{direction}_mbit": size * 8 / 1e6 / took for direction, (size, took) in moved.items()},
            {role: used / gigabytes for role, used in cpu.items()},
        )
