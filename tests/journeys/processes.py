"""Processes with deadlines: started here, read here, ended here by their own pid."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.journeys.peers import SEARCH_PATH

DEADLINE = 30.0  # what a healthy machine does in a second may take this long on a crowded one
ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")
Json = dict[str, Any]


def clean_environment(**extra: str) -> dict[str, str]:
    """An environment without the developer's proxies, agents and settings, so that a journey means the same everywhere."""
    kept = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": SEARCH_PATH, "LANG": "C.UTF-8", "PYTHONWARNINGS": "default", **extra}


def until(condition: Callable[[], T], what: str, deadline: float = DEADLINE, interval: float = 0.02) -> T:
    """Return the first true value of `condition`, asked again and again until `deadline` seconds have passed."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(interval)


class Running:
    """A process of ours. Its stdout is read line by line as it comes, its stderr is kept for the report of a failure.

    As a context manager it ends with the block.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path | None = None) -> None:
        self.argv = list(argv)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, env=dict(env), cwd=cwd
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode("utf-8", "replace").rstrip("\n"))
        self._lines.put(None)

    def line(self, deadline: float = DEADLINE) -> str:
        """Return the next line of stdout."""
        try:
            line = self._lines.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"{self.argv} printed nothing for {deadline:g} s\n{self.errors()}") from None
        if line is None:
            raise AssertionError(f"{self.argv} ended with {self._process.wait(5)}\n{self.errors()}")
        return line

    def ready(self) -> Json:
        """Return the first line of a long-running `--json` command, which must be its ready event."""
        first: Json = json.loads(self.line())
        assert first["event"] == "ready", first
        return first

    def told(self, event: str) -> Json:
        """Return the next event of this kind, of a long-running `--json` command."""
        while True:
            said: Json = json.loads(self.line())
            if said["event"] == event:
                return said

    def forget(self) -> None:
        """Forget what it has said so far."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._lines.get_nowait()

    def rest(self, deadline: float = DEADLINE) -> str:
        """Return what has not been read of stdout; the process must be ending."""
        lines = []
        while (line := self._lines.get(timeout=deadline)) is not None:
            lines.append(line)
        return "\n".join(lines)

    def errors(self) -> str:
        """Return what it has written to stderr so far."""
        if self._errors.closed:
            return ""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), min(size, 20_000), max(0, size - 20_000)).decode("utf-8", "replace")

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, deadline: float = DEADLINE) -> int:
        """Return the exit code."""
        return self._process.wait(deadline)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it at once, as a power cut would: no clean-up code of it runs."""
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """End it, politely first, and release what was held to watch it."""
        if self.alive():
            self.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        written = self.errors()
        if written:
            print(f"--- stderr of {' '.join(self.argv)}\n{written}")
        self._errors.close()


def run(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    stdin: bytes = b"",
    deadline: float = DEADLINE,
    check: bool = True,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; with `check`, it must end with 0."""
    done = subprocess.run(
        list(argv), input=stdin, capture_output=True, env=dict(env or clean_environment()), timeout=deadline, check=False, cwd=cwd
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{list(argv)} ended with {done.returncode}\n{done.stdout[-2000:]!r}\n{done.stderr.decode(errors='replace')}")
    return done


def tuunel_argv(*arguments: str) -> list[str]:
    """The command line of tuunel under the interpreter that runs the tests."""
    return [sys.executable, "-m", "tuunel", *arguments]
