"""Flags, environment and file: one precedence, and a table that is the command line."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.flags import command_of, flag_of
from tuunel.cli import app
from tuunel.config import ROLES, SETTINGS, settings_of
from tuunel.events import Emit

NO_SETTINGS = {"link", "qr", "help"}  # a secret that is needed once, a picture for the person who starts it, and what every command has


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What `tuunel proxy` and `tuunel forward` were started with."""
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    roles: list[SimpleNamespace] = []

    def run_role(name: str, build: Callable[[Emit], Any], **options: Any) -> None:
        roles.append(SimpleNamespace(name=name, **options, **build(print)))

    def taken(home: Any, **arguments: Any) -> dict[str, Any]:
        return arguments

    monkeypatch.setattr("tuunel.cli.running.run_role", run_role)
    monkeypatch.setattr("tuunel.proxy.Proxy", taken)
    monkeypatch.setattr("tuunel.forward.Forward", taken)
    return roles


@pytest.mark.parametrize("role", ROLES)
def test_every_flag_of_a_long_running_command_is_a_setting_and_the_other_way_round(role: str) -> None:
    settings = {flag_of(setting, role).name: setting for setting in settings_of(role)}
    parameters = {each.name: each for each in command_of(role).params if each.name not in NO_SETTINGS}
    assert settings.keys() == parameters.keys()
    for name, setting in settings.items():
        default = parameters[name].default
        assert setting.default == (default if default is not None or setting.default is None else []), setting.name


def test_the_log_settings_are_the_same_flags_everywhere() -> None:
    for setting in SETTINGS:
        if setting.table == "log":
            assert len({flag_of(setting, role).help for role in ROLES}) == 1


def test_flag_above_environment_above_file_above_default(
    started: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(
        '[proxy]\nlisten = "localhost:1"\nother = "refuse"\nroute = ["a.lab=home"]\ndrain = 9\n[log]\njson = true\nlevel = "error"\n'
    )
    monkeypatch.setenv("TUUNEL_PROXY_OTHER", "via:home")
    monkeypatch.setenv("TUUNEL_PROXY_ROUTE", "b.lab=home c.lab=home")
    assert app.main(["proxy", "--route", "d.lab=home"]) == 0
    got = started[0]
    assert (str(got.listen), got.other, got.routes, got.drain) == ("localhost:1", "via:home", ["d.lab=home"], 9.0)
    assert (got.as_json, got.log_level, got.all_users) == (True, "error", False)
    assert got.settings.value("proxy.route") == ["d.lab=home"]  # what a reload starts from
    assert got.settings.value("proxy.other") == "via:home"


def test_a_switch_is_switched_off_by_the_environment(
    started: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[proxy]\nall-users = true\n")
    monkeypatch.setenv("TUUNEL_PROXY_ALL_USERS", "0")
    assert app.main(["proxy"]) == 0
    assert started[0].all_users is False


def test_forwards_may_stand_in_the_file(started: list[SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[forward]\nforwards = ["8080:home.tuunel:80"]\n')
    assert app.main(["forward"]) == 0
    assert app.main(["forward", "9090:home.tuunel:90"]) == 0
    assert [str(role.forwardings[0].to) for role in started] == ["home.tuunel:80", "home.tuunel:90"]


@pytest.mark.parametrize("arguments", [["proxy"], ["agent"], ["relay", "serve"], ["forward", "1:home.tuunel:1"]], ids=" ".join)
def test_nothing_starts_with_settings_that_cannot_be_meant(
    started: list[SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (tmp_path / "config.toml").write_text('[proxy]\nlisen = "localhost:1"\n')
    assert app.main(arguments) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'config.toml'}:2: [proxy] has no setting 'lisen'; did you mean 'listen'?" in told
    assert not started


def test_help_works_whatever_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text("broken")
    assert app.main(["proxy", "--help"]) == 0
    assert "--listen" in capsys.readouterr().out
