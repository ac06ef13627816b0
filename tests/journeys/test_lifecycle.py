"""What people do over days: restart, revoke, stop, install, try the demo."""

import json
import signal
import subprocess
import time
import venv
from pathlib import Path

import pytest

from tests.journeys import doors
from tests.journeys.processes import ROOT, Json, clean_environment, run, tuunel_argv, until
from tests.journeys.targets import echo, hold, note_how_it_ends, read_exactly, read_to_end, serving
from tests.journeys.world import Proxy, Trio, World
from tuunel.errors import NotRunning, StateError

pytestmark = pytest.mark.real

BACK_WITHIN = 60.0


def echoes(proxy: Proxy, port: int) -> bool:
    """Whether a connection through the proxy works."""
    with doors.socks5(proxy.address, "home.tuunel", port) as opened:
        if opened.answer.code != 0:
            return False
        opened.sock.sendall(b"hello")
        return read_exactly(opened.sock, 5) == b"hello"


def test_a_restarted_relay_keeps_its_devices_and_everybody_comes_back(own_trio: Trio) -> None:
    assert own_trio.walker.ask("devices")["device_id"]
    before = {device["device_id"] for device in own_trio.relay.machine.ask("relay", "devices")["devices"]}
    assert len(before) == 3
    with serving(echo) as target:
        assert echoes(own_trio.proxy, target.port)
        own_trio.relay.process.stop()
        again = own_trio.world.relay(own_trio.relay.machine, port=own_trio.relay.port)
        assert again.link is None  # a live enrolment link is not written into every restart's log
        until(lambda: echoes(own_trio.proxy, target.port), "the tunnel works again", BACK_WITHIN, 0.2)
        assert own_trio.walker.nc("home", target.port, stdin=b"too").stdout == b"too"
    assert {device["device_id"] for device in own_trio.relay.machine.ask("relay", "devices")["devices"]} == before


def test_a_restarted_agent_keeps_its_identity_and_its_clients(own_trio: Trio) -> None:
    own_trio.agent.process.stop()
    again = own_trio.world.agent(None, machine=own_trio.agent.machine)  # a second run needs no link
    assert (again.device_id, again.invite) == (own_trio.agent.device_id, None)
    with serving(echo) as target:
        until(lambda: echoes(own_trio.proxy, target.port), "the tunnel works again", BACK_WITHIN, 0.2)


def test_a_killed_agent_comes_back_at_once(own_trio: Trio) -> None:
    """The relay still holds the dead one's connections; the new instance must not be refused as a duplicate for long."""
    own_trio.agent.process.kill()
    own_trio.world.agent(None, machine=own_trio.agent.machine)
    with serving(echo) as target:
        until(lambda: echoes(own_trio.proxy, target.port), "the tunnel works again", BACK_WITHIN, 0.2)


def test_a_revoke_cuts_live_tunnels_of_that_client_only(own_trio: Trio) -> None:
    guest = own_trio.world.laptop(own_trio.agent.new_invite("--name", "guest"))
    guests_proxy = own_trio.world.proxy(guest)
    with (
        serving(hold) as target,
        doors.socks5(guests_proxy.address, "home.tuunel", target.port) as theirs,
        doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as mine,
    ):
        target.accepted(2)
        revoked = own_trio.agent.machine.ask("revoke", "guest")
        assert revoked["cut"] >= 1  # and the standby tunnels
        theirs.sock.settimeout(5)
        with pytest.raises(ConnectionResetError):
            read_to_end(theirs.sock)
        for connection in target.connections:
            try:
                connection.sendall(b"on")
            except OSError:
                continue
        assert read_exactly(mine.sock, 2) == b"on"
    names = [client["name"] for client in own_trio.agent.machine.ask("clients")["clients"]]
    assert "guest" not in names
    assert len(names) == 1


def test_the_operator_bans_a_device_and_its_tunnels_end(own_trio: Trio) -> None:
    with serving(note_how_it_ends) as target, doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as opened:
        target.accepted()
        own_trio.relay.machine.ask("relay", "revoke", own_trio.agent.device_id)
        opened.sock.settimeout(5)
        with pytest.raises(ConnectionResetError):
            read_to_end(opened.sock)
        assert target.noted() == ["reset"]


def test_the_agent_lists_its_clients_and_open_invites(own_trio: Trio) -> None:
    own_trio.agent.machine.ask("invite", "--for", "8h", "--uses", "2", "--name", "guest", "--target", "127.0.0.1:80")
    listed = own_trio.agent.machine.ask("clients")
    assert len(listed["clients"]) == 1
    assert [(invite["name"], invite["uses"]) for invite in listed["invites"]] == [("guest", 2)]


