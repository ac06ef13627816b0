"""What a terminal is shown while a person waits, and with which colours; and that nobody else is."""

import io
import sys

import pytest

from tuunel.cli import app
from tuunel.cli.colours import Colour, has_colours, painted
from tuunel.cli.progress import ERASE_LINE, Progress


class Screen(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_one_line_is_shown_at_a_time_and_none_is_left() -> None:
    screen = Screen()
    with pytest.raises(KeyboardInterrupt), Progress(screen) as progress:
        progress("first")
        progress("second, which is longer than the line")
        raise KeyboardInterrupt
    assert screen.getvalue() == f"{ERASE_LINE}first{ERASE_LINE}second, which is lo{ERASE_LINE}"


@pytest.mark.parametrize("stream", [io.StringIO(), Screen()])
def test_nothing_is_shown_where_nobody_looks(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Progress(stream) as progress:
        progress("first")
    assert stream.getvalue() == ""


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert painted("ok", Colour.GREEN, Screen()) == "\x1b[32mok\x1b[0m"
    assert painted("ok", Colour.GREEN, io.StringIO()) == "ok"
    monkeypatch.setenv("NO_COLOR", "")
    assert has_colours(Screen()), "an empty value means nothing, says no-color.org"
    monkeypatch.setenv("NO_COLOR", "1")
    assert painted("ok", Colour.GREEN, Screen()) == "ok"


@pytest.mark.parametrize("colours", [True, False])
def test_doctor_obeys(monkeypatch: pytest.MonkeyPatch, tmp_path: object, *, colours: bool) -> None:
    monkeypatch.setenv("TUUNEL_HOME", f"{tmp_path}/none")
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    app.main(["doctor"])
    assert ("\x1b[32mok" in screen.getvalue()) == colours
    assert ("\x1b" in screen.getvalue()) == colours


def test_doctor_breaks_lines_between_words(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TUUNEL_HOME", f"{tmp_path}/none")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    app.main(["doctor"])
    versions = screen.getvalue().partition("ok       encryption")[0].splitlines()
    assert len(versions) > 1
    assert all(len(line) <= 60 for line in versions)
    assert all(line[:22].isspace() for line in versions[1:])
