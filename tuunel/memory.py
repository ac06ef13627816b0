"""How much memory this process may use."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def memory_allowed(root: Path = Path("/")) -> int:
    """The machine's memory in bytes, or less where the process's address space (`ulimit -v`) or its control group may not grow so far.

    Control groups are those of version 2, as systemd's `MemoryMax=` and containers set them; `root` is where /proc and /sys are.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [] if address_space == resource.RLIM_INFINITY else [address_space]
    return min([machine, *limits, *_of_control_groups(root)])


def _of_control_groups(root: Path) -> Iterator[int]:
    """The limits of the process's own group and of those above it. None on a system without such groups."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, _, path = line.partition("::")
            if number == "0":
                group = Path(path)
                for each in (group, *group.parents):
                    yield from _limit(root / "sys/fs/cgroup" / each.relative_to("/") / "memory.max")


def _limit(file: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):  # not there; "max" is no limit
        yield int(file.read_text())
