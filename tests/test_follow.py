"""Another process's role, followed: the events are those that its own display would have heard."""

from typing import Any

from tuunel.events import ConnectionChanged, ConnectionClosed, ConnectionOpened, Event, Ready, RelayStateChanged, Totals, Traffic, Use
from tuunel.follow import Follower, totals, unseen
from tuunel.ledger import MAX_SHOWN, Ledger


class Role:
    """A ledger, and what its role would answer to `connections`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ledger = Ledger(lambda _: None, clock=lambda: self.now)
        self.relays: list[dict[str, Any]] = [{"relay": "relay:7443", "state": "online", "detail": "", "rtt": 0.01}]

    def document(self) -> dict[str, Any]:
        status = {"role": "proxy", "listen": ["localhost:1080"], "device_id": "mrupz", "relays": self.relays}
        return {"status": {**status, "connections": self.ledger.summary()}, "connections": self.ledger.document()}


def followed() -> tuple[Role, Follower, list[Event]]:
    events: list[Event] = []
    return Role(), Follower(events.append), events


def test_a_connections_life_is_told_once_and_its_counters_go_on() -> None:
    role, follower, events = followed()
    entry = role.ledger.open("home.tuunel:80", device="home", door="socks5", path="relay")
    role.now += 30
    follower.take(role.document())
    entry.connected("k7q2abcd")
    entry.traffic.up, entry.traffic.rtt = 1000, 0.02
    for _ in range(2):
        follower.take(role.document())
    entry.end("POLICY_DENIED", "agent: no")
    role.now += 3
    for _ in range(2):
        follower.take(role.document())
    assert events == [
        Ready("proxy", "localhost:1080", device_id="mrupz"),
        RelayStateChanged("relay:7443", "online", "", 0.01),
        ConnectionOpened(1, "home.tuunel:80", "home", "socks5", "relay", Traffic()),
        ConnectionChanged(1, "open", "k7q2abcd"),
        ConnectionClosed(1, "POLICY_DENIED", "agent: no"),
    ]
    opened, closed = events[2], events[4]
    assert isinstance(opened, ConnectionOpened)
    assert isinstance(closed, ConnectionClosed)
    assert (opened.age, opened.traffic.up, opened.traffic.rtt, closed.age) == (30.0, 1000, 0.02, 3.0)


def test_what_is_over_when_the_watch_begins_is_told_with_its_end() -> None:
    role, follower, events = followed()
    role.ledger.open("a", device="", door="", path="direct").end("done")
    follower.take(role.document())
    assert [type(event) for event in events[2:]] == [ConnectionOpened, ConnectionClosed]


def test_a_relays_state_is_told_when_it_changes() -> None:
    role, follower, events = followed()
    follower.take(role.document())
    role.relays[0] |= {"state": "offline", "detail": "gone", "rtt": None}
    follower.take(role.document())
    follower.take(role.document())
    assert events[2:] == [RelayStateChanged("relay:7443", "offline", "gone", None)]


def test_an_end_that_nobody_saw_is_told_and_costs_no_memory() -> None:
    role, follower, events = followed()
    entries = [role.ledger.open(f"t{number}", device="", door="", path="direct") for number in range(500)]
    follower.take(role.document())
    for entry in entries:
        entry.end("done")
    follower.take(role.document())
    ended = [event for event in events if isinstance(event, ConnectionClosed)]
    assert sorted(event.id for event in ended) == list(range(1, 501))
    assert [event.reason for event in ended].count("done") == 100
    assert len(follower._seen) == 0
    assert len(follower._over) == 100


def test_totals_and_what_is_left_out_come_from_the_role_itself() -> None:
    role, _, _ = followed()
    for _ in range(MAX_SHOWN + 5):
        role.ledger.open("t", device="", door="", path="direct")
    failed = role.ledger.open("t", device="", door="", path="direct")
    failed.traffic.up = 7
    failed.end("POLICY_DENIED")
    assert totals(role.document()) == Totals(ended=1, failed=1, up=7)
    assert unseen(role.document()) == 5


def test_what_is_used_at_a_relay_is_as_its_own_table_shows_it() -> None:
    role, follower, events = followed()
    used = {"tunnels": 2, "opens_per_second": 0.5, "bytes_per_second": 9, "refused": 1, "at_limit": ["tunnels"]}
    limits = {"tunnels": 2, "opens_per_second": 50, "bytes_per_second": None}
    document = role.document()
    document["status"] |= {"limits": {"device": limits}, "uses": [{"kind": "device", "holder": "mrupz", "use": used}] * 3}
    for _ in range(2):
        follower.take(document)
    fullest = events[0].fullest  # type: ignore[union-attr]
    assert list(fullest(2)) == [Use("device", "mrupz", 2, 0.5, 9, 1, 2, 50, None, ("tunnels",))] * 2
    follower.take(role.document())
    assert list(fullest(2)) == []
