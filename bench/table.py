"""Results as tables in Markdown: readable as they are, and ready to be put into a page."""

from collections.abc import Iterator, Sequence

from bench.goals import Bound, goals
from bench.results import Results
from bench.summary import Summary
from bench.systems.system import System
from bench.workloads.workload import Figure, Workload, fits


def render(results: Results, workloads: Sequence[Workload], systems: Sequence[System], *, limit: str) -> str:
    """Return all tables. `limit` is the system beside which the first figure of the others is put."""
    return "\n".join(_lines(results, workloads, systems, limit)) + "\n"


def _lines(results: Results, workloads: Sequence[Workload], systems: Sequence[System], limit: str) -> Iterator[str]:
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in results.machine.items())
    rounds = f"{results.rounds} round{'s' if results.rounds != 1 else ''}{', quick' if results.quick else ''}"
    yield f"{told}; {rounds}; other processes used {results.others_cores:.2f} cores meanwhile"
    yield ""
    yield from grid(
        ["system", "version", "way", "who in between can read"],
        [[system.name, results.versions[system.name], system.hops, system.readable] for system in systems],
    )
    for name, reason in results.skipped.items():
        yield f"\nskipped: {name}: {reason}"
    yield from _goals(results, systems)
    for workload in workloads:
        yield ""
        yield f"**{workload.name}**: {workload.what}"
        yield ""
        yield from _workload(results, workload, systems, limit)
    for name, system_name, error in results.failures:
        yield f"\nfailed: {name} with {system_name}: {error.splitlines()[0]}"


def _goals(results: Results, systems: Sequence[System]) -> Iterator[str]:
    rows = [[goal.what, goal.measured, _bound(goal.floor), _bound(goal.aim)] for goal in goals(results, systems)]
    if rows:
        yield ""
        yield "**goals**: what tuunel must reach (floor) and wants to (aim), by the ratios of this run."
        yield ""
        yield from grid(["what", "measured", "floor", "aim"], rows)


def _bound(bound: Bound) -> str:
    return f"{'met' if bound.met else 'MISSED'}: {bound.text}"


def _workload(results: Results, workload: Workload, systems: Sequence[System], limit: str) -> Iterator[str]:
    first = workload.figures[0]
    beside = results.figure(workload.name, limit, first.key)
    yield from grid(
        ["system", *(figure.title for figure in workload.figures), f"of {limit}", f"{workload.cpu_title}, by role"],
        [
            [
                system.name,
                *(_cell(results.figure(workload.name, system.name, figure.key), figure) for figure in workload.figures),
                _ratio(results.figure(workload.name, system.name, first.key), beside),
                ", ".join(f"{role} {used.median:.2f}" for role, used in results.cpu(workload.name, system.name).items()) or "-",
            ]
            for system in systems
            if fits(workload, system)
        ],
    )


def _cell(summary: Summary | None, figure: Figure) -> str:
    if summary is None:
        return "-"
    median, smallest, largest = (f"{value:,.{figure.digits}f}" for value in (summary.median, summary.smallest, summary.largest))
    return median if len(summary.runs) == 1 else f"{median} ({smallest} - {largest})"


def _ratio(summary: Summary | None, beside: Summary | None) -> str:
    return f"{summary.median / beside.median:.2f}" if summary and beside and beside.median else "-"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return the lines of a Markdown table, its columns aligned for the eye."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    yield _row(head, widths)
    yield _row(["-" * width for width in widths], widths)
    for row in rows:
        yield _row(row, widths)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
