"""Firefox's profiles are found where it keeps them, and get back what they had."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuunel.cli import firefox
from tuunel.cli.ownblock import Block
from tuunel.errors import StateError, UsageError

SETTINGS = 'user_pref("network.proxy.type", 2);\nuser_pref("network.proxy.autoconfig_url", "http://127.0.0.1:1080/proxy.pac");\n'
THEIRS = 'user_pref("a.theirs", true);\nuser_pref("network.proxy.type", 1);\nuser_pref("z.theirs", "end");\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def place(home: Path, name: str, ini: str, *profiles: str) -> Path:
    for each in profiles:
        (home / name / each).mkdir(parents=True)
    (home / name / "profiles.ini").write_text(ini)
    return home / name


def test_the_profile_of_the_installation_comes_before_the_default_one(home: Path) -> None:
    ini = "[Profile1]\nPath=old.default\nDefault=1\n[Profile0]\nPath=new.default-esr\n[Install3B6]\nDefault=new.default-esr\nLocked=1\n"
    found = place(home, ".config/mozilla/firefox", ini, "old.default", "new.default-esr")
    assert firefox.profiles() == [found / "new.default-esr"]


def test_each_firefox_has_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = place(home, ".mozilla/firefox", "[Profile0]\nPath=one\nDefault=1\n[Profile1]\nPath=two\n", "one", "two")
    snap = place(home, "snap/firefox/common/.mozilla/firefox", f"[Profile0]\nIsRelative=0\nPath={home}/far\n", "x")
    (home / "far").mkdir()
    assert firefox.profiles() == [usual / "one", home / "far"]
    assert snap.exists()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    configured = place(home, "xdg/mozilla/firefox", "[Profile0]\nPath=p\n", "p")
    assert firefox.profiles()[0] == configured / "p"


def test_without_a_profile_there_is_nothing_to_write_to(home: Path) -> None:
    place(home, ".mozilla/firefox", "[Profile0]\nPath=gone\nDefault=1\n", "other")
    with pytest.raises(UsageError, match="no Firefox profile"):
        firefox.profiles()


def test_a_damaged_list_of_profiles_is_told(home: Path) -> None:
    place(home, ".mozilla/firefox", "no section\n", "one")
    with pytest.raises(StateError, match=r"profiles\.ini"):
        firefox.profiles()


@pytest.fixture
def profile(home: Path) -> Path:
    (home / "profile").mkdir()
    (home / "profile" / "prefs.js").write_text(THEIRS)
    return home / "profile"


def ours(profile: Path, settings: str = SETTINGS) -> Block:
    return firefox.user_js(profile, lambda: settings)


def firefox_runs(profile: Path) -> None:
    """What a run of Firefox does to prefs.js: what user.js says replaces what was there."""
    values = dict(line.split(", ", 1) for line in (profile / "prefs.js").read_text().splitlines())
    values |= dict(line.split(", ", 1) for line in (profile / "user.js").read_text().splitlines() if line.startswith("user_pref"))
    (profile / "prefs.js").write_text("".join(f"{name}, {value}\n" for name, value in values.items()))


def test_what_was_set_before_comes_back(profile: Path) -> None:
    ours(profile).put()
    firefox_runs(profile)
    ours(profile, SETTINGS.replace("1080", "1081")).put()  # another port, after Firefox has taken our first lines over
    firefox_runs(profile)
    assert firefox.undo(profile, ours(profile))
    assert not (profile / "user.js").exists()
    assert sorted((profile / "prefs.js").read_text().splitlines()) == sorted(THEIRS.splitlines())


def test_what_a_person_has_changed_since_then_stays(profile: Path) -> None:
    ours(profile).put()
    changed = THEIRS.replace("proxy.type", "other") + 'user_pref("network.proxy.type", 5);\n'
    (profile / "prefs.js").write_text(changed)
    assert firefox.undo(profile, ours(profile))
    assert (profile / "prefs.js").read_text() == changed


def test_it_is_not_undone_while_firefox_runs(profile: Path) -> None:
    ours(profile).put()
    before = (profile / "user.js").read_bytes()
    holder = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, os.fspath(profile / ".parentlock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"\n"
        with pytest.raises(StateError, match="Firefox is running"):
            firefox.undo(profile, ours(profile))
        other.communicate()
    assert (profile / "user.js").read_bytes() == before
    assert (profile / "prefs.js").read_text() == THEIRS
    with (profile / ".parentlock").open("ab") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_there_may_be_nothing_to_undo(profile: Path) -> None:
    assert not firefox.undo(profile, ours(profile))
    assert (profile / "prefs.js").read_text() == THEIRS
