"""Which parameter of which command a setting is."""

from typing import Any

from typer.main import get_command

from tuunel.cli.app import app
from tuunel.config import Setting


def command_of(role: str) -> Any:
    """The long-running command of a role."""
    commands: Any = getattr(get_command(app), "commands")  # noqa: B009 - typer's type hides it
    return commands["relay"].commands["serve"] if role == "relay" else commands[role]


def flag_of(setting: Setting, role: str | None = None) -> Any:
    """The parameter that is this setting; of the setting's own role unless it is one of the log's."""
    command = command_of(role or ("proxy" if setting.table == "log" else setting.table))
    return next(each for each in command.params if setting.flag in each.opts or setting.key in each.opts)
