"""Where state lives, and that nobody else can put anything there."""

import stat
from pathlib import Path

import platformdirs
import pytest

from tuunel.errors import StateError
from tuunel.settings import MAX_SOCKET_PATH, Home


def test_the_variable_names_the_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path / "state"))
    assert Home.find() == Home(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_relative_directory_and_a_tilde_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("state", "~/state"):
        monkeypatch.setenv("TUUNEL_HOME", text)
        assert Home.find().root == tmp_path / "state"


@pytest.mark.parametrize("value", [None, ""])
def test_without_it_the_platform_decides(monkeypatch, value):
    monkeypatch.delenv("TUUNEL_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("TUUNEL_HOME", value)
    assert Home.find().root == platformdirs.user_state_path("tuunel", appauthor=False)


def test_every_file_has_its_place(tmp_path):
    home = Home(tmp_path)
    places = [home.identity_key, home.grants_file, home.devices_file, home.relay_dir, home.run_dir]
    assert [place.name for place in places] == ["identity.pem", "grants.json", "devices.json", "relay", "run"]
    assert {place.parent for place in places} == {tmp_path}
    assert home.socket("agent") == tmp_path / "run" / "agent.sock"


def test_the_directories_are_made_private(tmp_path):
    home = Home(tmp_path / "deep" / "state")
    for _ in range(2):
        home.ensure()
        for directory in (home.root, home.run_dir, home.relay_dir):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_can_write_is_refused_with_the_remedy(tmp_path, mode):
    root = tmp_path / "state"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(StateError) as caught:
        Home(root).ensure()
    assert caught.value.advice == f"chmod 700 '{root}'"


def test_a_file_in_its_place_is_a_state_error(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError):
        Home(tmp_path / "state").ensure()


def test_a_path_that_no_socket_can_have_is_told_with_the_remedy():
    def home(length: int) -> Home:
        return Home(Path("/" + "a" * (length - 1 - len("/run/agent.sock"))))

    assert len(str(home(MAX_SOCKET_PATH).socket("agent"))) == MAX_SOCKET_PATH
    with pytest.raises(StateError) as caught:
        home(MAX_SOCKET_PATH + 1).socket("agent")
    assert "TUUNEL_HOME" in caught.value.advice


def test_the_length_counts_bytes():
    with pytest.raises(StateError):
        Home(Path("/" + "ä" * 50)).socket("agent")
