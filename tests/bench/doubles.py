"""Systems and workloads with known results, in place of those that take a minute."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.door import Door
from bench.place import LOOPBACK, Places
from bench.process import ProcessFailed
from bench.results import Results
from bench.systems.system import Route, System, Transport
from bench.workloads.workload import Figure, Measurement


class Wire:
    """A system that carries nothing: the workloads of these tests do not ask it to."""

    hops = "app - service"
    readable = "nobody"
    socks = False
    transports = frozenset([Transport.TCP])

    def __init__(self, name: str) -> None:
        self.name = name

    def version(self) -> str:
        return "1.0"

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        yield Route(Door(LOOPBACK, service), {})


class Counting:
    """A workload whose n-th run on a system gives n times the length of the system's name; it fails on `broken`."""

    name = "counting"
    transport = Transport.TCP
    only: str | None = None
    in_quick = True
    what = "Counts."
    figures: tuple[Figure, ...] = (Figure("count", "count/s"), Figure("share", "share", 2))
    cpu_title = "CPU seconds per count"

    def __init__(self) -> None:
        self.turns: list[str] = []

    def measure(self, system: System, *, quick: bool) -> Measurement:
        self.turns.append(system.name)
        if system.name == "broken":
            raise ProcessFailed("it broke")
        count = self.turns.count(system.name) * len(system.name)
        return Measurement({"count": 1000.0 * count, "share": 0.5}, {"relay": float(count), "agent": 0.25})


def results(rounds: int = 3) -> Results:
    """Results of nothing yet, for systems of version 1.0."""
    names = ("raw", "tuunel", "broken")
    return Results(
        {"processor": "abacus", "cores": 7},
        quick=False,
        rounds=rounds,
        versions=dict.fromkeys(names, "1.0"),
        skipped={"gost": "gone"},
    )
