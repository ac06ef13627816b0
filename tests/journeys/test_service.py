"""Services as people run them: units that systemd accepts, and that it starts, watches, reloads and stops."""

import os
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys import doors
from tests.journeys.peers import program
from tests.journeys.processes import Running, run, tuunel_argv, until
from tests.journeys.targets import echo, read_exactly, serving
from tests.journeys.usermanager import UserManager, user_manager
from tests.journeys.verdicts import ask_http_connect
from tests.journeys.world import LOOPBACK, Proxy, Trio, World
from tuunel.control import call
from tuunel.errors import Reason
from tuunel.unitfile import ROLES, WATCHDOG, unit_name

pytestmark = pytest.mark.real


def printed(role: str, *options: str) -> str:
    """The unit that install would write."""
    return run(tuunel_argv("service", "install", role, *options, "--print")).stdout.decode()


@pytest.fixture
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    role, options = request.param
    path = tmp_path / unit_name(role)
    path.write_text(re.sub(r"^.*?(?=\[Unit\])", "", printed(role, *options), flags=re.DOTALL))
    return path


def security(unit: Path) -> float:
    """How exposed systemd thinks the unit is, from 0 to 10."""
    told = run([program("systemd-analyze"), "security", "--offline=true", "--no-pager", str(unit)]).stdout.decode()
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert level, told
    return float(level[1])


@pytest.mark.parametrize("unit", [(role, ["--system"]) for role in ROLES], indirect=True)
def test_systemd_accepts_the_unit_of_the_system_and_finds_it_little_exposed(unit: Path) -> None:
    told = run([program("systemd-analyze"), "--man=no", "verify", str(unit)])
    assert (told.stdout, told.stderr) == (b"", b"")
    assert security(unit) < 2


@pytest.mark.parametrize("unit", [(role, []) for role in ROLES], indirect=True)
def test_systemd_accepts_the_unit_of_a_user(unit: Path) -> None:
    told = run([program("systemd-analyze"), "--man=no", "--user", "verify", str(unit)], {**os.environ, "XDG_RUNTIME_DIR": str(unit.parent)})
    assert (told.stdout, told.stderr) == (b"", b"")


