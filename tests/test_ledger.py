"""What is told of connections, and for how long."""

import anyio
import pytest

from tuunel import ledger as module
from tuunel.errors import Failure, Reason, Speaker, UsageError
from tuunel.events import ConnectionChanged, ConnectionClosed, ConnectionOpened, Event, Notice
from tuunel.ledger import Entry, Ledger


def opened(events: list[Event]) -> tuple[Ledger, Entry]:
    ledger = Ledger(events.append)
    return ledger, ledger.open("home.tuunel:80", device="home", door="socks5", path="relay")


def test_a_connections_life_is_told_in_order() -> None:
    events: list[Event] = []
    ledger, entry = opened(events)
    assert len(ledger) == 1
    entry.connected("nfao4txh")
    entry.end("done")
    assert events == [
        ConnectionOpened(1, "home.tuunel:80", "home", "socks5", "relay", entry.traffic),
        ConnectionChanged(1, "open", "nfao4txh"),
        ConnectionClosed(1, "done"),
    ]
    assert len(ledger) == 0


def test_numbers_are_never_used_twice() -> None:
    ledger = Ledger(lambda _: None)
    numbers = [ledger.open("t", device="", door="", path="direct").number for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]


def test_only_the_first_end_counts() -> None:
    events: list[Event] = []
    ledger, entry = opened(events)
    entry.end("reset")
    entry.end("done")
    assert ledger.outcome(entry.number) == "reset"
    assert len([event for event in events if isinstance(event, ConnectionClosed)]) == 1


def test_an_outcome_is_unknown_while_the_connection_lives() -> None:
    ledger, entry = opened([])
    assert ledger.outcome(entry.number) is None
    assert ledger.outcome(4711) is None


def test_outcomes_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    ledger = Ledger(lambda _: None)
    for _ in range(3):
        ledger.open("t", device="", door="", path="direct").end("done")
    assert [ledger.outcome(number) for number in (1, 2, 3)] == [None, "done", "done"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Failure(Reason.POLICY_DENIED, Speaker.AGENT), "POLICY_DENIED"), (ConnectionResetError(), "reset"), (KeyboardInterrupt(), "reset")],
    ids=["failure", "reset", "cancelled"],
)
def test_an_error_ends_the_entry_and_goes_on(error: BaseException, reason: str) -> None:
    events: list[Event] = []
    ledger, entry = opened(events)
    with pytest.raises(type(error)), entry:
        raise error
    assert ledger.outcome(entry.number) == reason
    if isinstance(error, Failure):
        assert events[-1] == ConnectionClosed(1, "POLICY_DENIED", f"agent: {error}")


@pytest.mark.anyio
async def test_the_end_of_a_connection_can_be_waited_for() -> None:
    ledger, entry = opened([])
    async with anyio.create_task_group() as waiters:
        for _ in range(2):
            waiters.start_soon(ledger.until_ended, entry.number)
        await anyio.wait_all_tasks_blocked()
        entry.end("done")
    await ledger.until_ended(entry.number)  # over
    await ledger.until_ended(4711)  # never was
    assert ledger.outcome(entry.number) == "done"


def test_a_kill_ends_the_entry_with_its_reason_and_cuts_once() -> None:
    events: list[Event] = []
    ledger, entry = opened(events)
    cuts: list[int] = []
    entry.cut_by(lambda: cuts.append(1))
    ledger.kill(entry.number)
    entry.end("reset")
    with pytest.raises(UsageError, match="no connection 1 is open"):
        ledger.kill(entry.number)
    assert cuts == [1]
    assert [(event.reason, event.detail) for event in events if isinstance(event, ConnectionClosed)] == [
        ("KILLED", "local: a person has ended this connection")
    ]


def test_what_is_made_for_an_entry_that_was_killed_is_cut_at_once() -> None:
    ledger, entry = opened([])
    ledger.kill(entry.number)
    cuts: list[int] = []
    entry.cut_by(lambda: cuts.append(1))
    assert cuts == [1]


@pytest.mark.anyio
async def test_a_kill_cancels_what_is_under_way() -> None:
    ledger, entry = opened([])
    with pytest.raises(Failure) as caught, entry, entry.killable():
        ledger.kill(entry.number)
        await anyio.sleep_forever()
    assert caught.value.reason is Reason.KILLED
    assert ledger.outcome(entry.number) == "KILLED"


@pytest.mark.parametrize("late", [False, True])
def test_the_relays_word_for_a_cut_is_taken_before_and_after_the_end_and_told_once(late: bool) -> None:
    events: list[Event] = []
    ledger, entry = opened(events)
    entry.connected("k7q2abcd")
    steps = [lambda: ledger.explain("k7q2abcd", Reason.KILLED), lambda: entry.end("reset", "the connection ended without an end")]
    for step in reversed(steps) if late else steps:
        step()
    ledger.explain("k7q2abcd", Reason.DEVICE_BANNED)
    assert ledger.document()[0]["reason"] == "KILLED"
    assert [event.text for event in events if isinstance(event, Notice)] == ["#1 home.tuunel:80: a person at the relay has ended it"]


def test_the_relays_word_changes_no_end_of_ours_and_an_unknown_tunnel_is_nothing_to_tell() -> None:
    events: list[Event] = []
    ledger, entry = opened(events)
    entry.connected("k7q2abcd")
    entry.end("done")
    for tunnel in ("k7q2abcd", "", "unknown"):
        ledger.explain(tunnel, Reason.KILLED)
    assert ledger.document()[0]["reason"] == "done"
    assert not any(isinstance(event, Notice) for event in events)


def test_a_document_is_bounded_and_an_ended_connection_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SHOWN", 3)
    ledger = Ledger(lambda _: None)
    for number in range(10):
        ledger.open(f"open{number}", device="", door="", path="direct")
    for number in range(module.ENDED_SHOWN + 10):
        entry = ledger.open(f"ended{number}", device="", door="", path="direct")
        entry.cut_by(lambda: None)
        entry.end("done")
        assert entry._cut is None
    shown = [each["target"] for each in ledger.document()]
    assert len(shown) == module.ENDED_SHOWN + 3
    assert shown[-3:] == ["open7", "open8", "open9"]
    assert ledger.summary() == {
        "open": 10, "paths": {"relay": 0, "direct": 10}, "ended": 110, "failed": 0, "up": 0, "down": 0, "lost": 0,
    }  # fmt: skip
