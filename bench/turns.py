"""The order of a run: every system does a workload before the first does it again. A slow minute of the machine meets all of them."""

from collections.abc import Callable, Sequence

from bench.peers import PeerMissing
from bench.process import ProcessFailed
from bench.results import Results
from bench.systems.system import System
from bench.workloads.workload import Workload, fits


def take_turns(results: Results, workloads: Sequence[Workload], systems: Sequence[System], tell: Callable[[str], None]) -> None:
    """Run every workload on every system, `results.rounds` times; tell each result as it comes. A failure is kept, the run goes on."""
    for number in range(1, results.rounds + 1):
        for workload in workloads:
            for system in (system for system in systems if fits(workload, system)):
                heading = f"round {number}/{results.rounds}  {workload.name:<12} {system.name:<13}"
                try:
                    measurement = workload.measure(system, quick=results.quick)
                except PeerMissing as reason:
                    results.skipped[workload.name] = str(reason)
                    continue
                except (ProcessFailed, OSError) as error:  # TimeoutError is an OSError
                    results.failures.append((workload.name, system.name, str(error)))
                    tell(f"{heading} failed: {error}")
                    continue
                results.add(workload.name, system.name, measurement)
                given = ((figure, measurement.figures[figure.key]) for figure in workload.figures)
                values = (f"{figure.title} {value:,.{figure.digits}f}" for figure, value in given if value is not None)
                tell(f"{heading} {'  '.join(values)}")
