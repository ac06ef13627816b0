"""Choose what is worth keeping of a run's corpora: python -m tests.fuzz.keep FOLDER [HARNESS ...].

Every line and every way from one line to the next that the whole corpus reaches, the kept inputs reach too. Few large inputs teach more
than many small ones, but a person reads the small one: so the smallest comes first.
"""

import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import h11

from tests.fuzz.harness import CORPUS, Harness
from tests.fuzz.suite import HARNESSES
from tuunel import errors

MEASURED: Final = tuple(str(Path(each).parent) for each in (errors.__file__, h11.__file__))
MOST: Final = 16  #: inputs of one harness, those that reach most: the corpus is replayed at every run of the suite

Arcs = frozenset[tuple[str, int, int]]


def reach(harness: Harness, data: bytes) -> Arcs:
    """The ways from line to line of tuunel and h11 that an input takes; none when it breaks the invariant."""
    taken: set[tuple[str, int, int]] = set()
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(MEASURED):
            return None
        if event == "line":
            taken.add((name, before.get(frame, -frame.f_code.co_firstlineno), frame.f_lineno))
            before[frame] = frame.f_lineno
        elif event == "return":
            before.pop(frame, None)
        return trace

    sys.settrace(trace)
    try:
        harness.run(data)
    except Exception:  # a finding: it is kept elsewhere
        return frozenset()
    finally:
        sys.settrace(None)
    return frozenset(taken)


def choose(harness: Harness, inputs: list[bytes]) -> list[bytes]:
    """The inputs that add to what the seeds reach, each the one that adds most when it is chosen."""
    known = frozenset().union(*(reach(harness, seed) for seed in harness.seeds))
    reached = {data: reach(harness, data) - known for data in sorted(set(inputs), key=lambda data: (len(data), data))}
    chosen: list[bytes] = []
    while reached and len(chosen) < MOST:
        best = max(reached, key=lambda data: len(reached[data]))
        if not reached[best]:
            break
        chosen.append(best)
        gained = reached.pop(best)
        reached = {data: arcs - gained for data, arcs in reached.items()}
    return chosen


def main() -> None:
    """Write the chosen inputs in place of the kept ones."""
    run = Path(sys.argv[1]) / "corpus"
    for harness in [HARNESSES[name] for name in sys.argv[2:] or HARNESSES]:
        folder = CORPUS / harness.name
        old = harness.kept()
        found = [path.read_bytes() for path in [*old, *(run / harness.name).glob("*")]]
        chosen = choose(harness, found)
        for path in old:
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for data in chosen:
            (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        print(f"{harness.name:20} {len(found):>6} {len(chosen):>4}", flush=True)


if __name__ == "__main__":
    main()
