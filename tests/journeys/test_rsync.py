"""rsync over `tuunel nc`: to its own daemon (over ssh: test_ssh.py)."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import Running, clean_environment, run, tuunel_argv, until
from tests.journeys.sockets import listens
from tests.journeys.targets import closed_port
from tests.journeys.world import LOOPBACK, Machine, Trio

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Daemon:
    """An rsync daemon whose module `files` is `directory`."""

    port: int
    directory: Path

    def env(self, machine: Machine) -> dict[str, str]:
        """What makes rsync reach it through `tuunel nc` on `machine`."""
        return {**machine.env, "RSYNC_CONNECT_PROG": shlex.join(tuunel_argv("nc", "%H", str(self.port)))}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    rsync = program("rsync")
    with tempfile.TemporaryDirectory(prefix="tuursync", dir="/tmp") as name:
        directory, port = Path(name), closed_port()
        (directory / "files").mkdir()
        user = f"uid = {os.geteuid()}\ngid = {os.getegid()}\n" if os.geteuid() == 0 else ""
        (directory / "config").write_text(f"use chroot = no\n{user}[files]\npath = {directory}/files\nread only = no\n")
        command = [rsync, "--daemon", "--no-detach", f"--address={LOOPBACK}", f"--port={port}", f"--config={directory}/config"]
        with Running([*command, f"--log-file={directory}/log"], clean_environment()) as process:
            until(lambda: listens(port) or not process.alive(), "the rsync daemon listens")
            assert process.alive(), process.errors()
            yield Daemon(port, directory / "files")


@pytest.fixture(params=["through the running proxy", "by itself"])
def machine(trio: Trio, request: pytest.FixtureRequest) -> Machine:
    return trio.laptop if request.param == "through the running proxy" else trio.walker


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_tree_goes_up_changes_and_comes_down(daemon: Daemon, machine: Machine, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    for number in range(100):
        path = here / f"{number % 7}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000 * number))
    there = f"rsync://home.tuunel/files/{tmp_path.name}/"
    command = [program("rsync"), "--archive", "--delete", "--contimeout=20"]
    run([*command, f"{here}/", there], daemon.env(machine))
    assert tree(daemon.directory / tmp_path.name) == tree(here)
    (here / "3" / "3").unlink()
    (here / "6" / "97").write_bytes(b"changed")
    run([*command, f"{here}/", there], daemon.env(machine))
    run([*command, there, f"{back}/"], daemon.env(machine))
    assert tree(back) == tree(here)
