"""`tuunel config show` and `tuunel config check`."""

import json
from pathlib import Path

import pytest

from tuunel.cli import app
from tuunel.config import SETTINGS


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    return tmp_path / "config.toml"


def test_show_lists_each_value_and_where_it_comes_from(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text('[proxy]\nother = "refuse"\n')
    monkeypatch.setenv("TUUNEL_RELAY_LISTEN", "localhost:7000")
    assert app.main(["config", "show", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    by_name = {each["name"]: each for each in document["settings"]}
    assert document["file"] == str(path)
    assert list(by_name) == [setting.name for setting in SETTINGS]
    assert (by_name["proxy.other"]["value"], by_name["proxy.other"]["where"]) == ("refuse", f"{path}:2")
    assert (by_name["relay.listen"]["source"], by_name["relay.listen"]["where"]) == ("environment", "TUUNEL_RELAY_LISTEN")
    assert (by_name["proxy.auth"]["source"], by_name["proxy.auth"]["value"]) == ("default", None)
    assert app.main(["config", "show"]) == 0
    shown = capsys.readouterr()
    assert f"{path}:2" in shown.out
    assert str(path) in shown.err


def test_check_says_that_all_is_good(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["config", "check"]) == 0
    assert "there is no" in capsys.readouterr().err
    path.write_text('[proxy]\nother = "refuse"\n')
    assert app.main(["config", "check"]) == 0
    assert "good: 1 setting " in capsys.readouterr().err


def test_check_names_every_problem_and_ends_with_2(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text('[proxy]\nothr = "refuse"\ndrain = "x"\n')
    monkeypatch.setenv("TUUNEL_AGENT_ALLOW", "somebody")
    monkeypatch.setenv("TUUNEL_RELAY_PORT", "tcp://10.0.0.1:7443")
    assert app.main(["config", "check"]) == 2
    told = capsys.readouterr().err
    for part in (f"{path}:2:", f"{path}:3:", "TUUNEL_AGENT_ALLOW", "3 problems", "TUUNEL_RELAY_PORT is no setting, and is ignored"):
        assert part in told
    assert app.main(["config", "check", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], len(document["problems"])) == (False, 3)
