"""Is this machine's state whole, and its owner's alone? Reads every file of it and changes none. Source: docs/reference/doctor.md."""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import platformdirs

from tuunel.config import SETTINGS, config_file
from tuunel.configfile import load_settings, read_settings
from tuunel.devices import Devices
from tuunel.errors import TuunelError
from tuunel.finding import Finding, failed, ok, warning, wrong
from tuunel.grants import Grants
from tuunel.identity import IdentityKey
from tuunel.relay.credentials import load_root
from tuunel.settings import VARIABLE, WRITABLE_BY_OTHERS, Home
from tuunel.statefile import check_private, read_json

READABLE_BY_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
LONGEST_ROLE: Final = f"forward-{2**22}"  # the longest name of a socket: the largest process number of Linux
SUFFIXES: Final = (".pem", ".json", ".db", ".toml")


def check_state(home: Home, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look at the state directory and everything in it."""
    try:
        findings = [*_other_home(home, environ)]
        if not home.root.exists():
            return [*findings, ok("state", f"{home.root} does not exist yet: nothing is set up here")]
        findings += _directories(home)
        findings += _settings(environ)
        findings += _files(home)
        findings += [finding for content in _contents(home) if (finding := content()) is not None]
    except OSError as error:
        return [wrong("state", f"{home.root} cannot be looked at: {error.strerror}", "check its owner and modes, and those above it")]
    return findings


def _other_home(home: Home, environ: Mapping[str, str]) -> Iterator[Finding]:
    usual = platformdirs.user_state_path("tuunel", appauthor=False)
    if environ.get(VARIABLE) and home.root.resolve() != usual.resolve() and (usual / home.identity_key.name).exists():
        yield warning(
            "state",
            f"{VARIABLE} is {home.root}, but {usual} holds another identity: what is started without the variable uses that one",
            f"set {VARIABLE} everywhere (a service, an editor), or move one of the two away",
        )


def _directories(home: Home) -> Iterator[Finding]:
    bad = False
    for directory in (home.root, home.run_dir, home.relay_dir):
        finding = _directory(directory) if directory.exists() else None
        bad = bad or finding is not None
        if finding is not None:
            yield finding
    try:
        home.socket(LONGEST_ROLE)
    except TuunelError as error:
        bad = True
        yield failed("state", error)
    if not bad:
        yield ok("state", f"{home.root}, yours alone")


def _directory(path: Path) -> Finding | None:
    status = path.stat()
    if status.st_uid != os.geteuid():
        return wrong("state", f"{path} belongs to another user", f"run tuunel as that user, or set {VARIABLE} to a directory of yours")
    if status.st_mode & WRITABLE_BY_OTHERS:
        return wrong("state", f"other users can write in {path}", f"chmod 700 '{path}'")
    if status.st_mode & READABLE_BY_OTHERS:
        return warning("state", f"other users can look into {path}", f"chmod 700 '{path}'")
    return None


def _settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    path = config_file(environ)
    try:
        _, problems = read_settings(path)
        if not problems:
            load_settings(SETTINGS, environ)
    except TuunelError as error:
        problems = [error]  # type: ignore[list-item]  # read_settings knows UsageError only
    yield from (failed("settings", problem) for problem in problems)
    if not problems:
        yield ok("settings", f"{path} can be meant" if path.exists() else "no config.toml, so the defaults hold")


def _files(home: Home) -> Iterator[Finding]:
    """Everything that the state directory holds is its owner's alone."""
    paths = [each for directory in (home.root, home.relay_dir) if directory.is_dir() for each in sorted(directory.iterdir())]
    kept = [path for path in paths if path.suffix in SUFFIXES or path.name == "proxy-password"]
    bad = 0
    for path in kept:
        try:
            check_private(path, path.stat())
        except TuunelError as error:
            bad += 1
            yield failed("files", error)
    if not bad:
        yield ok("files", f"yours alone, all {len(kept)}")


def _contents(home: Home) -> Iterator[Callable[[], Finding | None]]:
    """A check for each file that can be read on its own."""
    now = int(time.time())
    devices, grants = Devices(home.devices_file), Grants(home.grants_file)
    yield lambda: _read("identity", home.identity_key, lambda: f"device {IdentityKey.load(home.identity_key).device_id}")
    yield lambda: _read("devices", home.devices_file, lambda: f"names: {len(devices.devices())}, relays: {len(devices.relays())}")
    yield lambda: _read("grants", home.grants_file, lambda: f"clients that may come in: {len(grants.grants(now))}")
    yield lambda: _read("agent", home.root / "agent.json", lambda: "has chosen its relay" if _agent(home) else "")
    yield lambda: _read("relay key", home.relay_dir / "root.pem", lambda: "whole" if load_root(home.relay_dir / "root.pem") else "")


def _agent(home: Home) -> object:
    return read_json(home.root / "agent.json", 1)


def _read(check: str, path: Path, describe: Callable[[], str]) -> Finding | None:
    if not path.exists():
        return None
    try:
        return ok(check, describe())
    except TuunelError as error:
        return failed(check, error)
