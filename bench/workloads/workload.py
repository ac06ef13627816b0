"""What a workload offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bench.process import Processes
from bench.systems.system import System, Transport


@dataclass(frozen=True)
class Figure:
    """A quantity that a workload measures."""

    key: str
    title: str  # with its unit
    digits: int = 0  # behind the point, in the table


@dataclass(frozen=True)
class Measurement:
    """One run: a value per figure key, and CPU per role in the workload's own measure."""

    figures: Mapping[str, float | None]  # None: the system has no such thing
    cpu: Mapping[str, float]


class Workload(Protocol):
    """A job that a system is given: one file of this folder each, listed in `bench.workloads`. The first figure is the one to compare."""

    name: str
    transport: Transport  # systems that do not carry it are left out
    what: str  # one sentence
    figures: tuple[Figure, ...]
    only: str | None  # the one system that it is about; None: all
    in_quick: bool  # whether a quick run has it, too
    cpu_title: str  # what the CPU values are: "CPU seconds per ..."

    def measure(self, system: System, *, quick: bool) -> Measurement:
        """Start `system`, do the job once, end it. ProcessFailed or TimeoutError when it does not get there."""


def fits(workload: Workload, system: System) -> bool:
    """Return whether `system` can be given the job of `workload`."""
    return workload.transport in system.transports and workload.only in (None, system.name)


def memory_now(roles: Mapping[str, Processes]) -> dict[str, int]:
    """Return the bytes of memory that each role has of its own: what it shares with others is divided among them."""
    return {role: processes.memory_bytes() for role, processes in roles.items()}


def cpu_now(roles: Mapping[str, Processes]) -> dict[str, float]:
    """Return the CPU seconds that each role has used so far."""
    return {role: processes.cpu_seconds() for role, processes in roles.items()}


def cpu_used(roles: Mapping[str, Processes], before: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU seconds that each role has used since `before`."""
    return {role: seconds - before[role] for role, seconds in cpu_now(roles).items()}
