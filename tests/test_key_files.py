"""Key and state files that are not as tuunel left them: every command tells which file is wrong and what to do, and changes nothing.

Asked through the command line, so that no command has a way of its own to its files.
"""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tuunel.address import HostPort
from tuunel.cli import app, running
from tuunel.devices import Devices
from tuunel.errors import StateError
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.links import Invite, RelayLink
from tuunel.relay.credentials import create_root
from tuunel.relay.store import Store
from tuunel.settings import Home
from tuunel.statefile import MAX_SIZE, write_json, write_private

NOBODY = 65534
LINK = RelayLink(HostPort("127.0.0.1", 9), bytes(range(32)), bytes(16))
DEVICE = IdentityKey.from_private_value(7).device_id
INVITE = Invite(LINK, DEVICE, bytes(16))

#: Which commands read which file of a home.
READERS: dict[str, list[list[str]]] = {
    "identity.pem": [
        ["devices"],
        ["agent"],
        ["proxy", "--listen", "127.0.0.1:0"],
        ["forward", "0:home.tuunel:22"],
        ["pair", str(INVITE)],
        ["devices", "add", str(DEVICE), "--relay", str(LINK), "--name", "other"],
        ["nc", "home", "22"],
    ],
    "devices.json": [["devices"], ["rename", "home", "house"], ["forget", "home"], ["agent"], ["pair", str(INVITE)], ["nc", "home", "22"]],
    "agent.json": [["agent"]],
    "relay/root.pem": [["relay", "serve", "--listen", "127.0.0.1:0"]],
}
CASES = [pytest.param(name, arguments, id=f"{name}-{'-'.join(arguments[:2])}") for name, all_ in READERS.items() for arguments in all_]
EXIT = StateError.exit_code


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home that every role has used. A role that starts, where it must not, ends after a moment with the wrong exit code."""

    async def serve(build: Callable[[Any], Any], audience: running.Audience, _drain: float, **_rest: object) -> None:
        role = build(audience.emit)
        with anyio.move_on_after(5):
            await role.run()

    monkeypatch.setattr(running, "serve", serve)
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path / "home"))
    made = Home.find()
    made.ensure()
    IdentityKey.load_or_create(made.identity_key)
    create_root(made.relay_dir / "root.pem", 1_800_000_000)
    anyio.run(make_registry, made.relay_dir / "devices.db")
    devices = Devices(made.devices_file)
    devices.remember_relay(LINK, enrolled=True)
    devices.add("home", DEVICE, LINK.pin)
    write_json(made.root / "agent.json", 1, {"relay": LINK.pin.hex()})
    Grants(made.grants_file, (), admit_enrolled=False).make_invite(bytes(16), ["*"], uses=1, expires=2_000_000_000, name="x", now=1)
    return made


async def make_registry(path: Path) -> None:
    await (await Store.open(path, lambda: 1_800_000_000)).aclose()


def content_of(home: Home) -> dict[str, tuple[int, bytes]]:
    """Kind and content of everything in the home but locks and sockets."""
    found = {}
    for path in sorted(home.root.rglob("*")):
        status = path.lstat()
        if path.suffix != ".lock" and not stat.S_ISSOCK(status.st_mode):
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < MAX_SIZE else b""
            found[str(path)] = (status.st_mode, content)
    return found


def refused(home: Home, name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The command ends as it should with a state file that is not right, and has touched nothing: what it said."""
    before = content_of(home)
    assert app.main(arguments) == EXIT
    said = capsys.readouterr().err
    assert str(home.root / name) in said
    assert len(said.splitlines()) == 2, "what happened, and what to do about it"
    assert content_of(home) == before
    return said


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_file_that_others_can_open_is_refused(name: str, arguments: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    path = home.root / name
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        assert f"chmod 600 '{path}'" in refused(home, name, arguments, capsys)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_what_is_no_file_is_refused_and_not_waited_for(
    name: str, arguments: list[str], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home.root / name
    path.unlink()
    os.mkfifo(path, 0o600)
    assert "not a regular file" in refused(home, name, arguments, capsys)
    path.unlink()
    path.mkdir(0o700)
    refused(home, name, arguments, capsys)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_file_that_was_cut_or_mangled_is_told_and_kept(
    name: str, arguments: list[str], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home.root / name
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], whole[:-20], b"\xff" * 100, b"\0" * len(whole)):
        write_private(path, damage)
        assert "damaged" in refused(home, name, arguments, capsys)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    path.chmod(0o600)
    assert "larger" in refused(home, name, arguments, capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_file_of_somebody_else_is_refused(name: str, arguments: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(home.root / name, NOBODY, NOBODY)
    assert "another user" in refused(home, name, arguments, capsys)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_link_is_judged_by_what_it_leads_to(name: str, arguments: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Some keep their keys elsewhere, and link them. What lies there must be as private as here."""
    path, elsewhere = home.root / name, home.root.parent / "elsewhere"
    elsewhere.mkdir()
    real = elsewhere / path.name
    path.rename(real)
    path.symlink_to(real)
    real.chmod(0o644)
    assert "chmod 600" in refused(home, name, arguments, capsys)
    real.chmod(0o600)
    path.unlink()
    path.symlink_to(path)
    refused(home, name, arguments, capsys)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a regular file" in refused(home, name, arguments, capsys)


@pytest.mark.parametrize("directory", ["", "run", "relay"])
@pytest.mark.parametrize(
    "arguments", [["devices"], ["agent"], ["proxy", "--listen", "127.0.0.1:0"], ["relay", "serve"], ["pair", str(INVITE)]]
)
def test_a_directory_in_which_others_can_write_is_refused(
    directory: str, arguments: list[str], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home.root / directory
    for mode in (0o770, 0o702, 0o1777):
        path.chmod(mode)
        assert f"chmod 700 '{path}'" in refused(home, directory, arguments, capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
@pytest.mark.parametrize("directory", ["", "run", "relay"])
def test_a_directory_of_somebody_else_is_refused(directory: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(home.root / directory, NOBODY, NOBODY)
    assert "another user" in refused(home, directory, ["devices"], capsys)


def test_a_new_home_is_private_whatever_the_umask_says(tmp_path: Path) -> None:
    """The first command of a machine, with a careless shell."""
    script = "import os, sys; os.umask(0); from tuunel.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "TUUNEL_HOME": str(tmp_path / "new" / "home")}
    subprocess.run([sys.executable, "-c", script, "devices"], env=environment, check=True, capture_output=True, timeout=60)
    modes = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "home").rglob("*")}
    assert set(modes.values()) <= {0o700, 0o600}, modes
    assert not stat.S_IMODE((tmp_path / "new" / "home").stat().st_mode) & 0o022


def test_two_first_commands_at_once_make_one_identity(tmp_path: Path) -> None:
    environment = {**os.environ, "TUUNEL_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-m", "tuunel", "devices", "--json"]
    started = [subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    answers = [process.communicate(timeout=60) for process in started]
    assert {process.returncode for process in started} == {0}, answers
    assert len({json.loads(out)["device_id"] for out, _ in answers}) == 1
