"""The command: python -m tests.fuzz. Runs every harness for a number of inputs and prints what came of it."""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.harness import CORPUS, Harness
from tests.fuzz.suite import HARNESSES

MEMORY: Final = 1024  #: MiB of a whole process, with interpreter and instrumentation; above it, a bound does not hold
SLOWEST: Final = 10  #: seconds for one input
MISSING: Final = """\
fuzz: atheris is missing, which chooses the inputs; install it with
fuzz:   .venv/bin/python -m pip install --editable '.[dev,fuzz]'
fuzz: it has wheels for Linux on x86-64; elsewhere pip builds it, with clang and its libFuzzer"""
_PROGRESS: Final = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: \d+ corp: (\d+)/", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one harness."""

    name: str
    inputs: int
    seconds: float
    edges: int
    corpus: int
    findings: tuple[Path, ...]
    ending: str

    def __str__(self) -> str:
        rate = round(self.inputs / self.seconds) if self.seconds else 0
        return f"{self.name:20} {self.inputs:>9} {rate:>9} {self.edges:>6} {self.corpus:>6} {len(self.findings):>8}  {self.ending}"


def main() -> int:
    """Run the harnesses; 1 when an invariant did not hold, 2 when there is nothing to run them with."""
    arguments = _arguments()
    if importlib.util.find_spec("atheris") is None:
        print(MISSING, file=sys.stderr)
        return 2
    print(f"{'harness':20} {'inputs':>9} {'inputs/s':>9} {'edges':>6} {'corpus':>6} {'findings':>8}", flush=True)
    found: list[Path] = []
    for name in arguments.harnesses or HARNESSES:
        row = _fuzz(HARNESSES[name], arguments)
        found += row.findings
        print(row, flush=True)
    for path in found:
        print(f"finding: {path}", file=sys.stderr)
    if found:
        print("finding: replay an input with .venv/bin/python -m tests.fuzz.engine HARNESS FILE", file=sys.stderr)
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="every harness under atheris, one after the other")
    parser.add_argument("harnesses", nargs="*", help="only these")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each harness")
    parser.add_argument("--seconds", type=int, default=1800, help="ceiling for each harness")
    parser.add_argument("--output", type=Path, default=Path(".fuzz"), help="folder for the corpora and findings of this run")
    arguments = parser.parse_args()
    if unknown := set(arguments.harnesses) - set(HARNESSES):
        parser.error(f"no such harness: {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    return arguments


def _fuzz(harness: Harness, arguments: argparse.Namespace) -> Row:
    corpus, findings = arguments.output / "corpus" / harness.name, arguments.output / "findings" / harness.name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with _seeds(harness) as seeds, _dictionary(harness) as dictionary:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.engine", harness.name),
                *(f"-runs={arguments.runs}", f"-max_total_time={arguments.seconds}", f"-max_len={harness.max_length}"),
                *(f"-rss_limit_mb={MEMORY}", f"-timeout={SLOWEST}", f"-artifact_prefix={findings}/", "-len_control=0"),
                *([f"-dict={dictionary}"] if harness.words else []),
                *map(str, (corpus, seeds, *([CORPUS / harness.name] if harness.kept() else []))),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    seconds = time.monotonic() - start
    (arguments.output / f"{harness.name}.log").write_text(done.stdout + done.stderr)
    progress = _PROGRESS.findall(done.stderr)
    inputs, edges, size = map(int, progress[-1]) if progress else (0, 0, 0)
    new = tuple(sorted(path for path in findings.iterdir() if path.stat().st_mtime >= time.time() - seconds - 1))
    if done.returncode and not new:
        new = (arguments.output / f"{harness.name}.log",)  # it did not even start
    ending = "finding" if new else ("all inputs" if inputs >= arguments.runs else "out of time")
    return Row(harness.name, inputs, seconds, edges, size, new, ending)


@contextmanager
def _seeds(harness: Harness) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(harness.seeds):
            (Path(folder) / f"{number:03}").write_bytes(seed)
        yield Path(folder)


@contextmanager
def _dictionary(harness: Harness) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as file:
        for word in harness.words:
            file.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')
        file.flush()
        yield Path(file.name)


if __name__ == "__main__":
    sys.exit(main())
