"""ssh, scp, rsync and git over `tuunel nc` as ProxyCommand, against a real sshd with throw-away keys."""

import getpass
import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journeys.peers import missing, program
from tests.journeys.processes import Running, clean_environment, run, tuunel_argv, until
from tests.journeys.targets import closed_port
from tests.journeys.world import LOOPBACK, Machine, Trio

pytestmark = pytest.mark.real


@dataclass
class Sshd:
    """A running sshd: where it listens, and the client's key and known-hosts file."""

    port: int
    directory: Path

    def options(self, machine: Machine) -> list[str]:
        """The client options that make ssh reach it through `tuunel nc` on `machine`."""
        proxy_command = f"env TUUNEL_HOME={machine.home} {shlex.join(tuunel_argv('nc'))} %h %p"
        settings = {
            "ProxyCommand": proxy_command,
            "IdentityFile": self.directory / "client",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.directory / "known_hosts",
            "GlobalKnownHostsFile": os.devnull,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "Port": self.port,
        }
        return ["-F", os.devnull, *(f"-o{name}={value}" for name, value in settings.items())]


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    binary, keygen = program("sshd"), program("ssh-keygen")
    program("ssh")
    with tempfile.TemporaryDirectory(prefix="tuussh", dir="/tmp") as name:
        directory = Path(name)
        for key in ("host", "client"):
            run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", str(directory / key)])
        port = closed_port()
        host_key = (directory / "host.pub").read_text().split()[:2]
        (directory / "known_hosts").write_text(f"[home.tuunel]:{port} {' '.join(host_key)}\n")
        (directory / "authorized_keys").write_text((directory / "client.pub").read_text())
        (directory / "config").write_text(
            f"ListenAddress {LOOPBACK}:{port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized_keys\n"
            f"PidFile {directory}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
            "Subsystem sftp internal-sftp\nLogLevel VERBOSE\nMaxStartups 100\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, run by root, separates its privileges
        server = Running([binary, "-D", "-e", "-f", str(directory / "config")], clean_environment())
        try:
            until(lambda: "listening" in server.errors() or not server.alive(), "sshd listens")
            if not server.alive():
                missing(f"an sshd that starts ({server.errors()})")
            yield Sshd(port, directory)
        finally:
            server.stop()


@pytest.fixture(params=["through the running proxy", "by itself"])
def machine(trio: Trio, request: pytest.FixtureRequest) -> Machine:
    return trio.laptop if request.param == "through the running proxy" else trio.walker


def destination() -> str:
    return f"{getpass.getuser()}@home.tuunel"


def test_ssh_runs_a_command(sshd: Sshd, machine: Machine) -> None:
    done = run(["ssh", *sshd.options(machine), destination(), "cat; exit 7"], stdin=b"typed here\n", check=False)
    assert (done.stdout, done.returncode) == (b"typed here\n", 7), done.stderr


def test_ssh_takes_what_setup_wrote_whatever_else_its_file_says(sshd: Sshd, machine: Machine, tmp_path: Path) -> None:
    theirs = (
        f"Host *\n    ProxyCommand false\n    User {getpass.getuser()}\n    Port {sshd.port}\n    IdentityFile {sshd.directory}/client\n"
    )
    config = tmp_path / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text(theirs + f"    UserKnownHostsFile {sshd.directory}/known_hosts\n    StrictHostKeyChecking yes\n    BatchMode yes")
    before = config.read_bytes()
    run(tuunel_argv("setup", "ssh", "--write"), {**machine.env, "HOME": str(tmp_path)})
    bare_environment = {"PATH": "/usr/bin:/bin"}  # as an editor has it: neither tuunel nor TUUNEL_HOME
    done = run([program("ssh"), "-F", str(config), "home.tuunel", "echo there"], bare_environment)
    assert done.stdout == b"there\n"
    git, bare = program("git"), tmp_path / "project.git"
    run([git, "init", "-q", "--bare", str(bare)], bare_environment)
    run([git, "-c", f"core.sshCommand=ssh -F {config}", "clone", "-q", f"home.tuunel:{bare}", str(tmp_path / "clone")], bare_environment)
    assert (tmp_path / "clone" / ".git").is_dir()
    other = run([program("ssh"), "-F", str(config), "-G", "example.org"], bare_environment).stdout.decode().splitlines()
    assert {"proxycommand false", f"port {sshd.port}"} <= set(other), "the lines behind ours still hold for every host"
    run(tuunel_argv("setup", "ssh", "--undo"), {**machine.env, "HOME": str(tmp_path)})
    assert config.read_bytes() == before


def test_scp_carries_200_mb_both_ways(sshd: Sshd, machine: Machine, tmp_path: Path) -> None:
    scp = program("scp")
    original, there, back = tmp_path / "original", tmp_path / "there", tmp_path / "back"
    original.write_bytes(os.urandom(200_000_000))
    wanted = hashlib.sha256(original.read_bytes()).digest()
    run([scp, "-q", *sshd.options(machine), str(original), f"{destination()}:{there}"], deadline=110)
    assert hashlib.sha256(there.read_bytes()).digest() == wanted
    original.unlink()
    run([scp, "-q", *sshd.options(machine), f"{destination()}:{there}", str(back)], deadline=110)
    assert hashlib.sha256(back.read_bytes()).digest() == wanted


def test_rsync_copies_a_tree(sshd: Sshd, machine: Machine, tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    (original / "below").mkdir(parents=True)
    for name in ("one", "below/two"):
        (original / name).write_bytes(os.urandom(1_000_000))
    shell = shlex.join(["ssh", *sshd.options(machine)])
    run([program("rsync"), "--archive", "-e", shell, f"{destination()}:{original}/", f"{copy}/"])
    for name in ("one", "below/two"):
        assert (copy / name).read_bytes() == (original / name).read_bytes()


def test_git_clones_and_pushes(sshd: Sshd, machine: Machine, tmp_path: Path) -> None:
    git = program("git")
    env = clean_environment(
        GIT_SSH_COMMAND=shlex.join(["ssh", *sshd.options(machine)]),
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_SYSTEM=os.devnull,
        **{
            f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "Ann"), ("EMAIL", "ann@example.org"))
        },
    )
    bare, clone = tmp_path / "project.git", tmp_path / "clone"
    run([git, "init", "-q", "--bare", "--initial-branch=main", str(bare)], env)
    run([git, "clone", "-q", f"ssh://{destination()}:{sshd.port}{bare}", str(clone)], env)
    (clone / "data").write_bytes(os.urandom(5_000_000))
    run([git, "-C", str(clone), "switch", "-q", "-c", "main"], env, check=False)
    run([git, "-C", str(clone), "add", "data"], env)
    run([git, "-C", str(clone), "commit", "-q", "-m", "a file"], env)
    run([git, "-C", str(clone), "push", "-q", "origin", "HEAD:main"], env)
    again = tmp_path / "again"
    run([git, "clone", "-q", f"ssh://{destination()}:{sshd.port}{bare}", str(again)], env)
    assert (again / "data").read_bytes() == (clone / "data").read_bytes()
