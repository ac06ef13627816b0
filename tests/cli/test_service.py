"""`tuunel service`: what is written where, and what is left alone."""

import plistlib
import sys
from pathlib import Path

import pytest

from tuunel import unitfile
from tuunel.cli import app, service
from tuunel.unitfile import MARK, launchd_file, quoted


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, on a machine where no systemd runs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    for name in ("XDG_CONFIG_HOME", "TUUNEL_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


@pytest.fixture
def machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose /etc may be written, and where no systemd runs."""
    monkeypatch.setattr(unitfile, "SYSTEM_UNITS", home / "units")
    monkeypatch.setattr(unitfile, "SYSUSERS", home / "sysusers.d" / "tuunel.conf")
    monkeypatch.setattr(service, "systemd_runs", lambda *, system: False)
    monkeypatch.setattr(service, "program", lambda: ["/opt/tuunel/bin/tuunel"])
    monkeypatch.setattr(service, "what_runs", lambda: [Path("/opt/tuunel/bin/tuunel"), Path("/usr/bin/python3")])
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return home


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def test_install_writes_a_unit_and_says_what_to_do_where_no_systemd_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["service", "install", "relay"]) == 0
    assert files(home) == [".config/systemd/user/tuunel-relay.service"]
    unit = (home / files(home)[0]).read_text()
    assert MARK in unit
    assert "Type=notify\n" in unit
    assert "Restart=always\n" in unit
    assert "TUUNEL_HOME" not in unit
    said = capsys.readouterr().err
    assert "systemctl --user enable --now tuunel-relay.service" in said
    assert "tuunel relay link" in said
    assert "loginctl enable-linger" in said


def test_a_chosen_home_goes_into_the_unit(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUUNEL_HOME", "/srv/my state")
    assert app.main(["service", "install", "proxy", "--print"]) == 0
    assert 'Environment="TUUNEL_HOME=/srv/my state"\n' in capsys.readouterr().out
    assert files(home) == []  # printed only


def test_remove_takes_out_what_install_wrote_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = home / ".config" / "systemd" / "user" / "other.service"
    beside.parent.mkdir(parents=True)
    beside.write_text("[Unit]\n")
    for role in ("relay", "proxy"):
        app.main(["service", "install", role])
    assert app.main(["service", "remove", "relay"]) == 0
    assert files(home) == [".config/systemd/user/other.service", ".config/systemd/user/tuunel-proxy.service"]
    assert app.main(["service", "remove", "relay"]) == 0
    assert "nothing to remove" in capsys.readouterr().err


def test_a_unit_that_is_not_ours_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = home / ".config" / "systemd" / "user" / "tuunel-relay.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\nDescription=by hand\n")
    assert app.main(["service", "install", "relay"]) == 60
    assert app.main(["service", "remove", "relay"]) == 0
    assert unit.read_text() == "[Unit]\nDescription=by hand\n"


def test_system_services_share_a_user_until_the_last_is_removed(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("relay", "agent"):
        assert app.main(["service", "install", role, "--system"]) == 0
    said = capsys.readouterr().err
    assert "systemd-sysusers" in said
    assert "sudo -u tuunel env TUUNEL_HOME=/var/lib/tuunel /opt/tuunel/bin/tuunel relay link" in said
    assert files(machine) == ["sysusers.d/tuunel.conf", "units/tuunel-agent.service", "units/tuunel-relay.service"]
    unit = (machine / "units" / "tuunel-relay.service").read_text()
    assert "ExecStart=/opt/tuunel/bin/tuunel relay serve\n" in unit
    assert "Environment=TUUNEL_HOME=/var/lib/tuunel\n" in unit
    assert app.main(["service", "remove", "agent", "--system"]) == 0
    assert files(machine) == ["sysusers.d/tuunel.conf", "units/tuunel-relay.service"]
    assert app.main(["service", "remove", "relay", "--system"]) == 0
    assert files(machine) == []


def test_a_system_proxy_says_whom_it_serves(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["service", "install", "proxy", "--system"]) == 0
    assert "all-users" in capsys.readouterr().err


def test_a_system_service_needs_root(machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert app.main(["service", "install", "relay", "--system"]) == 2
    assert "sudo" in capsys.readouterr().err
    assert files(machine) == []


@pytest.mark.parametrize("where", ["/home/me/.local/bin/tuunel", "/root/venv/bin/tuunel", "/tmp/venv/bin/tuunel"])
def test_a_program_in_somebodys_home_is_no_system_service(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    monkeypatch.setattr(service, "what_runs", lambda: [Path("/usr/bin/python3"), Path(where)])
    assert app.main(["service", "install", "relay", "--system"]) == 2
    assert "hidden" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/usr/bin/tuunel", "/usr/bin/tuunel"),
        ("/srv/my files/tuunel", '"/srv/my files/tuunel"'),
        ("/srv/100%/$HOME", '"/srv/100%%/$$HOME"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("", '""'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(word: str, written: str) -> None:
    assert quoted(word) == written


def test_launchd_gets_a_property_list(tmp_path: Path) -> None:
    made = launchd_file("relay", ["/opt/tuunel", "relay", "serve"], tmp_path, home=Path("/srv/t"), user="me", log=Path("/x.log"))
    assert made.path == tmp_path / "tuunel.relay.plist"
    assert MARK in made.content
    read = plistlib.loads(made.content.encode())
    assert (read["Label"], read["ProgramArguments"], read["RunAtLoad"]) == ("tuunel.relay", ["/opt/tuunel", "relay", "serve"], True)
    assert (read["EnvironmentVariables"], read["UserName"]) == ({"TUUNEL_HOME": "/srv/t"}, "me")
