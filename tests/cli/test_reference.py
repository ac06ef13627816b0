"""docs/reference/cli.md is the command line as it is, and the command line is the table that people were promised."""

from typer.main import get_command

from tests.cli import metrics_page, settings_page
from tests.cli.reference import PAGE, commands, render
from tuunel.cli.app import app

PROMISED = {
    "tuunel relay serve", "tuunel relay link", "tuunel relay devices", "tuunel relay revoke", "tuunel agent", "tuunel invite",
    "tuunel clients", "tuunel revoke", "tuunel pair", "tuunel devices", "tuunel devices add", "tuunel rename", "tuunel forget",
    "tuunel proxy", "tuunel forward", "tuunel nc", "tuunel config show", "tuunel config check", "tuunel setup", "tuunel demo",
    "tuunel status", "tuunel top", "tuunel service install", "tuunel service remove",
}  # fmt: skip


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run: python -m tests.cli.reference"


def test_the_page_of_settings_is_up_to_date() -> None:
    assert settings_page.PAGE.read_text() == settings_page.render(), "run: python -m tests.cli.reference"


def test_the_page_of_metrics_is_up_to_date() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.render(), "run: python -m tests.cli.reference"


def test_every_promised_command_is_there() -> None:
    assert {path for path, _ in commands("tuunel", get_command(app))} >= PROMISED


def test_every_parameter_is_explained() -> None:
    assert "| None" not in render()
    assert all(command.help for _, command in commands("tuunel", get_command(app)))
