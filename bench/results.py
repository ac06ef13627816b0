"""The results of a run: gathered measurement by measurement, then written as JSON and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.summary import Summary, summarise
from bench.systems.system import System
from bench.workloads.workload import Measurement, Workload, fits


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


def document(results: Results, workloads: Sequence[Workload], systems: Sequence[System]) -> dict[str, Any]:
    """Return the JSON document of `results`: its shape is described in bench/README.md."""
    return {
        "machine": dict(results.machine),
        "others_cores": results.others_cores,
        "quick": results.quick,
        "rounds": results.rounds,
        "systems": {
            system.name: {"version": results.versions[system.name], "hops": system.hops, "readable_by": system.readable}
            for system in systems
        },
        "skipped": results.skipped,
        "failures": [{"workload": workload, "system": system, "error": error} for workload, system, error in results.failures],
        "workloads": {
            workload.name: {
                "what": workload.what,
                "cpu": workload.cpu_title,
                "systems": {system.name: _row(results, workload, system) for system in systems if fits(workload, system)},
            }
            for workload in workloads
        },
    }


def _row(results: Results, workload: Workload, system: System) -> dict[str, Any]:
    figures = {figure.key: results.figure(workload.name, system.name, figure.key) for figure in workload.figures}
    return {
        "figures": {key: asdict(summary) for key, summary in figures.items() if summary},
        "cpu": {role: asdict(summary) for role, summary in results.cpu(workload.name, system.name).items()},
    }
