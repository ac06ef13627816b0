"""Every command line that README, tutorial and how-to guides show is run, by real programs, on the machines that the pages describe."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.machines import Machines, machines, prints
from tests.docs.pages import HOWTO, PAGES, README, ROOT, TUTORIAL, Shown, fenced, shown
from tests.docs.services import NEEDS, pages

pytestmark = pytest.mark.real

# (page, how the command line begins): why it is not run here
NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "make demo"): "it runs for good, in the environment of a checkout: tests/test_demo.py runs the demo",
    ("README.md", "make test"): "this test is a part of it",
    ("README.md", "make docs"): "tests/docs/test_site.py builds the site",
    ("docs/howto/unix-sockets.md", "DOCKER_HOST="): "it needs Docker's daemon, which cannot run everywhere where tests do",
}

# (page, how the command line begins): what its output holds when it worked, where it ends with 0 all the same when it did not
GIVES: dict[tuple[str, str], str] = {
    ("docs/howto/udp.md", "dig "): "192.168.1.10",
    ("docs/howto/udp.md", "echo "): "ping",
    ("docs/howto/unix-sockets.md", "printf "): "200 OK",
}


def said_of(table: dict[tuple[str, str], str], line: Shown) -> str:
    """What the table says of the line; empty when nothing."""
    return next((said for (page, start), said in table.items() if page == line.page and line.command.startswith(start)), "")


@pytest.fixture(scope="module")
def empty() -> Iterator[Machines]:
    """Machines where nothing of tuunel has run yet."""
    with machines() as made:
        yield made


@pytest.fixture(scope="module")
def followed() -> Iterator[Machines]:
    """Machines on which the tutorial has been followed."""
    with machines() as made:
        follow(TUTORIAL, made)
        yield made


def follow(page: Path, made: Machines) -> None:
    """Type each line of the page, in its order; each prints what the page says, and ends with 0 or runs until Ctrl-C."""
    name = str(page.relative_to(ROOT))
    for service in (pages, *NEEDS.get(name, ())):
        made.serve(service)
    for line in shown(page):
        if said_of(NOT_RUN, line):
            continue
        text = made.type(line)
        assert said_of(GIVES, line) in text, f"{name}: {line.command}\n{text}"
        assert prints(text, line.output), f"{name} shows\n{chr(10).join(line.output)}\nfor {line.command}, which prints\n{text}"


def test_the_readme_leads_to_the_first_success(empty: Machines) -> None:
    follow(README, empty)


@pytest.mark.parametrize("page", HOWTO, ids=lambda page: page.stem)
def test_a_how_to_guide_does_what_it_says(followed: Machines, page: Path) -> None:
    """Each begins where the tutorial ends. The tutorial itself is followed for the first of them."""
    followed.settle()
    follow(page, followed)


@pytest.mark.parametrize("table", [NOT_RUN, GIVES])
def test_what_is_said_of_a_line_is_said_of_one_that_is_shown(table: dict[tuple[str, str], str]) -> None:
    lines = [line for page in PAGES for line in shown(page)]
    assert not [each for each in table if not any(line.page == each[0] and line.command.startswith(each[1]) for line in lines)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_hides_in_a_fence(page: Path) -> None:
    assert not [line for line in fenced(page) if re.match(r"\s*(?:\w*\$ +)?tuunel ", line)]


@pytest.mark.parametrize(
    ("output", "right"),
    [
        (["one ... three"], True),
        (["one two three", "and ..."], True),
        (["and four"], True),
        (["and four", "one two three"], False),
        (["one"], False),
        (["... five"], False),
    ],
)
def test_shown_output_is_compared_line_by_line(output: list[str], right: bool) -> None:
    assert prints("before\none two three\nbetween\nand four\nbehind\n", output) == right
