"""The settings of every long-running command: one table, from which flags, file keys, environment names and the reference derive.

A setting is a flag of its command, and has the flag's name: `--listen` of `tuunel proxy` is `listen` under `[proxy]` in config.toml, and
TUUNEL_PROXY_LISTEN. A flag stands above the environment, this above the file, and this above the default.
Source: docs/reference/settings.md.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Final

from tuunel.address import HostPort
from tuunel.errors import TuunelError, UsageError
from tuunel.forwarding import Forwarding
from tuunel.hostguard import parse_hosts
from tuunel.identity import DeviceID
from tuunel.journal import Level
from tuunel.relay.limits import BOUNDS, parse_limit
from tuunel.routing import Route, parse_other
from tuunel.settings import VARIABLE, Home

FILE_NAME: Final = "config.toml"
ADMIT_ENROLLED: Final = "enrolled"
OFF: Final = False  #: a switch that nobody has set
_ON: Final = frozenset({"1", "true", "yes", "on"})
_OFF: Final = frozenset({"0", "false", "no", "off"})

Value = Any  #: text, a number of seconds, True or False, a list of texts, or None for a setting that is not set
Check = Callable[[str], object]


class Kind(Enum):
    """What a setting holds, as TOML calls it."""

    TEXT = "a string"
    SECONDS = "a number of seconds, not negative"
    SWITCH = "true or false"
    LIST = "a list of strings"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `check` raises UsageError or another TuunelError for a text, or an item of a list, that cannot be meant.

    `live`: a running role takes a new value at SIGHUP. `allowed` says what can be meant.
    """

    table: str
    key: str
    kind: Kind
    default: Value
    allowed: str
    check: Check = str
    live: bool = False

    @property
    def name(self) -> str:
        """Its name in messages: `proxy.listen`."""
        return f"{self.table}.{self.key}"

    @property
    def flag(self) -> str:
        """Its flag: `--listen`. A level of nothing in particular would be unclear, so that of the log is `--log-level`."""
        return "--log-level" if self.name == "log.level" else f"--{self.key}"

    @property
    def environment(self) -> str:
        """Its environment variable: `TUUNEL_PROXY_LISTEN`."""
        return f"TUUNEL_{self.table}_{self.key}".replace("-", "_").upper()

    def problem(self, value: Value) -> str | None:
        """Why `value`, as TOML gives it, cannot be meant; None when it can."""
        if not _fits(self.kind, value):
            return f"{value!r} is not {self.kind.value}"
        for text in value if self.kind is Kind.LIST else [value] if self.kind is Kind.TEXT else []:
            try:
                self.check(text)
            except TuunelError as error:
                return str(error)
        return None

    def read(self, text: str) -> Value:
        """The value that an environment variable's text means. Raises ValueError."""
        match self.kind:
            case Kind.SWITCH:
                if text.lower() not in _ON | _OFF:
                    raise ValueError(text)
                return text.lower() in _ON
            case Kind.SECONDS:
                return float(text)
            case Kind.LIST:
                return text.split()
            case Kind.TEXT:
                return text


def _fits(kind: Kind, value: Value) -> bool:
    match kind:
        case Kind.TEXT:
            return isinstance(value, str)
        case Kind.SWITCH:
            return isinstance(value, bool)
        case Kind.SECONDS:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
        case Kind.LIST:
            return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _listen_address(default_port: int) -> Check:
    return lambda text: HostPort.parse(text, default_port)


def _client(text: str) -> object:
    return text.lower() == ADMIT_ENROLLED or DeviceID.parse(text)


def _level(text: str) -> object:
    if text not in list(Level):
        raise UsageError(f"{text!r} is no level", f"write one of: {', '.join(Level)}")
    return text


def metrics_address(text: str) -> HostPort:
    """Where `--metrics` listens: HOST:PORT, or a PORT on both loopbacks. Raises UsageError."""
    return HostPort.parse(f"localhost:{text}" if text.isdecimal() else text)


def _drain(table: str) -> Setting:
    return Setting(table, "drain", Kind.SECONDS, 2.0, "seconds, 0 or more")


