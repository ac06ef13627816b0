"""The journal: `ready` comes first, every event has a name, and no line of it can be more than a line."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from tuunel.events import (
    Alarm,
    ConnectionChanged,
    ConnectionClosed,
    ConnectionOpened,
    DeviceSeen,
    Event,
    Notice,
    Ready,
    RelayStateChanged,
    Traffic,
)
from tuunel.journal import EVENT_NAMES, MAX_HELD, JsonJournal, Level, LogJournal, Threshold

HOSTILE = "evil\n2026-01-01T00:00:00Z ALARM: forged\x1b[31m\u202e"
REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "events.md"


def noon() -> datetime:
    return datetime(2026, 11, 22, 12, 0, 0, 123000, tzinfo=UTC)


def every_event() -> list[Event]:
    return [
        Ready("proxy", listen="localhost:1080"),
        RelayStateChanged("relay.example.net:7443", "online", rtt=0.02),
        ConnectionOpened(1, "home.tuunel:80", "home", "socks5", "relay", Traffic()),
        ConnectionChanged(1, "open", "k7q2abcd"),
        ConnectionClosed(1, "done"),
        DeviceSeen("mrupz-3btpu", "paired", "laptop"),
        Notice("read me once"),
        Alarm("something is wrong"),
    ]


class Json:
    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.journal = JsonJournal(self.stream, noon)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def test_every_kind_of_event_has_a_name_and_is_documented() -> None:
    assert set(EVENT_NAMES) == set(get_args(Event)) == {type(event) for event in every_event()}
    text = REFERENCE.read_text()
    missing = [name for name in EVENT_NAMES.values() if f"## `{name}`" not in text]
    assert not missing


def test_every_field_of_every_event_is_documented() -> None:
    out = Json()
    for event in every_event():
        out.journal(event)
    text = REFERENCE.read_text()
    for line in out.lines():
        section = text.split(f"## `{line['event']}`")[1].split("\n## ")[0]
        missing = [name for name in line if name not in {"event", "time"} and f"| `{name}` |" not in section]
        assert not missing, line["event"]


def test_ready_is_the_first_line_whatever_happened_before() -> None:
    out = Json()
    out.journal(RelayStateChanged("relay.example.net:7443", "connecting"))
    assert out.lines() == []
    out.journal(Ready("agent", device_id="mrupz", invite="tuunel://..."))
    assert [line["event"] for line in out.lines()] == ["ready", "relay"]
    assert out.lines()[0] == {
        "event": "ready",
        "time": "2026-11-22T12:00:00.123Z",
        "role": "agent",
        "device_id": "mrupz",
        "invite": "tuunel://...",
        "admits_enrolled": False,
    }


def test_what_is_held_back_is_bounded_and_keeps_the_newest() -> None:
    out = Json()
    for number in range(MAX_HELD + 1):
        out.journal(Notice(str(number)))
    out.journal(Ready("agent"))
    texts = [line["text"] for line in out.lines()[1:]]
    assert texts == [str(number) for number in range(1, MAX_HELD + 1)]


def test_a_closed_line_says_what_the_connection_carried() -> None:
    out = Json()
    out.journal(Ready("proxy"))
    traffic = Traffic()
    out.journal(ConnectionOpened(7, "home.tuunel:80", "home", "socks5", "relay", traffic))
    traffic.up, traffic.down = 10, 20_000
    out.journal(ConnectionClosed(7, "reset", "the target reset it"))
    assert out.lines()[2] == {
        "event": "closed",
        "time": "2026-11-22T12:00:00.123Z",
        "id": 7,
        "reason": "reset",
        "detail": "the target reset it",
        "up": 10,
        "down": 20_000,
    }


def test_a_closed_line_says_how_many_datagrams_were_lost_here() -> None:
    out, stream = Json(), io.StringIO()
    log = LogJournal(stream, lambda _: (), noon)
    traffic = Traffic()
    traffic.lost = 3
    for journal in (out.journal, log):
        for event in (
            Ready("proxy"),
            ConnectionOpened(7, "home.tuunel:53/udp", "home", "socks5", "relay", traffic),
            ConnectionClosed(7, "done"),
        ):
            journal(event)
    assert out.lines()[2]["lost"] == 3
    assert stream.getvalue().endswith("#7 ended done, 0 bytes up, 0 bytes down, 3 datagrams lost here\n")


def test_a_closed_line_names_its_tunnel() -> None:
    out = Json()
    for event in every_event():
        out.journal(event)
    assert [line["event"] for line in out.lines() if line.get("tunnel") == "k7q2abcd"] == ["changed", "closed"]


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        (Level.ERROR, [Ready, Alarm]),
        (Level.WARNING, [Ready, Notice, Alarm]),
        (Level.NOTICE, [Ready, RelayStateChanged, DeviceSeen, Notice, Alarm]),
        (Level.INFO, [type(event) for event in every_event()]),
    ],
)
def test_a_level_keeps_what_is_as_serious_and_always_ready(level: Level, kept: list[type[Event]]) -> None:
    heard: list[Event] = []
    threshold = Threshold(heard.append, Level.INFO)
    threshold.level = level
    for event in every_event():
        threshold(event)
    assert [type(event) for event in heard] == kept


def test_a_relay_that_is_lost_is_a_warning() -> None:
    heard: list[Event] = []
    lost = RelayStateChanged("relay.example.net:7443", "offline", "gone")
    Threshold(heard.append, Level.WARNING)(lost)
    assert heard == [lost]


def test_hostile_text_stays_inside_its_json_string() -> None:
    out = Json()
    out.journal(Ready("agent"))
    out.journal(DeviceSeen(HOSTILE, "paired", HOSTILE))
    assert out.stream.getvalue().isascii()
    assert [line["event"] for line in out.lines()] == ["ready", "device"]


def test_log_lines_cannot_be_forged() -> None:
    stream = io.StringIO()
    journal = LogJournal(stream, lambda _: (), noon)
    events = [
        RelayStateChanged(HOSTILE, "offline", HOSTILE),
        ConnectionOpened(1, HOSTILE, HOSTILE, HOSTILE, "relay", Traffic()),
        ConnectionChanged(1, "open", HOSTILE),
        ConnectionClosed(1, "POLICY_DENIED", HOSTILE),
        DeviceSeen(HOSTILE, "paired", HOSTILE),
        Notice(HOSTILE),
        Alarm(HOSTILE),
    ]
    for event in events:
        journal(event)
    lines = stream.getvalue().split("\n")[:-1]
    assert len(lines) == len(events)
    assert all(line.isprintable() and line.startswith("2026-11-22T12:00:00Z ") for line in lines)


def test_log_lines_read_like_sentences() -> None:
    stream = io.StringIO()
    journal = LogJournal(stream, lambda ready: [f"next:   curl {ready.listen}"], noon)
    for event in every_event():
        journal(event)
    assert stream.getvalue().replace("2026-11-22T12:00:00Z ", "").splitlines() == [
        "proxy ready on localhost:1080",
        "next:   curl localhost:1080",
        "relay relay.example.net:7443 online",
        "#1 home.tuunel:80, device home, by socks5, path relay",
        "#1 open, tunnel k7q2abcd",
        "#1 ended done, tunnel k7q2abcd, 0 bytes up, 0 bytes down",
        "device mrupz-3btpu (laptop) paired",
        "read me once",
        "ALARM: something is wrong",
    ]


def test_a_new_round_trip_time_is_no_log_line() -> None:
    stream = io.StringIO()
    journal = LogJournal(stream, lambda _: (), noon)
    for rtt, state in ((None, "connecting"), (None, "online"), (0.1, "online"), (0.2, "online"), (None, "offline"), (None, "online")):
        journal(RelayStateChanged("relay:1", state, rtt=rtt))
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["connecting", "online", "offline", "online"]


@pytest.mark.parametrize("door", ["tunnel", "relay", ""])
def test_a_role_with_one_way_in_names_no_front_door(door: str) -> None:
    stream = io.StringIO()
    LogJournal(stream, lambda _: (), noon)(ConnectionOpened(3, "localhost:22", "laptop", door, "relay", Traffic()))
    assert stream.getvalue() == "2026-11-22T12:00:00Z #3 localhost:22, device laptop, path relay\n"


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    writes = 0

    def write(self, text: str, /) -> int:
        self.writes += 1
        raise BrokenPipeError


@pytest.mark.parametrize("make", [lambda stream: JsonJournal(stream, noon), lambda stream: LogJournal(stream, lambda _: (), noon)])
def test_a_role_survives_a_reader_that_leaves(make: Any) -> None:
    stream = Gone()
    journal = make(stream)
    for event in every_event():
        journal(event)
    assert stream.writes == 1


def test_an_outage_is_told_once_for_each_reason_and_when_it_is_over() -> None:
    """It is tried again every second or so; a log of a night must still be readable."""
    stream = io.StringIO()
    journal = LogJournal(stream, lambda _: (), noon)
    tries = [RelayStateChanged("relay:1", "connecting"), RelayStateChanged("relay:1", "offline", "refused")]
    for event in [*tries * 3, RelayStateChanged("relay:1", "connecting"), RelayStateChanged("relay:1", "offline", "no answer")]:
        journal(event)
    journal(RelayStateChanged("relay:1", "connecting"))
    journal(RelayStateChanged("relay:1", "online"))
    journal(tries[1])
    told = [line.partition("relay:1 ")[2] for line in stream.getvalue().splitlines()]
    assert told == ["connecting", "offline: refused", "offline: no answer", "online", "offline: refused"]