class Notified:
    """A process that is started as systemd starts it: by its ExecStart, with a socket to notify."""

    def __init__(self, unit: str, home: Path) -> None:
        name = f"tuunel-notify-{os.getpid()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")
        self._socket.settimeout(30)
        command = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        assert command
        env = {"TUUNEL_HOME": str(home), "NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "200000"}
        self.process = Running(shlex.split(command[1]), {**os.environ, **env})

    def until(self, wanted: str) -> list[str]:
        """Everything that was told up to `wanted`."""
        told: list[str] = []
        while wanted not in told:
            told += self._socket.recv(4096).decode().split("\n")
        return told

    def end(self) -> None:
        self.process.stop()
        self._socket.close()


def test_what_a_unit_starts_tells_that_it_is_ready_alive_reloading_and_stopping(own_world: World) -> None:
    home = own_world.machine().home
    (home / "config.toml").write_text(f'[relay]\nlisten = "{LOOPBACK}:0"\nadvertise = "localhost"\n')
    notified = Notified(printed("relay"), home)
    try:
        told = notified.until("READY=1")
        told += notified.until("WATCHDOG=1")
        assert any(each.startswith("STATUS=ready on 127.0.0.1:") for each in told)
        notified.until("WATCHDOG=1")
        notified.process.signal(signal.SIGHUP)
        notified.until("RELOADING=1")
        notified.until("READY=1")
        notified.process.terminate()
        notified.until("STOPPING=1")
        assert notified.process.wait() == 0
    finally:
        notified.end()


@pytest.fixture(scope="module")
def manager() -> Iterator[UserManager]:
    with user_manager() as made:
        yield made


def test_systemd_starts_reloads_and_stops_all_three(manager: UserManager, own_trio: Trio) -> None:
    """The seccomp filters of the units are in force here: splice, unix sockets, netlink and threads must get through them."""
    machines = {"relay": own_trio.relay.machine, "agent": own_trio.agent.machine, "proxy": own_trio.laptop}
    listens = {"relay": own_trio.relay.port, "proxy": own_trio.proxy.port}
    for process in (own_trio.proxy.process, own_trio.agent.process, own_trio.relay.process):
        process.stop()
    for role, machine in machines.items():
        if role in listens:
            (machine.home / "config.toml").write_text(f'[{role}]\nlisten = "{LOOPBACK}:{listens[role]}"\n')
        said = manager.tuunel("service", "install", role, TUUNEL_HOME=str(machine.home))
        assert f"written {manager.units / unit_name(role)}" in said
        assert "enable-linger" in said
        manager.until_active(unit_name(role))
    assert manager.ask(unit_name("agent"), "StatusText").endswith(" online")

    proxy = own_trio.proxy
    with serving(echo) as target, until(lambda: reached(proxy, target.port), "the tunnel works", interval=0.2) as opened:
        opened.sock.sendall(b"x" * 1_000_000)
        assert len(read_exactly(opened.sock, 1_000_000)) == 1_000_000
        (own_trio.laptop.home / "config.toml").write_text(f'[proxy]\nlisten = "{LOOPBACK}:{proxy.port}"\nother = "refuse"\n')
        manager.run("systemctl", "--user", "reload", unit_name("proxy"))
        until(lambda: refuses_others(proxy), "the reload has counted", interval=0.1)
        opened.sock.sendall(b"still here")
        assert read_exactly(opened.sock, 10) == b"still here"
    assert [manager.ask(unit_name(role), "NRestarts") for role in machines] == ["0", "0", "0"]

    for role, machine in machines.items():
        said = manager.tuunel("service", "remove", role, TUUNEL_HOME=str(machine.home))
        assert "stopped" in said
        assert (machine.home / "config.toml").exists() or role == "agent"  # only what install has written goes
    assert manager.installed() == []


def reached(proxy: Proxy, port: int) -> doors.Opened | None:
    """A connection through the proxy, once the device can be reached."""
    opened = doors.socks5(proxy.address, "home.tuunel", port)
    if opened.answer.code == 0:
        return opened
    opened.sock.close()
    return None


def refuses_others(proxy: Proxy) -> bool:
    """Whether what is no .tuunel name is refused by a setting."""
    return ask_http_connect(proxy, LOOPBACK, 1).reason is Reason.REFUSED_BY_SETTING


def test_systemd_starts_a_role_anew_that_hangs(manager: UserManager, own_world: World) -> None:
    home = own_world.machine().home
    (home / "config.toml").write_text(f'[proxy]\nlisten = "{LOOPBACK}:0"\n')
    drop_in = manager.units / f"{unit_name('proxy')}.d" / "soon.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\nRestartSec=100ms\nTimeoutAbortSec=1\nLimitCORE=0\n")
    assert WATCHDOG > 2  # nobody wants to wait for it
    try:
        manager.tuunel("service", "install", "proxy", TUUNEL_HOME=str(home))
        manager.until_active(unit_name("proxy"))
        first = int(manager.ask(unit_name("proxy"), "MainPID"))
        os.kill(first, signal.SIGSTOP)
        until(lambda: manager.ask(unit_name("proxy"), "NRestarts") == "1", "it is started anew", interval=0.2)
        manager.until_active(unit_name("proxy"))
        assert int(manager.ask(unit_name("proxy"), "MainPID")) != first
        assert call(home / "run" / "proxy.sock", "status")
    finally:
        manager.tuunel("service", "remove", "proxy", TUUNEL_HOME=str(home))
        drop_in.unlink()
        drop_in.parent.rmdir()


def test_an_agent_that_needs_a_person_is_not_started_again_and_again(manager: UserManager, own_world: World) -> None:
    home = own_world.machine().home
    try:
        manager.tuunel("service", "install", "agent", TUUNEL_HOME=str(home))
        until(lambda: manager.ask(unit_name("agent"), "ActiveState") == "failed", "it fails", interval=0.2)
        assert manager.ask(unit_name("agent"), "NRestarts") == "0"
        assert manager.ask(unit_name("agent"), "ExecMainStatus") == "2"
    finally:
        manager.tuunel("service", "remove", "agent", TUUNEL_HOME=str(home))
