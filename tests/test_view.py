"""What a person does with the live table: bytes of the keyboard in, an order of rows and commands out."""

import pytest

from tuunel.events import ConnectionClosed, ConnectionOpened, Kill, Leave, Traffic
from tuunel.keys import KeyDecoder
from tuunel.rows import Row
from tuunel.view import MAX_FILTER, ORDERS, PAGE, View

UP, DOWN, HOME, END, PAGE_DOWN, ESCAPE = b"\x1b[A", b"\x1b[B", b"\x1b[H", b"\x1b[F", b"\x1b[6~", b"\x1b\x1b"


def row(number: int, target: str = "home.tuunel:80", *, device: str = "home", up: int = 0, rate: float = 0.0, ended: str = "") -> Row:
    traffic = Traffic()
    traffic.up = up
    made = Row(ConnectionOpened(number, target, device, "socks5", "relay", traffic), since=float(number), state="open", rate=rate)
    if ended:
        made.ended = ConnectionClosed(number, ended)
    return made


class Person:
    """Presses keys at a view of rows."""

    def __init__(self, *rows: Row, leaves: bool = False) -> None:
        self.rows = rows
        self.view = View(leaves=leaves)
        self.asked: list[object] = []

    def types(self, *sent: bytes) -> "Person":
        decoder = KeyDecoder()
        decoder.receive_data(b"".join(sent))
        while (key := decoder.next_event()) is not None:
            command = self.view.press(key, self.view.arrange(self.rows))
            if command is not None:
                self.asked.append(command)
        return self

    def sees(self) -> list[int]:
        return [each.opened.id for each in self.view.arrange(self.rows)]


SOME = (
    row(1, "nas:445", device="home", up=10, rate=5.0),
    row(2, "db:5432", device="office", up=900, rate=0.0),
    row(3, "Cam:80", device="home", up=30, rate=70.0, ended="POLICY_DENIED"),
)


@pytest.mark.parametrize(
    ("order", "seen"),
    [("newest", [3, 2, 1]), ("rate", [3, 1, 2]), ("bytes", [2, 3, 1]), ("target", [3, 2, 1]), ("device", [1, 3, 2]), ("state", [3, 2, 1])],
)
def test_s_goes_through_the_orders_and_r_turns_one_round(order: str, seen: list[int]) -> None:
    person = Person(*SOME).types(b"s" * list(ORDERS).index(order))
    assert person.view.order == order
    assert f"s {order}" in person.view.help()
    assert person.sees() == seen
    assert person.types(b"r").sees() == seen[::-1]
    assert person.types(b"s" * len(ORDERS)).view.order == order


@pytest.mark.parametrize(
    ("typed", "seen"), [(b"nas", [1]), (b"OFFICE", [2]), (b"denied", [3]), (b"socks", [3, 2, 1]), (b"ended", [3]), (b"nothing", [])]
)
def test_a_filter_lets_through_what_holds_the_text(typed: bytes, seen: list[int]) -> None:
    person = Person(*SOME).types(b"/", typed)
    assert person.sees() == seen, "also while it is typed"
    assert person.types(b"\r").sees() == seen
    assert person.types(b"s").view.order == "rate", "keys mean something again"
    assert len(person.types(ESCAPE).sees()) == 3


def test_a_filter_can_be_mended_and_dropped_and_is_bounded() -> None:
    person = Person(*SOME).types(b"/nax\x7fs")
    assert person.view.filter == "nas"
    assert "filter: nas_" in person.view.help()
    assert person.types(ESCAPE).sees() == [3, 2, 1]
    assert len(person.types(b"/", b"x" * 1000).view.filter) == MAX_FILTER


def test_keys_that_are_typed_into_a_filter_ask_nothing() -> None:
    person = Person(*SOME, leaves=True).types(DOWN, b"/xyq\r")
    assert person.asked == []
    assert person.view.filter == "xyq"


def test_a_row_is_selected_by_its_connection_and_stays_so_in_another_order() -> None:
    person = Person(*SOME).types(DOWN, DOWN)
    assert person.view.selected == 2
    person.types(b"ss")
    assert (person.sees(), person.view.selected) == ([2, 3, 1], 2)
    assert person.types(DOWN).view.selected == 3
    assert person.types(UP, UP, UP).view.selected == 2, "no row is above the first"
    assert person.types(END).view.selected == 1
    assert person.types(HOME).view.selected == 2
    assert person.types(ESCAPE).view.selected is None


def test_pages_and_an_empty_table() -> None:
    person = Person(*(row(number) for number in range(100))).types(PAGE_DOWN)
    assert person.view.selected == 100 - PAGE
    nobody = Person().types(DOWN, PAGE_DOWN, b"x")
    assert (nobody.view.selected, nobody.view.asked) == (None, None)


def test_a_connection_is_ended_only_when_it_was_selected_and_the_person_says_so_again() -> None:
    assert Person(*SOME).types(b"xy").asked == []
    person = Person(*SOME).types(DOWN, DOWN, b"x")
    assert person.asked == []
    assert person.view.help().startswith("end #2 db:5432")
    assert person.types(b"y").asked == [Kill(2)]
    assert person.types(b"y").asked == [Kill(2)]


@pytest.mark.parametrize("answer", [b"n", b"\r", ESCAPE, b"x", b"Y", UP])
def test_any_other_answer_ends_nothing(answer: bytes) -> None:
    person = Person(*SOME).types(DOWN, DOWN, b"x", answer)
    assert (person.asked, person.view.asked, person.view.selected) == ([], None, 2)


def test_what_has_ended_cannot_be_ended() -> None:
    assert Person(*SOME).types(DOWN, b"xy").asked == []


def test_q_leaves_where_the_table_is_a_command_of_its_own_and_means_nothing_at_a_role() -> None:
    assert Person(*SOME, leaves=True).types(b"q").asked == [Leave()]
    assert Person(*SOME).types(b"q").asked == []
    assert "q quit" in View(leaves=True).help()
    assert "quit" not in View().help()


def test_f_and_e_are_switches_that_the_help_shows() -> None:
    person = Person(*SOME).types(b"fe")
    assert (person.view.frozen, person.view.shows_ended) == (True, True)
    assert "FROZEN" in person.view.help()
    person.types(b"fe")
    assert (person.view.frozen, person.view.shows_ended) == (False, False)


def test_the_help_fits_an_ordinary_terminal() -> None:
    assert len(Person(*SOME, leaves=True).types(DOWN).view.help()) < 80
