"""The results of a run: gathered measurement by measurement."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.summary import Summary, summarise
from bench.workloads.workload import Measurement


@dataclass
class Results:
    """What ran, what was skipped and why, and every measurement in the order in which it was made."""

    machine: Mapping[str, str | int | float]
    quick: bool
    rounds: int
    versions: dict[str, str]  # by system
    skipped: dict[str, str]  # system: reason
    others_cores: float = 0.0  # that other processes of the machine used meanwhile, on average
    measurements: dict[tuple[str, str], list[Measurement]] = field(default_factory=dict)  # by workload and system
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # workload, system, what went wrong

    def add(self, workload: str, system: str, measurement: Measurement) -> None:
        """Keep one measurement."""
        self.measurements.setdefault((workload, system), []).append(measurement)

    def figure(self, workload: str, system: str, key: str) -> Summary | None:
        """Return the summary of one figure, or None where there is none."""
        runs = [run.figures[key] for run in self.measurements.get((workload, system), [])]
        return summarise(values) if (values := [value for value in runs if value is not None]) else None

    def cpu(self, workload: str, system: str) -> dict[str, Summary]:
        """Return the summary of each role's CPU."""
        runs = self.measurements.get((workload, system), [])
        return {role: summarise([run.cpu[role] for run in runs]) for role in (runs[0].cpu if runs else ())}
