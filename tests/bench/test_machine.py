"""What is told of the machine, and of what else ran on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.machine import Others, busy_ticks, machine

_HALF_A_SECOND = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_machine_is_told() -> None:
    told = machine()
    assert told["processor"]
    assert int(told["cores"]) >= 1
    assert told["tcp"] in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()


def test_a_core_that_waits_is_not_busy() -> None:
    assert busy_ticks("cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n") == 7_600_321


def test_what_the_benchmark_and_its_processes_used_is_not_the_others() -> None:
    start = time.monotonic()
    before = busy_ticks(Path("/proc/stat").read_text())
    others = Others()
    subprocess.run([sys.executable, "-c", _HALF_A_SECOND], check=True)
    others_seconds = others.cores() * (time.monotonic() - start)
    busy_seconds = (busy_ticks(Path("/proc/stat").read_text()) - before) / os.sysconf("SC_CLK_TCK")
    assert others_seconds < busy_seconds - 0.4
