"""The package with one check switched off, in a throw-away copy, and what its tests say of it.

The tests run in a fresh process, forked from one that has imported what other people wrote and nothing of this repository: so hundreds
of them take a minute or two.
"""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COPIED = ("tuunel", "tests", "docs", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("checks", "fuzz", "bench")
PRELOADED = [
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "anyio.pytest_plugin",
    "cryptography.hazmat.primitives.asymmetric.mlkem",
    "cryptography.x509.verification",
    "h11",
    "hypothesis",
    "ifaddr",
    "pytest",
    "pytest_timeout",
    "trio",
]
#: What was imported before pytest began is no fault, and what a broken product leaves open is not what is asked here.
TOLERANT = ("-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:unraisableexception", "-p", "no:threadexception")
TEST_TIME = 20  # seconds for one test: what was switched off may be what ends it
TIME = 90.0  # seconds for the tests of one check


@dataclass(frozen=True, slots=True)
class Check:
    """One verification. `old` stands exactly once in `file`, below tuunel/; with `new` in its place the verification is off.

    `attack` is what it stops, `tests` are the ids of tests of which at least one must fail without it.
    """

    name: str
    file: str
    old: str
    new: str
    attack: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said: which failed, and which could not run at all (not collected, or broken before their first line)."""

    failed: tuple[str, ...]
    broken: tuple[str, ...]
    output: str


def occurrences(check: Check) -> int:
    """How often the text to replace stands in the file as it is now."""
    return (REPOSITORY / "tuunel" / check.file).read_text().count(check.old)


class Copy:
    """A throw-away copy of the repository in `root`, whose package is whole but while `judge` runs."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=LEFT_OUT)
            else:
                shutil.copy2(source, root / name)

    def judge(self, check: Check, tests: Sequence[str]) -> Verdict:
        """Run `tests` without the check, up to the first one that fails."""
        with self._without(check):
            return self._run(tests)

    @contextmanager
    def _without(self, check: Check) -> Iterator[None]:
        path = self._root / "tuunel" / check.file
        whole, times = path.read_text(), path.stat()
        path.write_text(whole.replace(check.old, check.new))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))  # or the compiled file of the whole text would be taken
        try:
            yield
        finally:
            path.write_text(whole)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _run(self, tests: Sequence[str]) -> Verdict:
        answer = self._root / "answer"
        answer.unlink(missing_ok=True)
        process = _server().Process(target=_run_tests, args=(self._root, tuple(tests), answer))
        process.start()
        process.join(TIME)
        if process.is_alive():
            process.kill()
            process.join()
        output = answer.with_suffix(".log").read_text(errors="replace")
        if not answer.exists():
            return Verdict((), tuple(tests), output)
        said = json.loads(answer.read_text())
        return Verdict(tuple(said["failed"]), tuple(said["broken"]), output)


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run_tests(root: Path, tests: Sequence[str], answer: Path) -> None:
    """In the new process, which has this module and its packages from the real repository: they and the path to them must go first."""
    os.chdir(root)
    with answer.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "tuunel")]:
        del sys.modules[name]
    sys.path[:] = [str(root), *(place for place in sys.path if place and not Path(place, "tuunel").exists())]
    sys.dont_write_bytecode = True
    os.environ["TMPDIR"] = tempfile.tempdir = str(root)
    recorder = _Recorder(root)
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", f"--timeout={TEST_TIME}", f"--rootdir={root}", *TOLERANT]
    code = pytest.main([*tests, *options], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        recorder.broken.append(f"pytest ended with {code!r}")
    answer.write_text(json.dumps({"failed": recorder.failed, "broken": recorder.broken}))
    sys.stdout.flush()
    os._exit(0)  # threads that a broken product has left behind are not waited for


class _Recorder:
    """A pytest plugin: keeps what failed apart from what could not run."""

    def __init__(self, root: Path) -> None:
        self.failed: list[str] = []
        self.broken: list[str] = []
        self._root = root

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            (self.broken if report.when == "setup" else self.failed).append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        package = sys.modules.get("tuunel")
        if package is None or not str(package.__file__).startswith(str(self._root)):
            self.broken.append("these tests run the real package")
