"""The QR code of a link: what a camera would see of the terminal is decoded by another program's decoder."""

import io
import os
import re
from typing import Any

import pytest
import zxingcpp

from tests.cli.test_nextsteps import INVITE, LINK
from tuunel.cli import agent, app, qr, relay
from tuunel.errors import UsageError
from tuunel.events import Ready

DARK, LIGHT = 0, 255
PIXELS = 4  # a side of a module


class Screen(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("a screen of memory")


def seen(lines: list[str], *, ink: int, paper: int) -> str:
    """What a camera reads off the lines on a screen whose characters have this ink on this paper."""
    rows = []
    for line in lines:
        for upper in (True, False):
            inked = "\u2580\u2588" if upper else "\u2584\u2588"
            row = bytes(pixel for character in line for pixel in [ink if character in inked else paper] * PIXELS)
            rows += [row] * PIXELS
    picture = memoryview(b"".join(rows)).cast("B", (len(rows), len(rows[0])))
    (found,) = zxingcpp.read_barcodes(picture)
    return str(found.text)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many columns a terminal has."""
    columns = [80]
    monkeypatch.setattr(Screen, "fileno", lambda _: 1)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns[0], 24)))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return columns


@pytest.mark.parametrize("text", [str(LINK), str(INVITE)])
def test_a_terminal_shows_it_black_on_white_whatever_its_own_colours_are(text: str, wide: list[int]) -> None:
    lines = qr.qr_lines(text, Screen())
    plain = [re.fullmatch(r"\x1b\[38;5;16;48;5;231m([ \u2580\u2584\u2588]+)\x1b\[0m", line) for line in lines]
    assert all(plain)
    assert len(plain[0][1]) <= 80  # type: ignore[index]
    assert seen([line[1] for line in plain if line], ink=DARK, paper=LIGHT) == text


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_without_colours_it_is_drawn_for_a_dark_screen(wide: list[int], monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "dumb")
    lines = qr.qr_lines(str(LINK), Screen())
    assert "\x1b" not in "".join(lines)
    assert seen(lines, ink=LIGHT, paper=DARK) == str(LINK)
    assert seen(lines, ink=DARK, paper=LIGHT) == str(LINK), "this decoder reads the negative, too"


def test_a_file_gets_no_escape_sequences() -> None:
    lines = qr.qr_lines(str(LINK), io.StringIO())
    assert "\x1b" not in "".join(lines)
    assert seen(lines, ink=LIGHT, paper=DARK) == str(LINK)


def test_a_terminal_that_is_too_narrow_is_told_of(wide: list[int]) -> None:
    wide[0] = 40
    (line,) = qr.qr_lines(str(LINK), Screen())
    assert "characters wide" in line


def test_a_role_shows_what_it_has_made_above_the_next_step() -> None:
    *lines, step = qr.next_steps(qr=True)(Ready("relay", listen="[::]:7443", link=str(LINK)))
    assert seen(lines, ink=LIGHT, paper=DARK) == str(LINK)
    assert "tuunel agent" in step
    assert qr.next_steps(qr=True)(Ready("relay", listen="[::]:7443")) == []
    assert len(qr.next_steps(qr=False)(Ready("agent", invite=str(INVITE)))) == 1


@pytest.mark.parametrize(("module", "command", "key"), [(relay, ["relay", "link"], "link"), (agent, ["invite"], "invite")])
def test_link_and_invite_show_it_when_asked(
    module: Any, command: list[str], key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = str({"link": LINK, "invite": INVITE}[key])
    monkeypatch.setattr(module, "ask_role", lambda *_, **__: {key: made, "expires": 1, "targets": ["*"], "access": None})
    assert app.main(command) == 0
    assert "\u2588" not in capsys.readouterr().err
    assert app.main([*command, "--qr"]) == 0
    out, errors = capsys.readouterr()
    assert out == f"{made}\n"
    code = [line for line in errors.splitlines() if line and set(line) <= set(qr.BLOCKS.values())]
    assert seen(code, ink=LIGHT, paper=DARK) == made


@pytest.mark.parametrize("command", [["relay", "serve"], ["relay", "link"], ["agent"], ["invite"]])
def test_programs_get_no_picture(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*command, "--qr", "--json"]) == UsageError.exit_code
    assert "\u2588" not in capsys.readouterr().err
