"""The man pages are the command line as it is, and a formatter finds no fault with them."""

import pytest

from tests.cli.manpages import DIRECTORY, pages
from tests.journeys.peers import program
from tests.journeys.processes import run

PAGES = pages()


def test_the_pages_are_up_to_date() -> None:
    written = {path.name: path.read_text() for path in DIRECTORY.iterdir()}
    assert written == PAGES, "run: python -m tests.cli.reference"


@pytest.mark.real
def test_mandoc_finds_no_fault() -> None:
    done = run([program("mandoc"), "-Tlint", "-W", "warning", *(str(DIRECTORY / name) for name in PAGES)], check=False)
    assert (done.returncode, done.stdout.decode()) == (0, "")


@pytest.mark.real
def test_a_page_reads_as_its_command_is_typed() -> None:
    shown = run([program("mandoc"), "-Tascii", "-O", "width=100", str(DIRECTORY / "tuunel-relay-serve.1")]).stdout.decode()
    plain = "".join(character for index, character in enumerate(shown) if character != "\b" and shown[index + 1 : index + 2] != "\b")
    assert "tuunel relay serve [OPTIONS]" in plain
    assert "--listen HOST:PORT" in plain
    assert "TUUNEL_RELAY_LISTEN" in plain


def test_no_line_of_text_is_taken_for_a_request() -> None:
    known = (".\\", ".TH", ".SH", ".TP", ".PP", ".B ", ".I ", ".RI", ".BR")
    for name, text in PAGES.items():
        wrong = [line for line in text.splitlines() if line[:1] in {".", "'"} and not line.startswith(known)]
        assert not wrong, name