def _metrics(table: str) -> Setting:
    return Setting(table, "metrics", Kind.TEXT, None, "HOST:PORT, or a PORT on both loopbacks", metrics_address)


SETTINGS: Final = (
    Setting("relay", "listen", Kind.TEXT, "[::]:7443", "HOST:PORT", _listen_address(7443)),
    Setting("relay", "advertise", Kind.TEXT, None, "HOST[:PORT]", _listen_address(0), live=True),
    Setting("relay", "open-enrolment", Kind.SWITCH, OFF, "true or false", live=True),
    Setting("relay", "limit", Kind.LIST, [], "WHAT=VALUE, where WHAT is one of " + ", ".join(BOUNDS), parse_limit, live=True),
    _metrics("relay"),
    _drain("relay"),
    Setting("agent", "allow", Kind.LIST, [], "device IDs, or 'enrolled'", _client, live=True),
    _metrics("agent"),
    _drain("agent"),
    Setting("proxy", "listen", Kind.TEXT, "localhost:1080", "HOST:PORT", _listen_address(1080)),
    Setting("proxy", "other", Kind.TEXT, "direct", "'direct', 'refuse' or 'via:NAME'", parse_other, live=True),
    Setting("proxy", "route", Kind.LIST, [], "PATTERN=NAME or CIDR=NAME", Route.parse, live=True),
    Setting("proxy", "auth", Kind.TEXT, None, "a user's name; its password is in the file proxy-password"),
    Setting("proxy", "all-users", Kind.SWITCH, OFF, "true or false"),
    _metrics("proxy"),
    _drain("proxy"),
    Setting("forward", "forwards", Kind.LIST, [], "[BIND:]PORT:HOST.NAME.tuunel:PORT[/udp]", Forwarding.parse),
    Setting("forward", "http-hosts", Kind.TEXT, None, "host names, with commas between them", parse_hosts),
    _drain("forward"),
    Setting("log", "json", Kind.SWITCH, OFF, "true or false"),
    Setting("log", "level", Kind.TEXT, str(Level.INFO), ", ".join(Level), _level, live=True),
)
ROLES: Final = ("relay", "agent", "proxy", "forward")
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


def settings_of(role: str) -> list[Setting]:
    """The settings that the role's command takes: its own table, and `log`."""
    return [setting for setting in SETTINGS if setting.table in {role, "log"}]


class Source(StrEnum):
    """Where a value comes from, the strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A setting's value and where it comes from; `where` is the variable, or the file and line."""

    setting: Setting
    value: Value
    source: Source = Source.DEFAULT
    where: str = ""


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the settings file is, or would be: in TUUNEL_HOME, else in the platform's usual place for settings."""
    if environ.get(VARIABLE):
        return Home.find().root / FILE_NAME
    import platformdirs  # noqa: PLC0415 - not needed, so not paid for, when TUUNEL_HOME is set

    return platformdirs.user_config_path("tuunel", appauthor=False) / FILE_NAME


def from_environment(setting: Setting, environ: Mapping[str, str]) -> Resolved | None:
    """The value that the environment gives, if it does. An empty variable is none. UsageError when it cannot be meant."""
    text = environ.get(setting.environment)
    if not text:
        return None
    try:
        value = setting.read(text)
        problem = setting.problem(value)
    except ValueError:
        problem = f"{text!r} is not {setting.kind.value}"
    if problem:
        raise UsageError(f"the environment variable {setting.environment}: {problem}", f"allowed: {setting.allowed}")
    return Resolved(setting, value, Source.ENVIRONMENT, setting.environment)


def strange_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none. Not an error: some container platforms make such names for their own ends."""
    known = {setting.environment for setting in SETTINGS}
    tables = tuple(f"TUUNEL_{setting.table.upper()}_" for setting in SETTINGS)
    return sorted(name for name in environ if name.startswith(tables) and name not in known)


def resolve(settings: Iterable[Setting], in_file: Mapping[str, Resolved], environ: Mapping[str, str]) -> dict[str, Resolved]:
    """Each setting's value by its name, flags aside. UsageError when the environment holds what cannot be meant."""
    return {
        setting.name: from_environment(setting, environ) or in_file.get(setting.name) or Resolved(setting, setting.default)
        for setting in settings
    }