def test_devices_are_listed_renamed_and_forgotten(own_trio: Trio) -> None:
    def names() -> list[str]:
        return [device["name"] for device in own_trio.walker.ask("devices")["devices"]]

    assert names() == ["home"]
    own_trio.walker.tuunel("rename", "home", "house")
    assert names() == ["house"]
    with serving(echo) as target:
        assert own_trio.walker.nc("house", target.port, stdin=b"renamed").stdout == b"renamed"
    own_trio.walker.tuunel("forget", "house")
    assert names() == []


def test_a_running_proxy_sees_what_is_paired_later(own_world: World, trio: Trio) -> None:
    machine = own_world.machine()
    proxy = own_world.proxy(machine)
    invite = trio.agent.new_invite()
    machine.tuunel("pair", "-", "--name", "home", stdin=invite.encode() + b"\n")  # the secret stays off the command line
    with serving(echo) as target:
        until(lambda: echoes(proxy, target.port), "the proxy knows the new device", 10, 0.2)


def test_a_fleet_is_admitted_before_the_first_start(own_world: World) -> None:
    relay, client = own_world.relay(), own_world.machine()
    assert relay.link
    first = own_world.agent(relay.link)
    client.tuunel("devices", "add", first.device_id, "--relay", relay.new_link(), "--name", "first")
    open_agent = own_world.agent(relay.new_link(), "--allow", "enrolled")
    assert open_agent.invite is None
    with serving(echo) as target:
        done = client.nc(open_agent.device_id, target.port, stdin=b"zero touch")
    assert done.stdout == b"zero touch", done.stderr


def test_state_is_private(trio: Trio) -> None:
    for machine in (trio.relay.machine, trio.agent.machine, trio.laptop):
        exposed = [path for path in machine.home.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077]
        assert not exposed


def test_a_key_that_others_can_read_is_refused(own_world: World, trio: Trio) -> None:
    machine = own_world.laptop(trio.agent.new_invite())
    (machine.home / "identity.pem").chmod(0o644)
    done = machine.nc("home", 80)
    assert done.returncode == StateError.exit_code
    assert b"chmod" in done.stderr or b"0600" in done.stderr


@pytest.mark.parametrize("arguments", [["invite"], ["clients"], ["revoke", "x"], ["relay", "link"], ["relay", "devices"]], ids=" ".join)
def test_a_command_that_needs_a_running_role_says_so(own_world: World, arguments: list[str]) -> None:
    done = own_world.machine().tuunel(*arguments, check=False)
    assert (done.returncode, done.stdout) == (NotRunning.exit_code, b"")
    assert done.stderr


def test_a_second_proxy_of_the_same_state_is_refused(trio: Trio) -> None:
    done = trio.laptop.tuunel("proxy", "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 62
    assert trio.proxy.process.alive()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", ["proxy", "agent", "relay"])
def test_a_signal_ends_a_role_within_two_seconds_even_with_open_tunnels(own_trio: Trio, role: str, how: signal.Signals) -> None:
    process = {"proxy": own_trio.proxy.process, "agent": own_trio.agent.process, "relay": own_trio.relay.process}[role]
    with serving(hold) as target, doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as opened:
        target.accepted()
        began = time.monotonic()
        process.signal(how)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 4  # two seconds for the tunnels, and what a crowded machine needs to exit
        opened.sock.settimeout(5)
        with pytest.raises(ConnectionResetError):
            read_to_end(opened.sock)
    assert "Traceback" not in process.errors()
    leftovers = list(own_trio.laptop.home.rglob("*.sock")) if role == "proxy" else []
    assert leftovers == []


def test_an_idle_proxy_ends_at_once(own_world: World) -> None:
    proxy = own_world.proxy(own_world.machine())
    began = time.monotonic()
    proxy.process.terminate()
    assert proxy.process.wait(10) == 0
    assert time.monotonic() - began < 2


@pytest.mark.timeout(180)
def test_the_demo_visits_every_front_door() -> None:
    done = run(tuunel_argv("demo", "--once", "--json"), clean_environment(), deadline=120)
    document: Json = json.loads(done.stdout)
    assert document["ok"]
    assert len(document["visits"]) >= 4
    assert all(visit["ok"] for visit in document["visits"])
    shown = run(tuunel_argv("demo", "--once"), clean_environment(), deadline=120)
    assert shown.stdout.count(b"ok") >= len(document["visits"])


@pytest.mark.timeout(400)
def test_pip_installs_it_into_a_fresh_environment(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    installed = subprocess.run(
        [binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT)],
        capture_output=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr.decode()
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "tuunel-proxy.1").exists()
    shown = run([str(binaries / "tuunel"), "--help"], clean_environment(NO_COLOR="1", COLUMNS="120"), cwd=tmp_path).stdout.decode()
    for command in ("relay", "agent", "pair", "proxy", "nc"):
        assert command in shown
