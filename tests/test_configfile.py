"""Reading config.toml: values with their lines, every problem with its remedy, and a second reading beside the first."""

from pathlib import Path

import pytest

from tuunel.config import settings_of
from tuunel.configfile import MAX_SIZE, RunningSettings, load_settings, read_settings
from tuunel.errors import StateError, UsageError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))
    return tmp_path / "config.toml"


def problems(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [f"{error} | {error.advice}" for error in read_settings(path)[1]]


def test_no_file_is_no_settings(path: Path) -> None:
    assert read_settings(path) == ({}, [])


def test_values_come_with_their_lines(path: Path) -> None:
    path.write_text('# ours\n\n[proxy]\nlisten = "localhost:1"\n"all-users" = true\n\n[log]\nlevel = "notice"\n')
    found, wrong = read_settings(path)
    assert not wrong
    assert {name: (each.value, each.where) for name, each in found.items()} == {
        "proxy.listen": ("localhost:1", f"{path}:4"),
        "proxy.all-users": (True, f"{path}:5"),
        "log.level": ("notice", f"{path}:8"),
    }


@pytest.mark.parametrize(
    "text", ['proxy.listen = "localhost:1"', 'proxy = { listen = "localhost:1" }', '["proxy"]\nlisten = "localhost:1"']
)
def test_toml_may_be_written_in_any_of_its_ways(path: Path, text: str) -> None:
    path.write_text(text)
    found, wrong = read_settings(path)
    assert (found["proxy.listen"].value, wrong) == ("localhost:1", [])


def test_every_problem_is_told_with_its_line_the_nearest_name_and_what_is_allowed(path: Path) -> None:
    told = problems(path, '[proxi]\nx = 1\n[proxy]\nlistn = "a"\nlisten = 5\nroute = ["home"]\n[agent]\nall_users = true\n')
    assert len(told) == 5
    assert f"{path}:1: 'proxi' is no table of settings; did you mean 'proxy'? | the tables are relay, agent," in told[0]
    assert f"{path}:4: [proxy] has no setting 'listn'; did you mean 'listen'? | the settings of [proxy] are listen, other," in told[1]
    assert f"{path}:5: [proxy] listen: 5 is not a string | allowed: HOST:PORT" in told[2]
    assert f"{path}:6: [proxy] route: 'home' is not a route | allowed: PATTERN=NAME or CIDR=NAME" in told[3]
    assert f"{path}:8: [agent] has no setting 'all_users'" in told[4]


def test_a_key_at_the_top_is_told(path: Path) -> None:
    assert "'listen' is no table of settings" in problems(path, 'listen = "localhost:1"')[0]


@pytest.mark.parametrize("text", ["[proxy\n", "[proxy]\nlisten = localhost\n", "[proxy]\nlisten = 'a'\nlisten = 'b'\n"])
def test_what_is_no_toml_is_told(path: Path, text: str) -> None:
    told = problems(path, text)
    assert len(told) == 1
    assert "this is not TOML" in told[0]
    assert str(path) in told[0]


def test_secrets_are_refused_and_never_repeated(path: Path) -> None:
    told = problems(path, '[agent]\nlink = "abc"\nallow = ["tuunel://relay.example.net:7443?enrol=hidden"]\n[proxy]\npassword = "hidden"\n')
    assert [f"{path}:{line}: " in each for line, each in zip((2, 3, 5), told, strict=True)] == [True] * 3
    assert all("secrets do not belong" in each for each in told)
    assert "hidden" not in "".join(told)


def test_what_is_no_text_is_told(path: Path) -> None:
    path.write_bytes(b"[proxy]\nlisten = '\xff'\n")
    assert "not UTF-8" in str(read_settings(path)[1][0])


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o622])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    path.write_text("[proxy]\nall-users = true\n")
    path.chmod(mode)
    with pytest.raises(StateError) as caught:
        read_settings(path)
    assert caught.value.advice.endswith(f"chmod go-w '{path}'")


def test_a_directory_a_pipe_and_a_flood_are_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateError):
        read_settings(path)
    path.rmdir()
    path.write_bytes(b"#" * (MAX_SIZE + 1))
    with pytest.raises(StateError):
        read_settings(path)


def test_a_command_starts_with_the_first_problem(path: Path) -> None:
    path.write_text("[proxy]\ndrain = -1\n")
    with pytest.raises(UsageError, match="drain"):
        load_settings(settings_of("relay"))  # the whole file must be good, whoever reads it


class TestReread:
    """A running command reads the file again."""

    @staticmethod
    def running(path: Path, text: str, **pinned: object) -> RunningSettings:
        path.write_text(text)
        return RunningSettings(load_settings(settings_of("proxy")), {name.replace("_", "."): value for name, value in pinned.items()})

    def test_live_values_change_and_fixed_ones_wait(self, path: Path) -> None:
        settings = self.running(path, '[proxy]\nother = "direct"\nlisten = "localhost:1"\n')
        path.write_text('[proxy]\nother = "refuse"\nlisten = "localhost:2"\n')
        for _ in range(2):  # a fixed one is told until it has taken effect
            changes = settings.reread()
            assert [each.setting.name for each in changes.fixed] == ["proxy.listen"]
            assert (settings.value("proxy.other"), settings.value("proxy.listen")) == ("refuse", "localhost:1")
        path.write_text('[proxy]\nlisten = "localhost:1"\n')
        changes = settings.reread()
        assert ([each.setting.name for each in changes.live], changes.fixed) == (["proxy.other"], [])
        assert settings.value("proxy.other") == "direct"

    def test_what_the_command_line_gave_stays(self, path: Path) -> None:
        settings = self.running(path, "", proxy_other="via:home", proxy_listen="localhost:9")
        path.write_text('[proxy]\nother = "refuse"\nlisten = "localhost:2"\n')
        changes = settings.reread()
        assert (changes.live, changes.fixed, settings.value("proxy.other")) == ([], [], "via:home")

    @pytest.mark.parametrize("broken", ["[proxy", "[proxy]\nother = 'away'\n", "[proxy]\noter = 'refuse'\n"])
    def test_a_broken_file_changes_nothing(self, path: Path, broken: str) -> None:
        settings = self.running(path, '[proxy]\nother = "refuse"\n')
        path.write_text(broken)
        with pytest.raises(UsageError):
            settings.reread()
        assert settings.value("proxy.other") == "refuse"
