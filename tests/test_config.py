"""The table of settings: names that derive from flags, and values that can be meant or are refused."""

from pathlib import Path
from typing import Any

import pytest

from tuunel.config import BY_NAME, SETTINGS, Resolved, Source, config_file, from_environment, resolve, strange_variables
from tuunel.errors import UsageError

GOOD: dict[str, list[Any]] = {
    "relay.listen": ["[::]:7443", "0.0.0.0:1", "localhost"],
    "relay.advertise": ["relay.example.net", "relay.example.net:443"],
    "agent.allow": [[], ["enrolled"]],
    "proxy.other": ["direct", "refuse", "via:home"],
    "proxy.route": [["*.lab.example.com=home", "10.0.0.0/8=home"]],
    "proxy.drain": [0, 1, 2.5],
    "proxy.all-users": [True, False],
    "forward.forwards": [["8080:home.tuunel:80", "5353:home.tuunel:53/udp"]],
    "forward.http-hosts": ["localhost,nas.lan"],
    "log.level": ["error", "info"],
}
BAD: dict[str, list[Any]] = {
    "relay.listen": ["[::", "host:99999", 7443, ["[::]:1"], ""],
    "agent.allow": [["mrupz"], "enrolled", [1]],
    "proxy.other": ["via:", "away", True],
    "proxy.route": [["home"], ["*.tuunel=home"], "*.lab=home"],
    "proxy.drain": [-1, "2", True, float("inf"), float("nan")],
    "proxy.all-users": ["yes", 1],
    "forward.forwards": [["80"], ["8080:example.com:80"]],
    "log.level": ["debug", "INFO", 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_can_be_meant_is_taken(name: str, value: Any) -> None:
    assert BY_NAME[name].problem(value) is None


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_what_cannot_be_meant_is_refused(name: str, value: Any) -> None:
    assert BY_NAME[name].problem(value)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_default_can_be_meant(setting: Any) -> None:
    assert setting.default is None or setting.problem(setting.default) is None


def test_the_name_in_the_environment_derives_from_the_flag() -> None:
    assert BY_NAME["proxy.all-users"].environment == "TUUNEL_PROXY_ALL_USERS"
    assert BY_NAME["proxy.all-users"].flag == "--all-users"
    assert len({setting.environment for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("proxy.listen", "localhost:1081", "localhost:1081"),
        ("proxy.all-users", "1", True),
        ("proxy.all-users", "Off", False),
        ("proxy.drain", "0.5", 0.5),
        ("proxy.route", "*.lab=home  10.0.0.0/8=home", ["*.lab=home", "10.0.0.0/8=home"]),
    ],
)
def test_the_environment_is_read_as_the_setting_wants_it(name: str, text: str, value: Any) -> None:
    setting = BY_NAME[name]
    found = from_environment(setting, {setting.environment: text})
    assert found == Resolved(setting, value, Source.ENVIRONMENT, setting.environment)


@pytest.mark.parametrize(("name", "text"), [("proxy.all-users", "maybe"), ("proxy.drain", "soon"), ("proxy.route", "home")])
def test_an_environment_that_cannot_be_meant_is_refused_by_the_variables_name(name: str, text: str) -> None:
    setting = BY_NAME[name]
    with pytest.raises(UsageError, match=setting.environment):
        from_environment(setting, {setting.environment: text})


def test_an_empty_variable_is_none() -> None:
    assert from_environment(BY_NAME["proxy.listen"], {"TUUNEL_PROXY_LISTEN": ""}) is None


def test_the_environment_stands_above_the_file_and_that_above_the_default() -> None:
    listen, other, auth = (BY_NAME[f"proxy.{key}"] for key in ("listen", "other", "auth"))
    in_file = {each.name: Resolved(each, "refuse", Source.FILE, "config.toml:1") for each in (listen, other)}
    found = resolve([listen, other, auth], in_file, {"TUUNEL_PROXY_LISTEN": "localhost:1"})
    assert [found[each.name].source for each in (listen, other, auth)] == [Source.ENVIRONMENT, Source.FILE, Source.DEFAULT]


def test_variables_of_a_container_platform_are_told_and_not_refused() -> None:
    environ = {"TUUNEL_RELAY_PORT": "tcp://10.0.0.1:7443", "TUUNEL_HOME": "/x", "TUUNEL_RELAY_LISTEN": "[::]:1", "PATH": "/bin"}
    assert strange_variables(environ) == ["TUUNEL_RELAY_PORT"]


def test_the_file_is_in_the_home_directory_else_where_the_platform_keeps_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    assert config_file() == tmp_path / "config.toml"
    monkeypatch.delenv("TUUNEL_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert config_file().name == "config.toml"
    assert "tuunel" in config_file().parts
