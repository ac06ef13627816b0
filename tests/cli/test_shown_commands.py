"""Every command line of tuunel that the documentation shows is one that tuunel takes; tests/docs/test_shown.py runs them."""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tests.docs.pages import PAGES, shown, words_of
from tuunel.cli.app import app
from tuunel.forwarding import parse_forwardings
from tuunel.policy import parse_target_pattern
from tuunel.routing import Route

SHOWN = [(each.page, each.command) for page in PAGES for each in shown(page) if words_of(each.command)[:1] == ["tuunel"]]


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that the words mean, and its parameters. Nothing is run."""
    command: Any = get_command(app)
    context = command.make_context(words[0], words[1:])
    while rest := [*context._protected_args, *context.args]:
        name, command, arguments = command.resolve_command(context, rest)
        context = command.make_context(name, arguments, parent=context)
    return context.command_path, context.params


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own config.toml must not be read here."""
    monkeypatch.setenv("TUUNEL_HOME", str(tmp_path))


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) > 20


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_shown_command_is_one_that_tuunel_takes(page: str, line: str) -> None:
    path, params = parsed(words_of(line))
    for pattern in params.get("target") or ():
        parse_target_pattern(pattern)
    for route in params.get("route") or ():
        Route.parse(route)
    if path == "tuunel forward":
        parse_forwardings(params["forwards"])
