"""Processes of the benchmark: started, asked, measured and ended here."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.place import HERE, Place

ROOT = Path(__file__).resolve().parents[1]
_DEADLINE = 30.0
_STOP_SECONDS = 5.0
_REPORT_CHARS = 2000  # of what a process said, in the report of a failure


class ProcessFailed(Exception):
    """A process ended, or said nothing, where it should have answered. The message holds the last it said."""


class Process:
    """A running process. Its stdout comes line by line; what it says on stderr is kept for the report of a failure.

    A context manager: leaving the block ends it, politely first.
    """

    def __init__(self, argv: Sequence[str], *, place: Place = HERE, env: Mapping[str, str] | None = None) -> None:
        self._argv = [*place.prefix, *argv]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(**(env or {})),
            cwd=ROOT,
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, deadline: float = _DEADLINE) -> bytes:
        """Return the next line of stdout, or raise ProcessFailed."""
        try:
            line = self._lines.get(timeout=deadline)
        except queue.Empty:
            raise ProcessFailed(f"{self._argv[0]} said nothing for {deadline:g} s: {self.said()}") from None
        if line is None:
            raise ProcessFailed(f"{self._argv[0]} ended: {self.said()}")
        return line

    def answer(self, deadline: float = _DEADLINE) -> Any:
        """Return the next line of stdout, read as JSON."""
        return json.loads(self.line(deadline))

    def ask(self, order: Mapping[str, object], deadline: float = _DEADLINE) -> Any:
        """Write `order` to its stdin as a JSON line and return the JSON line that answers it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ProcessFailed(f"{self._argv[0]} ended: {self.said()}") from None
        return self.answer(deadline)

    def end_of_orders(self) -> None:
        """Close its stdin: it is to end by itself."""
        self._close_stdin()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time that it and its living descendants have used so far, or raise ProcessFailed when it has ended."""
        try:
            used = time.clock_gettime(_cpu_clock(self.pid))
        except OSError:
            raise ProcessFailed(f"{self._argv[0]} ended: {self.said()}") from None
        return used + sum(cpu_seconds_of(pid) for pid in descendants(self.pid))

    def said(self) -> str:
        """Return the last it said, on stderr and on what is unread of stdout, and how it ended if it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        size = os.fstat(self._errors.fileno()).st_size
        errors = os.pread(self._errors.fileno(), _REPORT_CHARS, max(0, size - _REPORT_CHARS))
        unread = [self._lines.get_nowait() or b"" for _ in range(self._lines.qsize())]
        text = (b"".join(unread)[-_REPORT_CHARS:] + errors).decode("utf-8", "replace").strip() or "nothing"
        return text if self._process.returncode is None else f"{text} (ended with {self._process.returncode})"

    def stop(self) -> None:
        """End it and release what was held to watch it."""
        self._close_stdin()  # what it has started and cannot be named here may read on
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


class Processes:
    """The processes of one role: usually one."""

    def __init__(self, *processes: Process) -> None:
        self.processes = processes

    def cpu_seconds(self) -> float:
        """Return the CPU time that all of them have used so far, their living descendants too."""
        return sum(process.cpu_seconds() for process in self.processes)

    def memory_bytes(self) -> int:
        """Return what they hold in memory, their living descendants too; what is shared with others counts in part."""
        return sum(_memory_bytes(pid) for process in self.processes for pid in (process.pid, *descendants(process.pid)))

    def said(self) -> str:
        """Return the last they said."""
        return "\n".join(process.said() for process in self.processes)


def descendants(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that live, and those that they have started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            children.setdefault(parent_in(path.read_text(encoding="utf-8", errors="replace")), []).append(int(path.parent.name))
    found, unseen = [], [pid]
    while unseen:
        more = children.get(unseen.pop(), [])
        found += more
        unseen += more
    return found


def parent_in(stat: str) -> int:
    """Return the parent's id from the text of /proc/PID/stat. The program's name stands in brackets before it, and may hold anything."""
    return int(stat.rpartition(")")[2].split()[1])


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time that a process has used so far; 0 for one that has ended."""
    try:
        return time.clock_gettime(_cpu_clock(pid))
    except OSError:  # it has ended meanwhile
        return 0.0


def _memory_bytes(pid: int) -> int:
    try:
        return proportional_in(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8", errors="replace"))
    except OSError:  # it has ended meanwhile
        return 0


def proportional_in(smaps: str) -> int:
    """Return the proportional set size in bytes, from the text of /proc/PID/smaps_rollup; 0 for a process that has no memory."""
    return next((int(line.split()[1]) * 1024 for line in smaps.splitlines() if line.startswith("Pss:")), 0)


def _cpu_clock(pid: int) -> int:
    """Return Linux' number of the clock that counts the CPU time of a whole process: finer than the 10 ms of /proc."""
    return (~pid << 3) | 2


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a process: that of the benchmark, and `extra`."""
    return {**os.environ, **extra}


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line of a module under the interpreter that runs the benchmark."""
    return [sys.executable, "-m", module, *arguments]
