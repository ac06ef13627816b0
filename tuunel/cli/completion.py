"""`tuunel completion`, and what stands behind the TAB key: the names in this machine's own files. No network is asked.

typer's own way to the same scripts is an option that edits the shell's start-up files without marks; so two of its functions are called
that it does not export.
"""
# ruff: noqa: PLC0415 - a shell waits for these: nothing is imported that is not used

import os
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Final

import typer

from tuunel.cli.report import put
from tuunel.errors import TuunelError

VARIABLE: Final = "_TUUNEL_COMPLETE"  # as typer names it: in it a shell says which kind of answer it can read


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print the lines that make a shell complete commands, options and the names of devices."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    put(get_completion_script(prog_name="tuunel", complete_var=VARIABLE, shell=shell.value))


def prepare() -> None:
    """Make ready to answer a shell, if it is one that asks."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def device_names(incomplete: str) -> list[str]:
    """The devices that this machine knows whose names begin so."""
    return [name for name in _known(_devices) if name.startswith(incomplete)]


def client_names(incomplete: str) -> list[str]:
    """Who may come in here."""
    return [name for name in _known(_clients) if name.startswith(incomplete)]


def peer_names(incomplete: str) -> list[str]:
    """Both: the devices, and who may come in here."""
    return sorted({*device_names(incomplete), *client_names(incomplete)})


def ways_for_others(incomplete: str) -> list[str]:
    """The values of `--other`."""
    ways = ["direct", "refuse", *(f"via:{name}" for name in _known(_devices))]
    return [way for way in ways if way.startswith(incomplete)]


def routes(incomplete: str) -> list[str]:
    """PATTERN=NAME for each device, once the pattern is there."""
    pattern, equals, name = incomplete.partition("=")
    return [f"{pattern}={known}" for known in _known(_devices) if equals and known.startswith(name)]


def _known(read: Callable[[], list[str]]) -> list[str]:
    """The names that a shell can take as they are; none from a file that is damaged: the command itself will tell."""
    try:
        return [name for name in read() if name.replace("-", "").replace("_", "").isalnum()]
    except TuunelError:
        return []


def _devices() -> list[str]:
    from tuunel.devices import Devices
    from tuunel.settings import Home

    return [device.name for device in Devices(Home.find().devices_file).devices()]


def _clients() -> list[str]:
    from tuunel.grants import Grants
    from tuunel.settings import Home

    return [grant.name for grant in Grants(Home.find().grants_file).grants(int(time.time()))]
