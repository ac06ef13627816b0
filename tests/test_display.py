"""The live table: what fits is drawn, what changed is drawn, and nothing that a peer says can touch the terminal."""

import io
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tuunel.display import KEEP_ENDED, MAX_ENDED, LiveTable, fit
from tuunel.events import (
    Alarm,
    Command,
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceSeen,
    Kill,
    Notice,
    Ready,
    RelayStateChanged,
    Traffic,
    Use,
    printable,
)
from tuunel.rows import age, amount, round_trip

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]up\r\n\x9b31m\u202egnp.exe\u2066[/]"
CURSOR_AND_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def no_steps(ready: Ready) -> Sequence[str]:
    return ()


class Screen:
    """A table on a terminal of a given size, and what has been written there."""

    def __init__(self, role: str = "proxy", width: int = 80, height: int = 24, steps=no_steps) -> None:
        self.written = io.StringIO()
        console = Console(
            file=self.written, force_terminal=True, width=width, height=height, highlight=False, legacy_windows=False, _environ={}
        )
        self.clock = Clock()
        self.table = LiveTable(role, steps, console=console, clock=self.clock)
        self.size = (width, height)

    def open(self, number: int, target: str = "home.tuunel:8080", device: str = "home", door: str = "http-connect") -> Traffic:
        traffic = Traffic()
        self.table(ConnectionOpened(number, target, device, door, "relay", traffic))
        return traffic

    def text(self) -> list[str]:
        return [line.plain for line in self.table.lines(*self.size)]

    def row(self, target: str) -> str:
        return next(line for line in self.text() if target in line)


def use(holder: str, *at_limit: str, **changes: object) -> Use:
    figures = {"tunnels": 3, "opens": 0.4, "rate": 1_200_000, "refused": 0, "max_tunnels": 512, "max_opens": 50, "max_rate": None}
    return Use("device", holder, **(figures | changes), at_limit=at_limit)  # type: ignore[arg-type]


def test_a_relay_shows_who_is_nearest_to_a_limit_and_lets_nobody_miss_who_is_at_one() -> None:
    screen = Screen("relay", width=120)
    uses = [use("mrupz", "tunnels", "rate", tunnels=512, max_rate=1_000_000, refused=7), use("k7q2a"), use("x"), use("never shown")]
    screen.table(Ready("relay", fullest=lambda number: uses[:number]))
    screen.table.draw()
    assert screen.text()[2:5] == [
        "device mrupz  512 of 512 tunnels, 0.4 of 50 opens/s, 1.2M of 1.0M bytes/s, 7 refused  AT ITS LIMIT: tunnels, rate",
        "device k7q2a  3 of 512 tunnels, 0.4 of 50 opens/s, 1.2M bytes/s",
        "device x  3 of 512 tunnels, 0.4 of 50 opens/s, 1.2M bytes/s",
    ]
    assert [str(line.style) for line in screen.table.lines(120, 24)[2:5]] == ["bold yellow", "dim", "dim"]
    assert "never shown" not in "".join(screen.text())


