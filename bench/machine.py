"""What the benchmark ran on."""

import os
import platform
from pathlib import Path


def machine() -> dict[str, str | int | float]:
    """Return what a reader needs to judge the figures: processor, cores, memory, kernel, Python, and the load before the run."""
    return {
        "processor": _line("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _line(path: str, name: str) -> str:
    """Return the value of the first `name : value` line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, colon, value in (line.partition(":") for line in lines) if key.strip() == name and colon), "")
