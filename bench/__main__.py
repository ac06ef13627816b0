"""The command: python -m bench."""

import argparse
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench.document import document
from bench.machine import Others, machine
from bench.peers import PeerMissing
from bench.plot import plot
from bench.process import ROOT
from bench.results import Results
from bench.systems import LIMIT, SYSTEMS
from bench.systems.raw import Raw
from bench.systems.system import System
from bench.systems.tuunel import Tuunel
from bench.table import render
from bench.turns import take_turns
from bench.workloads import WORKLOADS
from bench.workloads.workload import Workload

ROUNDS = 3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="tuunel beside its peers, doing the same job on loopback")
    parser.add_argument("--quick", action="store_true", help="one short round of the chief workloads: under two minutes")
    parser.add_argument("--rounds", type=int, default=None, help=f"how often each system does each workload (default {ROUNDS}, quick: 1)")
    parser.add_argument("--systems", nargs="+", choices=[system.name for system in SYSTEMS], help="only these")
    parser.add_argument("--workloads", nargs="+", choices=[workload.name for workload in WORKLOADS], help="only these")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench" / "results", help="folder for results.md, results.json and results.svg"
    )
    return parser.parse_args()


def _chosen(workload: Workload, arguments: argparse.Namespace) -> bool:
    if arguments.workloads:
        return workload.name in arguments.workloads
    return workload.in_quick or not arguments.quick


def _asked_for(system: System, arguments: argparse.Namespace) -> bool:
    if arguments.systems:
        return system.name in arguments.systems
    return not (arguments.quick and system.socks)


def _found(systems: Sequence[System]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of the systems that are here, and why the others are not run."""
    versions, skipped = {}, {}
    for system in systems:
        try:
            versions[system.name] = system.version()
        except (PeerMissing, subprocess.SubprocessError) as reason:
            skipped[system.name] = str(reason)
    return versions, skipped


def _raise_limit() -> None:
    """Allow this process, and so all that it starts, as many open files as it may have: a thousand connections take more than is usual."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end(number: int, _frame: object) -> NoReturn:
    """End all that was started, as after Ctrl-C."""
    sys.exit(128 + number)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark; return 1 when tuunel or raw loopback failed at something. What a peer fails at is part of the results."""
    arguments = _arguments()
    _raise_limit()
    signal.signal(signal.SIGTERM, _end)
    workloads = [workload for workload in WORKLOADS if _chosen(workload, arguments)]
    versions, skipped = _found([system for system in SYSTEMS if _asked_for(system, arguments)])
    for name, reason in skipped.items():
        _tell(f"skipped: {name}: {reason}")
    systems = [system for system in SYSTEMS if system.name in versions]
    results = Results(machine(), arguments.quick, arguments.rounds or (1 if arguments.quick else ROUNDS), versions, skipped)
    others = Others()
    take_turns(results, workloads, systems, _tell)
    results.others_cores = others.cores()
    table = render(results, workloads, systems, limit=LIMIT)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(document(results, workloads, systems), indent=2) + "\n")
    (arguments.output / "results.md").write_text(table)
    (arguments.output / "results.svg").write_text(plot(results, systems, limit=LIMIT))
    print(table, end="")
    own = {system.name for system in systems if isinstance(system, Raw | Tuunel)}
    return 1 if any(system in own for _, system, _ in results.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