def test_what_is_used_is_asked_for_once_a_second_at_most() -> None:
    screen, asked = Screen("relay"), []
    screen.table(Ready("relay", fullest=lambda number: asked.append(number) or []))
    for _ in range(10):
        screen.table.draw()
    assert len(asked) == 1
    screen.clock.now += 1
    screen.table.draw()
    assert len(asked) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_shows_everything_about_a_connection(width: int) -> None:
    screen = Screen(width=width)
    traffic = screen.open(1)
    screen.table(ConnectionChanged(1, "open", "k7q2abcd"))
    traffic.up, traffic.down, traffic.rtt = 1_234, 56_000_000, 0.023
    screen.clock.now += 75
    screen.table.draw()
    row = screen.row("home.tuunel:8080").split()
    assert row == ["home.tuunel:8080", "home", "connect", "relay", "open", "1.2K", "56M", "747K", "23ms", "1m"]
    titles = screen.text()[-2].split()
    assert titles == ["TARGET", "DEVICE", "DOOR", "PATH", "STATE", "UP", "DOWN", "RATE/S", "RTT", "AGE"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("role", ["proxy", "agent", "relay", "demo"])
def test_no_line_is_wider_than_the_terminal(role: str, width: int) -> None:
    screen = Screen(role, width)
    screen.table(Ready(role, listen="localhost:1080", device_id="mrupz-3btpu-" * 8))
    screen.table(RelayStateChanged("relay.example.net:7443", "offline", "no route to host " * 20))
    screen.table(Alarm("the far end is not who it must be " * 20))
    screen.open(1, "a" * 300 + ".home.tuunel:65535", "d" * 64)
    screen.open(2, "\u5bb6" * 60 + ".tuunel:80", "\u5bb6" * 30)
    screen.open(3)
    screen.table(ConnectionClosed(3, "CONNECTION_REFUSED", "nobody listens there " * 20))
    assert max(cell_len(line) for line in screen.text()) <= width


def test_datagrams_that_were_lost_here_are_seen_in_the_row_in_its_end_and_in_the_total() -> None:
    screen = Screen(width=120)
    traffic = screen.open(1, "home.tuunel:53/udp", door="socks5")
    screen.table(ConnectionChanged(1, "open", "k7q2abcd"))
    assert "lost" not in "".join(screen.text())
    traffic.up, traffic.lost = 1_000, 12
    assert screen.row("home.tuunel:53/udp").split()[4] == "lossy"
    screen.table(ConnectionClosed(1, "done"))
    assert screen.row("home.tuunel:53/udp").endswith("done: 1.0K up, 0 down, 12 lost")
    assert any(line.endswith("12 datagrams lost") for line in screen.text())


def test_a_cut_target_keeps_its_start_and_its_port() -> None:
    screen = Screen()
    screen.open(1, "192.168.178.210.home.tuunel:8443")
    assert re.search(r"192\.168\S+\u2026\S*:8443", screen.text()[-1])


def test_the_relays_table_shows_devices_and_bytes_only() -> None:
    screen = Screen("relay", 120)
    screen.open(1, target="aaaaa-bbbbb", device="ccccc-ddddd", door="")
    titles, row = screen.text()[-2:]
    assert titles.split() == ["TO", "DEVICE", "FROM", "DEVICE", "STATE", "UP", "DOWN", "RATE/S", "RTT", "AGE"]
    assert row.split()[:3] == ["aaaaa-bbbbb", "ccccc-ddddd", "dialing"]


def test_the_agents_table_names_the_client_and_no_front_door() -> None:
    screen = Screen("agent")
    screen.open(1, target="localhost:22", device="laptop", door="tunnel")
    titles, row = screen.text()[-2:]
    assert titles.split()[:4] == ["TARGET", "CLIENT", "PATH", "STATE"]
    assert row.split()[:4] == ["localhost:22", "laptop", "relay", "dialing"]


def test_an_ended_row_stays_a_few_seconds_with_its_whole_reason() -> None:
    screen = Screen()
    screen.open(1)
    screen.table(ConnectionClosed(1, "CONNECTION_REFUSED", "port 8080"))
    assert "CONNECTION_REFUSED: port 8080" in screen.row("home.tuunel:8080")
    screen.clock.now += KEEP_ENDED - 0.1
    screen.table.draw()
    assert screen.row("home.tuunel:8080")
    screen.clock.now += 0.2
    screen.table.draw()
    assert not [line for line in screen.text() if "home.tuunel" in line]


def test_totals_count_what_has_ended_too() -> None:
    screen = Screen()
    for number, end in enumerate(("done", "reset", "POLICY_DENIED")):
        screen.open(number).up = 1_000_000
        screen.table(ConnectionClosed(number, end))
    screen.open(7).down = 2_000
    screen.clock.now += KEEP_ENDED
    screen.table.draw()
    assert "1 open, 3 ended (1 failed)   up 3.0M  down 2.0K" in "\n".join(screen.text())


def test_a_second_end_of_one_connection_counts_once() -> None:
    screen = Screen()
    screen.open(1)
    screen.table(ConnectionClosed(1, "done"))
    screen.table(ConnectionClosed(1, "reset"))
    screen.table(ConnectionClosed(99, "done"))
    assert "0 open, 1 ended" in "\n".join(screen.text())


@pytest.mark.parametrize("height", [5, 10, 24, 50])
def test_only_the_rows_that_fit_are_drawn_newest_first(height: int) -> None:
    screen = Screen(height=height)
    for number in range(200):
        screen.open(number, f"host{number}.home.tuunel:80")
    lines = screen.text()
    assert len(lines) < height
    drawn = [line for line in lines if line.startswith("host")]
    assert lines[-1].endswith(f"and {200 - len(drawn)} more")
    assert [line.split(".")[0] for line in drawn] == [f"host{number}" for number in range(199, 199 - len(drawn), -1)]


def test_the_screen_is_written_only_when_something_changed() -> None:
    screen = Screen()
    with screen.table as table:
        traffic = screen.open(1)
        table.draw()
        size = len(screen.written.getvalue())
        table.draw()
        table.draw()
        assert len(screen.written.getvalue()) == size
        traffic.up += 1000
        table.draw()
        assert len(screen.written.getvalue()) > size


def test_the_header_tells_the_relays_state() -> None:
    screen = Screen()
    screen.table(Ready("proxy", listen="localhost:1080"))
    screen.table(RelayStateChanged("relay.example.net:7443", "connecting"))
    screen.table(RelayStateChanged("relay.example.net:7443", "online", rtt=0.012))
    assert screen.text()[:2] == ["tuunel proxy  localhost:1080", "relay relay.example.net:7443  online  12ms"]


def test_alarms_stay_on_screen() -> None:
    screen = Screen()
    for number in range(5):
        screen.table(Alarm(f"alarm {number}"))
    screen.clock.now += 86_400
    screen.table.draw()
    lines = screen.text()
    assert [line for line in lines if line.startswith("ALARM")] == ["ALARM: alarm 2", "ALARM: alarm 3", "ALARM: alarm 4"]
    assert "2 earlier alarms: see above" in lines


def test_a_flood_of_alarms_is_counted_and_not_kept() -> None:
    screen = Screen()
    for number in range(5_000):
        screen.table(Alarm(f"alarm {number}"))
    assert len(screen.table._alarms) == 3
    assert "4997 earlier alarms: see above" in screen.text()


def test_the_next_step_can_be_copied_in_one_piece() -> None:
    link = "tuunel://relay.example.net:7443?pin=" + "a" * 200
    screen = Screen(steps=lambda ready: [f"next:   tuunel agent '{ready.link}'"])
    with screen.table as table:
        table(Ready("relay", link=link))
    assert link in screen.written.getvalue()


def test_hostile_text_cannot_touch_the_terminal() -> None:
    screen = Screen(width=120, height=40)
    with screen.table as table:
        table(Ready("proxy", listen="localhost:1080"))
        screen.open(1, HOSTILE, HOSTILE, HOSTILE)
        table(RelayStateChanged(HOSTILE, "offline", HOSTILE))
        table(DeviceSeen(HOSTILE, "paired", HOSTILE))
        table(Notice(HOSTILE))
        table(Alarm(HOSTILE))
        table.draw()
        table(ConnectionClosed(1, "POLICY_DENIED", HOSTILE))
        table.draw()
        plain = "\n".join(screen.text())
    shown = CURSOR_AND_STYLE.sub("", screen.written.getvalue())
    for text in (plain, shown):
        assert not [character for character in text if not character.isprintable() and character not in "\r\n"]
        assert "[red]up" in text  # markup of others is text, not style
    assert "\x1b[2J" not in screen.written.getvalue()
    assert "\x1b]0;" not in screen.written.getvalue()


# --- what a person does ---


def keyed(width: int = 80, height: int = 24, **options: bool) -> Screen:
    screen = Screen(width=width, height=height)
    screen.table.keys = True
    for name, value in options.items():
        setattr(screen.table, name, value)
    return screen


def targets(screen: Screen) -> list[str]:
    return [line.partition(" ")[0] for line in screen.text() if ".tuunel" in line and not line.startswith("#")]


def test_the_keys_stand_in_the_last_line_where_there_are_keys() -> None:
    assert "s newest" in keyed().text()[-1]
    assert not any("s newest" in line for line in Screen().text())


def test_the_busiest_come_first_when_asked_for() -> None:
    screen = keyed()
    traffic = [screen.open(number, f"h{number}.tuunel:80") for number in range(3)]
    traffic[1].down = 5_000_000
    screen.clock.now += 2
    screen.table.draw()
    assert targets(screen) == ["h2.tuunel:80", "h1.tuunel:80", "h0.tuunel:80"]
    screen.table.press("s")
    assert targets(screen)[0] == "h1.tuunel:80"


def test_a_filter_says_how_many_rows_pass_it() -> None:
    screen = keyed(height=12)
    for number in range(200):
        screen.open(number, f"h{number}.tuunel:80")
    for key in "/h19":
        screen.table.press(key)
    assert "filter: h19_" in screen.text()[-1]
    screen.table.press("enter")
    assert all(target.startswith("h19") for target in targets(screen))
    assert any("11 of 200 pass the filter, of which 5 do not fit" in line for line in screen.text())


def test_a_frozen_table_stands_still_and_goes_on_where_the_role_is_then() -> None:
    screen = keyed()
    traffic = screen.open(1, "h1.tuunel:80")
    traffic.up = 1000
    screen.table.press("f")
    frozen = screen.row("h1.tuunel:80")
    traffic.up = 777_000_000
    screen.open(2, "h2.tuunel:80")
    screen.clock.now += 100
    screen.table.draw()
    assert screen.row("h1.tuunel:80") == frozen
    assert targets(screen) == ["h1.tuunel:80"]
    screen.table.press("f")
    assert "777M" in screen.row("h1.tuunel:80")
    assert targets(screen) == ["h2.tuunel:80", "h1.tuunel:80"]


@pytest.mark.parametrize("order", range(6))
def test_the_selected_row_is_always_among_those_that_are_drawn(order: int) -> None:
    screen = keyed(height=12)
    for number in range(50):
        screen.open(number, f"h{number}.tuunel:80")
    for key in ["s"] * order + ["down"] * 30:
        screen.table.press(key)
    selected = f"h{screen.table.view.selected}.tuunel:80"
    assert selected in targets(screen)
    assert any(line.startswith(f"#{screen.table.view.selected}  {selected}  device home  by http-connect") for line in screen.text())
    assert len(screen.text()) < 12


def test_a_person_can_end_a_connection_and_is_asked_first() -> None:
    asked: list[Command] = []
    screen = keyed()
    screen.table.act = asked.append
    screen.open(7, HOSTILE)
    for key in ("down", "x"):
        screen.table.press(key)
    assert screen.text()[-1].startswith("end #7 ")
    assert screen.text()[-1].isprintable()
    screen.table.press("y")
    assert asked == [Kill(7)]


def test_an_ended_row_can_be_looked_at_later_and_the_selected_one_stays() -> None:
    screen = keyed(120)
    for number in range(MAX_ENDED + 50):
        screen.open(number, f"h{number}.tuunel:80")
        screen.table(ConnectionClosed(number, "POLICY_DENIED", f"detail {number}"))
    screen.open(999, "live.tuunel:80")
    screen.clock.now += KEEP_ENDED
    screen.table.draw()
    assert targets(screen) == ["live.tuunel:80"]
    screen.table.press("e")
    assert len(screen.table._all_rows()) == MAX_ENDED + 1
    assert "POLICY_DENIED: detail 149" in screen.row("h149.tuunel:80")
    for key in ("down", "down", "e"):
        screen.table.press(key)
    assert targets(screen) == ["live.tuunel:80", "h149.tuunel:80"]
    screen.table.press("escape")
    assert targets(screen) == ["live.tuunel:80"]


def test_an_ended_rows_age_stands_still() -> None:
    screen = keyed(200)
    screen.open(1, "h1.tuunel:80")
    screen.clock.now += 3
    screen.table(ConnectionClosed(1, "done"))
    screen.clock.now += 2
    assert screen.table._rows[1].age(screen.clock.now) == 3


def test_what_is_told_late_has_its_own_age() -> None:
    screen = keyed()
    screen.table(ConnectionOpened(1, "h1.tuunel:80", "home", "socks5", "relay", Traffic(), age=7200.0))
    assert screen.row("h1.tuunel:80").split()[-1] == "2h"
    screen.table(ConnectionOpened(2, "h2.tuunel:80", "home", "socks5", "relay", Traffic(), age=9.0))
    screen.table(ConnectionClosed(2, "done", age=8.0))
    screen.table.draw()
    assert targets(screen) == ["h1.tuunel:80"]


def test_what_cannot_be_told_above_a_whole_screen_stands_in_it_until_the_next_key() -> None:
    screen = keyed(whole=True)
    with screen.table as table:
        table(Notice("no connection 7 is open here"))
        table.draw()
        assert "no connection 7 is open here" in screen.text()
        table.press("s")
        assert "no connection 7 is open here" not in screen.text()
    assert screen.written.getvalue().count("\x1b[?1049") == 2, "the other screen is taken and given back"


def test_nothing_is_drawn_on_a_terminal_that_is_others_but_what_must_be_read_is_said() -> None:
    screen = keyed()
    with screen.table as table:
        table.suspend()
        size = len(screen.written.getvalue())
        screen.open(1)
        table.draw()
        assert len(screen.written.getvalue()) == size
        table(Alarm("look here"))
        assert screen.written.getvalue()[size:] == "\x1b[1;31mALARM: look here\x1b[0m\n"
        table.resume()
        table.draw()
        assert "home.tuunel:8080" in screen.written.getvalue()[size:]


def test_no_color_means_no_colour() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, height=24, legacy_windows=False, _environ={"NO_COLOR": "1"})
    with LiveTable("proxy", no_steps, console=console, clock=Clock()) as table:
        table(RelayStateChanged("relay:7443", "offline", "no route"))
        table(ConnectionOpened(1, "t", "d", "socks5", "relay", Traffic()))
        table(ConnectionClosed(1, "POLICY_DENIED"))
        table(Alarm("x"))
        table.draw()
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9][;m]", written.getvalue())


@given(st.text(max_size=400), st.integers(1, 60))
def test_fit_gives_exactly_the_width_asked_for(text: str, width: int) -> None:
    assert cell_len(fit(printable(text), width)) == width


@given(st.text(max_size=2000), st.integers(2, 300))
def test_printable_text_is_short_and_has_no_control_characters(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (9_949, "9.9K"), (9_951, "10K"), (64_000_000, "64M"), (999_500, "1.0M"), (3e18, "3000P")],
)
def test_amounts_are_short(count: float, text: str) -> None:
    assert amount(count) == text


def test_times_are_short() -> None:
    assert [round_trip(value) for value in (None, 0.0004, 0.0123, 1.25)] == ["-", "0.4ms", "12ms", "1.2s"]
    assert [age(value) for value in (-1, 59.9, 60, 3600, 200_000)] == ["0s", "59s", "1m", "1h", "2d"]
