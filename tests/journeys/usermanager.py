"""A real systemd, as a user's manager, that can do nothing to this machine but run the units that a test gives it.

- It has a control group of its own, in a cgroup namespace whose root that is: a manager moves every process of its root group.
- It loads units from the test's own directory and from nowhere else: those of a distribution tidy up /tmp and more.
- systemd-tmpfiles is not there, and /run is empty, in its mount namespace.

What cannot be had so is not run.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import Running, clean_environment, run, tuunel_argv, until

SYSTEMD = Path("/lib/systemd/systemd")
TIDIER = "systemd-tmpfiles"
UNITS = {  # the little that a manager needs to begin and to end
    "default.target": "[Unit]\nDescription=everything\nAllowIsolate=yes\n",
    "basic.target": "[Unit]\nDescription=the beginning\n",
    "shutdown.target": "[Unit]\nDescription=the end of everything\nDefaultDependencies=no\n",
    "exit.target": (
        "[Unit]\nDescription=exit\nDefaultDependencies=no\nRequires=systemd-exit.service\nAfter=systemd-exit.service\nAllowIsolate=yes\n"
    ),
    "systemd-exit.service": (
        "[Unit]\nDescription=exit\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\nSuccessAction=exit-force\n"
        "[Service]\nSlice=-.slice\n"
    ),
}
_JOIN = """
set -e
mount -t tmpfs tmpfs /mnt && mkdir /mnt/groups && mount -t cgroup2 none /mnt/groups
own=/mnt/groups$(sed -n 's/^0:://p' /proc/self/cgroup)/tuunel-test-$$
mkdir "$own" && echo $$ > "$own/cgroup.procs" && umount /mnt/groups /mnt
exec unshare --cgroup --mount --propagation private bash -c "$@"
"""
_START = """
set -e
mount -t cgroup2 none /sys/fs/cgroup
grep -qx 0::/ /proc/self/cgroup && [ "$(head -1 /sys/fs/cgroup/cgroup.procs)" = $$ ]  # nobody else is in there
mount --bind /bin/false "$2"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/user/0 && chmod 700 /run/user/0
exec setpriv --pdeathsig TERM "$1" --user
"""


@dataclass
class UserManager:
    """The manager, and the home directory of the user whose it is."""

    process: Running
    home: Path

    @property
    def units(self) -> Path:
        return self.home / ".config" / "systemd" / "user"

    def installed(self) -> list[str]:
        """What lies in the directory of units, but for those that the manager itself needs."""
        return sorted(str(path.relative_to(self.units)) for path in self.units.rglob("*") if not path.is_dir() and path.name not in UNITS)

    def run(self, *argv: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run a program as that user, beside the manager."""
        inside = [program("nsenter"), "--target", str(self.process.pid), "--mount"]
        return run([*inside, *argv], _environment(self.home) | env, check=check)

    def tuunel(self, *arguments: str, **env: str) -> str:
        """Run a command of tuunel; what it says to a person."""
        return self.run(*tuunel_argv(*arguments), **env).stderr.decode()

    def ask(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "--user", "show", "--value", "--property", name, unit).stdout.decode().strip()

    def until_active(self, unit: str) -> None:
        """Wait until the unit has said that it is ready."""
        until(lambda: self.ask(unit, "ActiveState") == "active", f"{unit} is ready", interval=0.1)


@contextlib.contextmanager
def user_manager() -> Iterator[UserManager]:
    """Start a manager, and end it with its units. Skips where this machine does not let one run."""
    tidier = shutil.which(TIDIER)
    if os.geteuid() != 0 or not SYSTEMD.exists() or tidier is None:
        pytest.skip("a systemd of the test's own needs root and systemd's programs")
    ours = Path("/proc/1/cgroup").read_text()
    with tempfile.TemporaryDirectory(prefix="tuusd", dir="/tmp") as home:
        start = ["unshare", "--mount", "--propagation", "private", "bash", "-c", _JOIN, "bash", _START, "bash", str(SYSTEMD), tidier]
        units = Path(home) / ".config" / "systemd" / "user"
        units.mkdir(parents=True)
        for name, content in UNITS.items():
            (units / name).write_text(content)
        manager = UserManager(Running(start, _environment(Path(home))), Path(home))
        try:
            until(lambda: not manager.process.alive() or _answers(manager), "systemd answers")
            if not manager.process.alive():
                pytest.skip(f"this machine lets no systemd run in a test: {manager.process.errors()}")
            yield manager
        finally:
            manager.process.stop()
            _remove_groups(manager.process.pid)
    assert Path("/proc/1/cgroup").read_text() == ours


def _environment(home: Path) -> dict[str, str]:
    own = {"HOME": str(home), "XDG_RUNTIME_DIR": "/run/user/0", "SYSTEMD_LOG_TARGET": "console"}
    return clean_environment() | own | {"SYSTEMD_UNIT_PATH": str(home / ".config" / "systemd" / "user")}


def _answers(manager: UserManager) -> bool:
    return manager.run("systemctl", "--user", "is-system-running", check=False).stdout.strip() in {b"running", b"degraded"}


def _remove_groups(pid: int) -> None:
    """Remove the control groups that the manager had, once they are empty."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for root in (Path(point) for _, point, kind, *_ in mounts if kind == "cgroup2"):
        for own in root.rglob(f"tuunel-test-{pid}"):
            for group in sorted((each for each in [own, *own.rglob("*")] if each.is_dir()), reverse=True):
                until(lambda group=group: not (group / "cgroup.procs").read_text(), f"nothing runs in {group}")
                group.rmdir()
