"""Results as one JSON document."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.goals import goals
from bench.results import Results
from bench.systems.system import System
from bench.workloads.workload import Workload, fits


def document(results: Results, workloads: Sequence[Workload], systems: Sequence[System]) -> dict[str, Any]:
    """Return the JSON document of `results`: its shape is described in bench/README.md."""
    return {
        "machine": dict(results.machine),
        "others_cores": results.others_cores,
        "quick": results.quick,
        "rounds": results.rounds,
        "systems": {
            system.name: {
                "version": results.versions[system.name],
                "hops": system.hops,
                "readable_by": system.readable,
                "socks": system.socks,
            }
            for system in systems
        },
        "skipped": results.skipped,
        "failures": [{"workload": workload, "system": system, "error": error} for workload, system, error in results.failures],
        "goals": [asdict(goal) for goal in goals(results, systems)],
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
