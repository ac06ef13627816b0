"""What is told of connections, and for how long."""

import anyio
import pytest

from tuunel import ledger as module
from tuunel.errors import Failure, Reason, Speaker
from tuunel.events import ConnectionChanged, ConnectionClosed, ConnectionOpened, Event
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
    with pytest.raises(type(error)), entry.failing():
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
