"""Writes docs/reference/man from the command line itself, a page for each command: `python -m tests.cli.reference`."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typer.main import get_command

from tuunel.cli.app import app
from tuunel.config import ROLES, settings_of

DIRECTORY = Path(__file__).parents[2] / "docs" / "reference" / "man"
DATED = "2026-11-27"  # when the pages of this version were begun: a page that changes with the day would never be up to date
OF_ROLE = {"tuunel relay serve": "relay", **{f"tuunel {role}": role for role in ROLES[1:]}}
COMMON = {
    "ENVIRONMENT": [
        ("TUUNEL_HOME", "The one directory for all state and settings; without it, the platform's usual places."),
    ],
    "EXIT STATUS": [
        ("0", "Done, or ended in order by Ctrl-C or SIGTERM."),
        ("2", "The command, a name or a setting cannot be meant."),
        ("other", "One code for each family of errors, the same for every command: docs/reference/errors.md in the sources."),
    ],
}


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    root = get_command(app)
    found = dict(_commands("tuunel", root))
    texts = {f"{path.replace(' ', '-')}.1": _page(path, command) for path, command in found.items() if path != "tuunel"}
    return {"tuunel.1": _overview(root, found), **texts}


def write() -> None:
    """Write the pages, and remove those of commands that are gone."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in DIRECTORY.glob("*.1"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (DIRECTORY / name).write_text(text)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if path == "tuunel" or not children or command.invoke_without_command:
        yield path, command
    for name, child in children.items():
        if not child.hidden:
            yield from _commands(f"{path} {name}", child)


def _overview(root: Any, commands: dict[str, Any]) -> str:
    listed = [(path, _sentence(command)) for path, command in commands.items() if path != "tuunel"]
    parts = [
        _head("tuunel", root.help),
        ".SH SYNOPSIS\n.B tuunel\n.I COMMAND\n.RI [ OPTIONS ]\n",
        f".SH DESCRIPTION\n{_text(root.help)}\n.PP\n"
        + _text("A relay that you own joins the machine to reach, where 'tuunel agent' runs, and yours, where 'tuunel proxy' does.")
        + "\n",
        _list("COMMANDS", [(f"{path.replace(' ', '-')}(1)", sentence) for path, sentence in listed]),
        _list(
            "FILES",
            [
                ("config.toml", "Settings of the long-running commands: see 'tuunel config show'."),
                ("identity.pem, grants.json, devices.json, relay/", "Keys and books, private to their owner. Back them up."),
                ("run/", "The control sockets of what runs."),
            ],
        ),
        *(_list(title, rows) for title, rows in COMMON.items()),
    ]
    return "".join(parts)


def _page(path: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    words = "".join(f"\n.RI {_argument(each)}" for each in arguments)
    synopsis = f".SH SYNOPSIS\n.B {_escaped(path)}{words}\n" + (".RI [ OPTIONS ]\n" if options else "")
    paragraphs = "\n.PP\n".join(_text(each) for each in command.help.split("\n\n"))
    parts = [
        _head(path, command.help),
        synopsis,
        f".SH DESCRIPTION\n{paragraphs}\n",
        _list("ARGUMENTS", [(_metavar(each), each.help) for each in arguments]),
        _list("OPTIONS", [(_spelt(each), _help(each)) for each in options]),
        _settings(OF_ROLE.get(path)),
        *(_list(title, rows) for title, rows in COMMON.items()),
        ".SH SEE ALSO\n.BR tuunel (1)\n",
    ]
    return "".join(parts)


def _settings(role: str | None) -> str:
    if role is None:
        return ""
    intro = "What the command line leaves open comes from the environment, else from config.toml, else it is the default."
    rows = [(each.environment, f"{each.key} under [{each.table}].") for each in settings_of(role)]
    return f".SH SETTINGS\n{_text(intro)}\n" + "".join(_row(*each) for each in rows)


def _head(path: str, help_text: str) -> str:
    name = path.replace(" ", "-")
    what = help_text.split("\n", maxsplit=1)[0].strip().rstrip(".")
    comment = '.\\" Written from the program by `python -m tests.cli.reference`.\n'
    title = f'.TH "{_escaped(name.upper())}" "1" "{DATED}" "tuunel {version("tuunel")}" "tuunel"\n'
    return f"{comment}{title}.SH NAME\n{_escaped(name)} \\- {_escaped(what[0].lower() + what[1:])}\n"


def _sentence(command: Any) -> str:
    return str(command.help).split("\n")[0].strip()


def _list(title: str, rows: list[tuple[str, str]]) -> str:
    return f".SH {title}\n" + "".join(_row(*row) for row in rows) if rows else ""


def _row(term: str, text: str) -> str:
    return f".TP\n.B {_escaped(term)}\n{_text(text)}\n"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or "|".join(argument.type_descriptor.choices))


def _argument(argument: Any) -> str:
    word = _escaped(_metavar(argument)).replace('"', "")
    return f'"{word}"' if argument.required else f'[ "{word}" ]'


def _spelt(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(option.opts) + value + (" ..." if option.multiple else "")


def _help(option: Any) -> str:
    default = option.default
    shown = "" if default in (None, False, ()) or callable(default) else f" The default is {default}."
    return f"{option.help}{shown}"


def _text(text: str) -> str:
    """Running text: a sentence a line, as the format wants it, and no line that would be taken for a request."""
    sentences = re.split(r"(?<=[.?!]) +(?=[A-Z'])", " ".join(text.split()))
    return "\n".join(rf"\&{line}" if line[:1] in ".'" else line for line in map(_escaped, sentences))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")
