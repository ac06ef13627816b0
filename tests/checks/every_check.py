"""Switches every check off, one at a time, and demands that a test fails: make checks.

Takes words: then only the checks with one of them in their name or file are done.
"""

import queue
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.checks.mutants import Check, Copy, occurrences
from tests.checks.table import CHECKS

WORKERS = 2


class Round:
    """One run over `checks`: `unnoticed` are those that no test has missed, with what was said instead."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.unnoticed: list[tuple[Check, str]] = []
        self._waiting: queue.SimpleQueue[Check] = queue.SimpleQueue()
        self._number = len(checks)
        self._done = 0
        self._lock = threading.Lock()
        for check in checks:
            self._waiting.put(check)

    def run(self) -> None:
        """Judge them all."""
        with tempfile.TemporaryDirectory(prefix="tuunel-") as place:
            workers = [threading.Thread(target=self._work, args=(Path(place, str(number)),)) for number in range(WORKERS)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

    def _work(self, root: Path) -> None:
        root.mkdir()
        copy = Copy(root)
        while True:
            try:
                check = self._waiting.get_nowait()
            except queue.Empty:
                return
            said = _judge(copy, check)
            with self._lock:
                self._done += 1
                if said:
                    self.unnoticed.append((check, said))
                print(f"{self._done}/{self._number} {check.file}: {check.name}: {'NOT NOTICED' if said else 'noticed'}", flush=True)


def _judge(copy: Copy, check: Check) -> str:
    """Why the check counts for nothing; "" when it counts."""
    if occurrences(check) != 1:
        return "the text to replace is not there, or not once"
    verdict = copy.judge(check, check.tests)
    return "" if verdict.failed and not verdict.broken else verdict.output


def main(words: Sequence[str]) -> int:
    """Run; the exit code."""
    chosen = [check for check in CHECKS if not words or any(word in f"{check.file} {check.name}" for word in words)]
    started = time.monotonic()
    over = Round(chosen)
    over.run()
    for check, said in over.unnoticed:
        print(f"\n{check.file}: nobody misses {check.name!r} (tests/checks/); its tests said:\n{said}")
    print(f"{len(chosen) - len(over.unnoticed)} of {len(chosen)} checks are missed when they are off; {time.monotonic() - started:.0f} s")
    return 1 if over.unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
