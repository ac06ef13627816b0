"""What the relay reckons its room by: the least of what the machine has and what the process may take."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tuunel.memory import memory_allowed
from tuunel.relay.server import CONNECTION_MEMORY, capacity_within

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system whose process is in the control group /a/b."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/elsewhere\n0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    return tmp_path


@pytest.fixture(autouse=True)
def no_limit_of_this_process() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("this process's own address space is limited")


def test_without_a_limit_it_is_the_machines(tmp_path: Path, system: Path) -> None:
    assert memory_allowed(tmp_path / "nothing") == MACHINE
    assert memory_allowed(system) == MACHINE


@pytest.mark.parametrize(
    ("own", "above", "expected"), [("4096", "max", 4096), ("max", "8192", 8192), ("4096", "1024", 1024), ("max", "max", MACHINE)]
)
def test_a_control_group_and_those_above_it_limit_it(system: Path, own: str, above: str, expected: int) -> None:
    (system / "sys/fs/cgroup/a/b/memory.max").write_text(f"{own}\n")
    (system / "sys/fs/cgroup/a/memory.max").write_text(f"{above}\n")
    assert memory_allowed(system) == expected


def test_the_address_space_limits_it() -> None:
    script = "from tuunel.memory import memory_allowed; print(memory_allowed())"
    done = subprocess.run(["sh", "-c", 'ulimit -v 262144; exec "$@"', "sh", sys.executable, "-c", script], capture_output=True, check=True)
    assert int(done.stdout) == 262144 * 1024


def test_a_relay_has_room_for_what_half_of_its_memory_holds() -> None:
    assert capacity_within(1_000_000, 2 * 100 * CONNECTION_MEMORY) == 100
    assert capacity_within(1_000_000, 1 << 50) == capacity_within(1_000_000, 1 << 60) > 100
    assert capacity_within(64, 0) == 2
