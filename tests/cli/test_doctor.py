"""`tuunel doctor`: each fault is made for real, and told with its remedy."""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuunel import listen
from tuunel.address import HostPort
from tuunel.checkmachine import check_environment
from tuunel.checkrelay import compare_clocks
from tuunel.cli import app
from tuunel.devices import Devices, KnownRelay
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.settings import Home

PROXY = ["127.0.0.1:1080", "[::1]:1080"]
DOCTOR = [sys.executable, "-m", "tuunel", "doctor"]
RELAY = KnownRelay(bytes(32), HostPort("relay.example", 7443), enrolled=True)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A state directory that is whole, in an environment that says nothing. Its path is short enough for sockets."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("TUUNEL_"):
            monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="tuudoc", dir="/tmp") as name:
        monkeypatch.setenv("HOME", name)
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        monkeypatch.setenv("TUUNEL_HOME", f"{name}/state")
        monkeypatch.setenv("TUUNEL_PROXY_LISTEN", f"127.0.0.1:{free_port()}")
        made = Home.find()
        made.ensure()
        IdentityKey.load_or_create(made.identity_key)
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs it: what it says of one check that is not ok, with its exit code checked."""

    def run(check: str) -> dict[str, str]:
        capsys.readouterr()  # of what came before
        code = app.main(["doctor", "--json"])
        document = json.loads(capsys.readouterr().out)
        assert code == (0 if document["ok"] else 1)
        assert document["ok"] == all(each["state"] != "wrong" for each in document["checks"])
        assert all(each["fix"] for each in document["checks"] if each["state"] != "ok")
        (found,) = (each for each in document["checks"] if each["state"] != "ok")
        assert found["check"] == check
        return dict(found)

    return run


def test_nothing_is_wrong_with_a_machine_that_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["doctor"]) == 0
    out, errors = capsys.readouterr()
    assert errors == "nothing is wrong\n"
    assert all(line.startswith("ok ") for line in out.splitlines())
    assert "\x1b" not in out
    for check in (
        "versions",
        "encryption",
        "open files",
        "state",
        "settings",
        "files",
        "identity",
        "roles",
        "relay",
        "port",
        "environment",
    ):
        assert f"  {check} " in out


def test_it_changes_nothing_and_makes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(home.root.rglob("*"))
    assert app.main(["doctor"]) == 0
    assert sorted(home.root.rglob("*")) == before
    monkeypatch.setenv("TUUNEL_HOME", f"{home.root}/elsewhere")
    assert app.main(["doctor"]) == 0
    assert not (home.root / "elsewhere").exists()


def test_it_shows_no_secret(home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (home.root / "proxy-password").write_text("s3cret-of-the-proxy\n")
    monkeypatch.setenv("ALL_PROXY", "socks5://ann:s3cret-of-ann@127.0.0.1:1080")
    Grants(home.grants_file).make_invite(b"s3cret-of-invite", ("*",), uses=1, expires=2**33, name="", now=0, access=None)
    for arguments in (["doctor"], ["doctor", "--json"]):
        app.main(arguments)
    shown = "".join(capsys.readouterr())
    assert "s3cret" not in shown
    assert not [line for line in home.identity_key.read_text().splitlines()[1:-1] if line in shown]


# the state directory


@pytest.mark.parametrize(("mode", "state"), [(0o755, "warning"), (0o770, "wrong")])
def test_a_directory_that_is_open_to_others(home: Home, doctor: Any, mode: int, state: str) -> None:
    home.root.chmod(mode)
    found = doctor("state")
    assert (found["state"], found["fix"]) == (state, f"chmod 700 '{home.root}'")


def test_a_key_that_others_can_read(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.identity_key.chmod(0o644)
    assert app.main(["doctor"]) == 1
    out, errors = capsys.readouterr()
    assert f"fix: chmod 600 '{home.identity_key}'" in out
    assert errors == "2 things wrong, 0 warnings\n"  # as a file, and as the key that is refused for it


@pytest.mark.parametrize(("name", "check"), [("identity.pem", "identity"), ("devices.json", "devices"), ("grants.json", "grants")])
def test_a_damaged_file(home: Home, doctor: Any, name: str, check: str) -> None:
    (home.root / name).write_text("damaged")
    (home.root / name).chmod(0o600)
    assert "damaged" in doctor(check)["what"]


def test_a_damaged_key_of_a_relay_and_a_damaged_choice_of_the_agent(home: Home, doctor: Any) -> None:
    root, agent = home.relay_dir / "root.pem", home.root / "agent.json"
    root.write_text("damaged")
    root.chmod(0o600)
    assert "damaged" in doctor("relay key")["what"]
    root.unlink()
    agent.write_text("[]")
    agent.chmod(0o600)
    assert "damaged" in doctor("agent")["what"]


def test_a_directory_and_a_key_of_somebody_else(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (home.root, home.identity_key):
        os.chown(path, 65534, 65534)
    assert app.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"{home.root} belongs to another user" in out
    assert f"{home.identity_key} belongs to another user" in out


def test_a_path_that_is_too_long_for_sockets(home: Home, monkeypatch: pytest.MonkeyPatch, doctor: Any) -> None:
    long = home.root / ("x" * 90)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("TUUNEL_HOME", str(long))
    found = doctor("state")
    assert "too long for a unix socket" in found["what"]
    assert "TUUNEL_HOME" in found["fix"]


def test_a_second_state_directory(home: Home, doctor: Any) -> None:
    usual = Path(os.environ["HOME"]) / ".local" / "state" / "tuunel"
    usual.mkdir(parents=True)
    IdentityKey.load_or_create(usual / "identity.pem")
    found = doctor("state")
    assert found["state"] == "warning"
    assert str(usual) in found["what"]
    assert str(home.root) in found["what"]


def test_settings_that_cannot_be_meant(home: Home, doctor: Any) -> None:
    (home.root / "config.toml").write_text('[proxy]\nlissten = "localhost:1080"\n')
    (home.root / "config.toml").chmod(0o600)
    assert "lissten" in doctor("settings")["what"]


def test_a_variable_that_cannot_be_meant(monkeypatch: pytest.MonkeyPatch, doctor: Any) -> None:
    monkeypatch.setenv("TUUNEL_PROXY_OTHER", "sideways")
    assert "sideways" in doctor("settings")["what"]


# the machine


def test_few_open_files() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    done = subprocess.run(
        [sys.executable, "-m", "tuunel", "doctor"], check=False, capture_output=True, text=True, preexec_fn=few, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "warning  open files" in done.stdout
    assert "at most 256: enough for some 112 tunnels at a time" in done.stdout


def test_an_encryption_that_is_not_whole(home: Home) -> None:
    """A real process whose `cryptography` has no ML-KEM: other commands are refused, this one tells the versions."""
    (home.root / "sitecustomize.py").write_text("import sys; sys.modules['cryptography.hazmat.primitives.asymmetric.mlkem'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(home.root)}
    done = subprocess.run(
        [sys.executable, "-m", "tuunel", "doctor"], check=False, capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "wrong    encryption" in done.stdout
    assert "cryptography>=48" in done.stdout
    assert "ok       versions" in done.stdout


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch, doctor: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("TUUNEL_PROXY_LISTEN", f"localhost:{port}")
        found = doctor("port")
    assert found["state"] == "warning"
    assert f"127.0.0.1:{port}" in found["what"]
    assert f"ss -ltnp sport = :{port}" in found["fix"]


# the environment


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("value", "state", "told"),
    [
        ("socks5h://localhost:1080", "ok", name_of := "to the proxy"),
        ("http://127.0.0.1:1080/", "ok", name_of),
        ("localhost:1080", "ok", name_of),
        ("socks5://localhost:1080", "wrong", "socks5h://"),
        ("socks4://[::1]:1080", "wrong", "socks4a://"),
        ("https://localhost:1080", "wrong", "http://"),
        ("http://proxy.example:3128", "warning", "proxy.example:3128"),
        ("http://localhost:3128", "warning", "localhost:3128"),
        ("http://localhost:many", "wrong", "no address"),
    ],
)
def test_where_a_variable_sends_programs(name: str, value: str, state: str, told: str) -> None:
    (finding,) = check_environment({name: value}, PROXY)
    assert finding.state == state
    assert told in finding.what + finding.fix


@pytest.mark.parametrize("past", ["*", ".tuunel", "home.tuunel", "localhost, TUUNEL", "home.tuunel:8080"])
def test_exceptions_that_lead_past_the_proxy(past: str) -> None:
    finding, *others = check_environment({"ALL_PROXY": "socks5h://localhost:1080", "NO_PROXY": past}, PROXY)
    assert finding.state == "wrong"
    assert "NO_PROXY" in finding.fix
    assert not others


def test_exceptions_for_this_machine_are_well(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = check_environment({"ALL_PROXY": "socks5h://localhost:1080", "NO_PROXY": "localhost,127.0.0.1,::1,nottuunel"}, PROXY)
    assert finding.state == "ok"
    monkeypatch.setenv("ALL_PROXY", "socks5://localhost:1080")
    monkeypatch.setenv("TUUNEL_PROXY_LISTEN", "localhost:1080")
    assert "leak" in doctor("environment")["what"]


# what setup has written


def test_lines_for_ssh_that_name_another_state_directory(home: Home, monkeypatch: pytest.MonkeyPatch, doctor: Any) -> None:
    assert app.main(["setup", "ssh", "--write"]) == 0
    assert app.main(["doctor"]) == 0
    other = home.root.parent / "other"
    other.mkdir(mode=0o700)
    monkeypatch.setenv("TUUNEL_HOME", str(other))
    found = doctor("clients")
    assert (found["state"], found["fix"]) == ("warning", "tuunel setup ssh --write")


def test_damaged_lines_for_ssh(doctor: Any) -> None:
    assert app.main(["setup", "ssh", "--write"]) == 0
    config = Path(os.environ["HOME"]) / ".ssh" / "config"
    config.write_text(config.read_text().replace("# tuunel: end", ""))
    assert "damaged" in doctor("clients")["what"]


# roles and relays; those that answer are in tests/journeys/test_doctor.py and tests/test_checkrelay.py


def test_a_socket_that_a_killed_role_has_left(home: Home, doctor: Any) -> None:
    listen.open_unix_listener(home.socket("agent")).close()
    found = doctor("roles")
    assert (found["state"], str(home.socket("agent")) in found["what"]) == ("warning", True)


def test_relays_are_not_asked_without_a_key(home: Home, doctor: Any) -> None:
    Devices(home.devices_file)
    home.devices_file.write_text('{"version": 1, "relays": [{"id": "%s", "address": "127.0.0.1:1", "enrolled": true}]}' % ("00" * 32))
    home.devices_file.chmod(0o600)
    home.identity_key.unlink()
    assert "no usable key" in doctor("relay")["what"]


@pytest.mark.parametrize(
    ("off", "state", "said"), [(0, "ok", "agrees"), (59, "ok", "agrees"), (-60, "warning", "60 s behind"), (600, "wrong", "600 s ahead of")]
)
def test_clocks_that_differ(off: int, state: str, said: str) -> None:
    finding = compare_clocks(RELAY, 1_000_000 + off, 1_000_000)
    assert finding.state == state
    assert said in finding.what
