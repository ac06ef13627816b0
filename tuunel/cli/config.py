"""`tuunel config`: what is set here and where it comes from, and whether config.toml can be meant."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import os
from typing import TYPE_CHECKING, Any

import typer

from tuunel.cli.arguments import AsJson
from tuunel.cli.listing import count, table
from tuunel.cli.report import Document, answer, put, say

if TYPE_CHECKING:
    from tuunel.config import Resolved

app = typer.Typer(help="The settings of the long-running commands.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(*, as_json: AsJson = False) -> None:
    """Show every setting's value, and whether it comes from the environment, config.toml or the default."""
    answer(_settings, _show_settings, as_json=as_json)


def _settings() -> Document:
    from tuunel.config import SETTINGS, config_file
    from tuunel.configfile import load_settings

    return {"file": str(config_file()), "settings": [_described(each) for each in load_settings(SETTINGS).values()]}


def _described(resolved: "Resolved") -> Document:
    setting = resolved.setting
    return {
        "name": setting.name,
        "value": resolved.value,
        "source": str(resolved.source),
        "where": resolved.where,
        "environment": setting.environment,
    }


def _show_settings(document: Document) -> None:
    rows = [(each["name"], _as_toml(each["value"]), each["where"] or each["source"]) for each in document["settings"]]
    put(*table(("SETTING", "VALUE", "FROM"), rows))
    say(f"the file is {document['file']}; a flag stands above the environment, and that above the file")


def _as_toml(value: Any) -> str:
    import json  # a string, a list of strings, a number or a truth value is in JSON as it is in TOML

    return "-" if value is None else json.dumps(value, ensure_ascii=False)


@app.command()
def check(*, as_json: AsJson = False) -> None:
    """Say whether config.toml and the environment can be meant, with every problem's line. Exit code 2 when they cannot."""
    found: list[Document] = []

    def work() -> Document:
        document = _checked()
        found.append(document)
        return document

    answer(work, _show_checked, as_json=as_json)
    if not all(document["ok"] for document in found):
        raise typer.Exit(2)


def _checked() -> Document:
    from tuunel.config import SETTINGS, config_file, from_environment, strange_variables
    from tuunel.configfile import read_settings
    from tuunel.errors import UsageError

    path = config_file()
    in_file, problems = read_settings(path)
    from_variables = 0
    for setting in SETTINGS:
        try:
            from_variables += from_environment(setting, os.environ) is not None
        except UsageError as error:
            problems.append(error)
    return {
        "file": str(path),
        "exists": path.exists(),
        "ok": not problems,
        "settings": len(in_file) + from_variables,
        "problems": [{"message": str(each), "advice": each.advice} for each in problems],
        "ignored": strange_variables(os.environ),
    }


def _show_checked(document: Document) -> None:
    for problem in document["problems"]:
        say(problem["message"], f"        {problem['advice']}")
    for name in document["ignored"]:
        say(f"the environment variable {name} is no setting, and is ignored")
    if not document["exists"]:
        say(f"there is no {document['file']}; without it the defaults hold")
    if document["ok"]:
        say(f"good: {count(document['settings'], 'setting')} from file and environment")
    else:
        say(f"{count(len(document['problems']), 'problem')}; nothing starts with this, and what runs keeps its settings")
