"""The painter on a terminal: after any frames and resizes the screen shows the last frame, and above it what was there before.

The terminal is a small model of a real one that folds long lines anew when it becomes narrower, as tmux and most others do.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.painter import HIDE_CURSOR, SHOW_CURSOR, Painted, Painter

CODES = re.compile(r"\x1b\[(\??[0-9]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


class Terminal:
    """Logical lines that are folded at `columns`; the cursor is a place in one of them. Endless upwards, as with a scrollback."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0  # the cursor's, in rows as they are folded

    def rows(self) -> list[str]:
        return [line[at : at + self.columns] for line in self.lines for at in range(0, max(1, len(line)), self.columns)]

    def write(self, text: str) -> None:
        for match in CODES.finditer(text):
            if match[2]:
                self._obey(match[2], int(match[1]) if match[1].isdigit() else 0)
            elif match[0] == "\r":
                self.column = 0
            elif match[0] == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows()):
                    self.lines.append("")
            else:
                self._put(match[0])

    def _obey(self, code: str, number: int) -> None:
        place, _ = self._line()
        if code == "A":
            self.row = max(0, self.row - max(1, number))
        elif code == "B":
            self.row = min(len(self.rows()) - 1, self.row + max(1, number))
        elif code == "C":
            self.column += number
        elif code == "K":
            self.lines[place] = self.lines[place][: self.column]
        elif code == "J":
            self.lines[place:] = [self.lines[place][: self.column]]

    def _line(self) -> tuple[int, int]:
        """Which line the cursor is in, and how many rows of it are above the cursor."""
        rows = 0
        for place, line in enumerate(self.lines):
            taken = max(1, -(-len(line) // self.columns))
            if self.row < rows + taken:
                return place, self.row - rows
            rows += taken
        raise AssertionError("the cursor has left the screen")

    def _put(self, character: str) -> None:
        place, above = self._line()
        line, at = self.lines[place], above * self.columns + self.column
        self.lines[place] = line[:at].ljust(at) + character + line[at + 1 :]
        self.column += 1

    def resize(self, columns: int) -> None:
        """Fold anew. The cursor rests behind the last line, and stays there."""
        self.columns = columns
        self.row, self.column = len(self.rows()) - 1, (len(self.lines[-1]) - 1) % columns + 1 if self.lines[-1] else 0


def frame(*texts: str) -> list[Painted]:
    return [Painted(text, len(text)) for text in texts]


def test_a_change_writes_only_the_lines_that_changed() -> None:
    painter, size = Painter(), (80, 24)
    painter.paint(frame("one", "two", "three"), size)
    assert painter.paint(frame("one", "two", "three"), size) == ""
    code = painter.paint(frame("one", "TWO", "three"), size)
    assert "TWO" in code
    assert "one" not in code
    assert "three" not in code


def test_what_is_said_stands_above_the_frame() -> None:
    terminal, painter = Terminal(80), Painter()
    terminal.write("$ tuunel proxy\n")
    for number in range(3):
        terminal.write(painter.paint(frame("head", f"row {number}"), (80, 24), [f"said {number}"]))
    assert terminal.lines == ["$ tuunel proxy", "said 0", "said 1", "said 2", "head", "row 2"]


@pytest.mark.parametrize("columns", [79, 60, 41, 40, 39, 20, 7])
def test_a_terminal_that_became_narrower_shows_no_torn_lines(columns: int) -> None:
    terminal, painter = Terminal(80), Painter()
    terminal.write("$ tuunel proxy\n" + painter.paint(frame("h" * 79, "r" * 79, "", "k" * 50), (80, 24)))
    terminal.resize(columns)
    terminal.write(painter.paint(frame("H" * (columns - 1), "R" * (columns - 1)), (columns, 100)))
    assert terminal.lines == ["$ tuunel proxy", "H" * (columns - 1), "R" * (columns - 1)]


def test_the_cursor_is_hidden_while_there_is_a_frame_and_comes_back_below_it() -> None:
    painter = Painter()
    assert painter.leave() == ""
    assert painter.paint(frame("x"), (80, 24)).startswith(HIDE_CURSOR)
    assert painter.leave() == f"{SHOW_CURSOR}\n"
    assert painter.leave() == ""


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 100), min_size=1, max_size=8),
            st.integers(5, 90),
            st.lists(st.sampled_from(["said", ""]), max_size=2),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_after_any_frames_and_sizes_the_last_frame_stands_alone(steps: list[tuple[list[int], int, list[str]]]) -> None:
    terminal, painter, said = Terminal(80), Painter(), ["before"]
    terminal.write("before\n")
    for number, (lengths, columns, above) in enumerate(steps):
        terminal.resize(columns)
        lines = [chr(97 + number) * min(length, columns - 1) for length in lengths]
        terminal.write(painter.paint(frame(*lines), (columns, 1000), above))
        said += above
        assert terminal.lines == [*said, *lines]
