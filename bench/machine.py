"""What the benchmark ran on."""

import os
import platform
import resource
import time
from pathlib import Path


def machine() -> dict[str, str | int | float]:
    """Return what a reader needs to judge the figures: processor, cores, memory, kernel, its way of congestion control, and Python."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "tcp": _text("/proc/sys/net/ipv4/tcp_congestion_control"),
        "python": platform.python_version(),
    }


class Others:
    """What other processes than the benchmark's use of the processor, from the making of this on."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._before = _others_seconds()

    def cores(self) -> float:
        """Return how many cores they have used on average. True once all processes of the benchmark have ended."""
        return max(0.0, (_others_seconds() - self._before) / (time.monotonic() - self._since))


def _others_seconds() -> float:
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    busy = busy_ticks(Path("/proc/stat").read_text(encoding="ascii")) / os.sysconf("SC_CLK_TCK")
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in own)


def busy_ticks(stat: str) -> int:
    """Return how long all cores together have been at work, from the text of /proc/stat: not idle, nor waiting, nor stolen."""
    user, nice, system, _idle, _disk, irq, softirq = (int(ticks) for ticks in stat.split()[1:8])
    return user + nice + system + irq + softirq


def _text(path: str) -> str:
    """Return what the file says; nothing of one that is not there."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _line(path: str, name: str) -> str:
    """Return the value of the first `name : value` line."""
    lines = _text(path).splitlines()
    return next((value.strip() for key, colon, value in (line.partition(":") for line in lines) if key.strip() == name and colon), "")
