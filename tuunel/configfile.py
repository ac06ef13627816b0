"""Reading config.toml: what it sets, and every problem in it with its line, the nearest known name and what is allowed.

Source: docs/reference/settings.md.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuunel.config import BY_NAME, SETTINGS, Resolved, Setting, Source, config_file, resolve
from tuunel.errors import StateError, UsageError

MAX_SIZE: Final = 1024 * 1024  # a thousand times the longest settings that anybody writes
ROOT: Final = 0
SECRETS: Final = frozenset({"link", "invite", "password", "secret", "token", "key"})
LINK_START: Final = "tuunel://"
_SYNTAX: Final = re.compile(r"(.*) \(at line (\d+), column \d+\)")
_TABLES: Final = tuple(dict.fromkeys(setting.table for setting in SETTINGS))


def read_settings(path: Path) -> tuple[dict[str, Resolved], list[UsageError]]:
    """What the file sets, by the settings' names, and what is wrong with it; nothing and nothing when there is no file.

    StateError when it cannot be read, or others than its owner can write it: settings open doors.
    """
    data = _read(path)
    if data is None:
        return {}, []
    try:
        text = data.decode()
        content = tomllib.loads(text)
    except UnicodeDecodeError as error:
        return {}, [UsageError(f"{path}: it is not UTF-8: {error.reason}", "save it as UTF-8")]
    except tomllib.TOMLDecodeError as error:
        return {}, [_syntax_problem(path, str(error))]
    reading = _Reading(path, text)
    for table, keys in content.items():
        reading.take_table(table, keys)
    return reading.found, reading.problems


def load_settings(settings: Iterable[Setting], environ: Mapping[str, str] = os.environ) -> dict[str, Resolved]:
    """Each setting's value by its name, from environment, file and default. UsageError for the first problem, StateError for the file."""
    found, problems = read_settings(config_file(environ))
    if problems:
        raise problems[0]
    return resolve(settings, found, environ)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a second reading found: `live` values take effect now, `fixed` ones at the next start."""

    live: list[Resolved]
    fixed: list[Resolved]


class RunningSettings:
    """The settings that a running command was started with. `pinned` are the names that its command line gave."""

    def __init__(self, resolved: Mapping[str, Resolved], pinned: Mapping[str, Any]) -> None:
        self._resolved = dict(resolved)
        self._pinned = dict(pinned)
        self._started = {name: each.value for name, each in resolved.items()}

    def value(self, name: str) -> Any:
        """The value in force."""
        return self._pinned[name] if name in self._pinned else self._resolved[name].value

    def reread(self) -> Changes:
        """Read the file again. UsageError or StateError: everything stays as it was."""
        fresh = load_settings([each.setting for each in self._resolved.values()])
        free = {name: each for name, each in fresh.items() if name not in self._pinned}
        live = [each for name, each in free.items() if each.setting.live and each.value != self._resolved[name].value]
        fixed = [each for name, each in free.items() if not each.setting.live and each.value != self._started[name]]
        self._resolved |= {each.setting.name: each for each in free.values() if each.setting.live}
        return Changes(live, fixed)


class _Reading:
    def __init__(self, path: Path, text: str) -> None:
        self.found: dict[str, Resolved] = {}
        self.problems: list[UsageError] = []
        self._path = path
        self._lines = text.splitlines()

    def take_table(self, table: str, keys: object) -> None:
        where = f"{self._path}:{self._line_of(table)}"
        if not isinstance(keys, dict) or table not in _TABLES:
            self._add(where, f"{table!r} is no table of settings{_nearest(table, _TABLES)}", f"the tables are {_listed(_TABLES)}")
            return
        for key, value in keys.items():
            self._take(table, key, value)

    def _take(self, table: str, key: str, value: object) -> None:
        where = f"{self._path}:{self._line_of(table, key)}"
        known = [setting.key for setting in SETTINGS if setting.table == table]
        if key.lower() in SECRETS or LINK_START in repr(value):
            self._add(where, f"[{table}] {key}: secrets do not belong in this file", "give it once on the command line, or through '-'")
        elif key not in known:
            self._add(where, f"[{table}] has no setting {key!r}{_nearest(key, known)}", f"the settings of [{table}] are {_listed(known)}")
        else:
            setting = BY_NAME[f"{table}.{key}"]
            problem = setting.problem(value)
            if problem:
                self._add(where, f"[{table}] {key}: {problem}", f"allowed: {setting.allowed}")
            else:
                self.found[setting.name] = Resolved(setting, value, Source.FILE, where)

    def _add(self, where: str, what: str, advice: str) -> None:
        self.problems.append(UsageError(f"{where}: {what}", advice))

    def _line_of(self, table: str, key: str | None = None) -> int:
        """The line of a key, of its table's head, or 1: tomllib does not tell, so this looks for the usual way to write it."""
        head = re.compile(rf"\s*(\[\s*[\"']?{re.escape(table)}[\"']?\s*\]|[\"']?{re.escape(table)}[\"']?\s*[=.])")
        start = next((number for number, line in enumerate(self._lines) if head.match(line)), 0)
        if key is None:
            return start + 1
        entry = re.compile(rf"\s*([\"']?{re.escape(table)}[\"']?\s*\.\s*)?[\"']?{re.escape(key)}[\"']?\s*=")
        return next((number for number in range(start, len(self._lines)) if entry.match(self._lines[number])), start) + 1


def _read(path: Path) -> bytes | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - opens a descriptor
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SIZE:
                raise StateError(f"{path} is no file of settings", "move it away")
            if status.st_uid not in (os.geteuid(), ROOT) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise StateError(f"{path} can be changed by other users", f"make it yours, then: chmod go-w '{path}'")
            return file.read(MAX_SIZE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            f"cannot read {path}: {error.strerror}", "check its owner and modes, and those of the directories above"
        ) from error


def _syntax_problem(path: Path, text: str) -> UsageError:
    told = _SYNTAX.fullmatch(text)
    where, what = (f"{path}:{told[2]}", told[1]) if told else (str(path), text)
    return UsageError(f"{where}: this is not TOML: {what}", "text stands in quotes; see docs/reference/settings.md for an example")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
