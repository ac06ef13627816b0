"""A long-running command: the first signal ends it in order, a second one at once, and its errors arrive."""

import gc
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tuunel.cli.running import GARBAGE, SIGNALS, Audience, run_role, serve
from tuunel.cli.screen import Screen
from tuunel.errors import Failure, Reason, UsageError
from tuunel.events import Act, Emit, Event, Kill, Leave, Ready

ROOT = Path(__file__).parents[2]
DEADLINE = 20

ROLE = """
import sys, anyio
from tuunel.cli.running import run_role
from tuunel.events import Ready, Notice

class Role:
    def __init__(self, emit):
        self.emit, self.stopped = emit, anyio.Event()
    def stop(self):
        self.emit(Notice("stopping"))
        if not STUBBORN:
            self.stopped.set()
    async def run(self):
        self.emit(Ready("proxy", listen="localhost:1080"))
        await self.stopped.wait()

run_role("proxy", Role, as_json=JSON, drain=DRAIN)
"""


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


class FakeRole:
    def __init__(self, emit: Emit, *, ends_when_told: bool = True) -> None:
        self.emit = emit
        self.ends_when_told = ends_when_told
        self.stopped = anyio.Event()
        self.cancelled = False

    def stop(self) -> None:
        if self.ends_when_told:
            self.stopped.set()

    async def run(self) -> None:
        self.emit(Ready("proxy"))
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await self.stopped.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise


@pytest.mark.anyio
@pytest.mark.parametrize("ends_when_told", [True, False])
async def test_the_first_signal_stops_the_role_and_the_drain_time_cancels_it(ends_when_told: bool) -> None:
    roles: list[FakeRole] = []
    events: list[Event] = []

    def build(emit: Emit) -> FakeRole:
        roles.append(FakeRole(emit, ends_when_told=ends_when_told))
        return roles[0]

    with anyio.fail_after(DEADLINE):
        await serve(build, Audience(events.append), 0.01 if not ends_when_told else 3600)
    assert events == [Ready("proxy")]
    assert roles[0].cancelled is not ends_when_told


@pytest.mark.anyio
async def test_the_error_of_a_role_arrives() -> None:
    class Broken(FakeRole):
        async def run(self) -> None:
            raise Failure(Reason.RELAY_UNTRUSTED)

    with pytest.raises(ExceptionGroup) as raised:
        await serve(Broken, Audience(lambda _: None), 1)
    assert raised.group_contains(Failure)


@pytest.mark.anyio
async def test_the_table_is_drawn_while_the_role_runs_and_its_wishes_arrive() -> None:
    table = FakeTable()

    class Waits(FakeRole):
        killed = 0

        async def run(self) -> None:
            await table.drawn.wait()
            table.act(Kill(7))
            assert self.killed == 7
            table.act(Leave())
            await self.stopped.wait()

        def kill(self, number: int) -> None:
            self.killed = number
            raise UsageError("it has just ended by itself", "")

    with anyio.fail_after(DEADLINE), Screen(table) as screen:
        await serve(Waits, Audience(screen.emit, screen), 1)
    assert table.suspended


class FakeTable:
    keys = False
    suspended = False

    def __init__(self) -> None:
        self.drawn = anyio.Event()
        self.act: Act = lambda _: None

    def __call__(self, event: Event) -> None: ...

    def draw(self) -> None:
        self.drawn.set()

    def press(self, key: str) -> None: ...

    def resume(self) -> None: ...

    def suspend(self) -> None:
        self.suspended = True


def started(*, stubborn: bool, as_json: bool = False, drain: float = 2.0, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    values = f"STUBBORN, JSON, DRAIN = {stubborn}, {as_json}, {drain}\n"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    return subprocess.Popen(
        [sys.executable, "-c", values + ROLE], stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT, env=environment
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, out, errors


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_process_cleanly(number: signal.Signals) -> None:
    process = started(stubborn=False, as_json=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "ready"
    process.send_signal(number)
    code, out, errors = ended(process)
    assert (code, errors) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["notice"]


def test_the_drain_time_ends_a_role_that_does_not_stop() -> None:
    process = started(stubborn=True, as_json=True, drain=0.1)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    process = started(stubborn=True, as_json=True, drain=3600)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert json.loads(process.stdout.readline())["text"] == "stopping"
    process.send_signal(number)
    assert ended(process)[0] == 128 + number


def test_without_a_terminal_there_are_log_lines_on_stderr_and_nothing_on_stdout() -> None:
    process = started(stubborn=False)
    assert process.stderr is not None
    assert process.stderr.readline().endswith("Z proxy ready on localhost:1080\n")
    process.send_signal(signal.SIGTERM)
    code, out, errors = ended(process)
    assert (code, out) == (0, "")
    assert errors.splitlines()[-1].endswith("Z stopping")


def test_on_a_terminal_there_is_a_table_and_the_cursor_comes_back() -> None:
    ours, theirs = pty.openpty()
    process = started(stubborn=True, drain=3600, stderr=theirs)
    os.close(theirs)
    try:
        read_until(ours, b"tuunel proxy")
        process.send_signal(signal.SIGINT)
        read_until(ours, b"stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
        assert b"\x1b[?25h" in read_until(ours, b"\x1b[?25h")
    finally:
        os.close(ours)
        process.communicate()


def read_until(terminal: int, wanted: bytes) -> bytes:
    seen, end = b"", time.monotonic() + DEADLINE
    while wanted not in seen:
        readable, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert readable, seen
        seen += os.read(terminal, 65536)
    return seen


def test_a_role_that_holds_thousands_of_connections_is_not_stopped_by_the_coming_and_going_of_timers() -> None:
    kept, seen = gc.get_threshold(), []

    class Counting(FakeRole):
        async def run(self) -> None:
            seen.append(gc.get_threshold()[0])
            await super().run()

    try:
        gc.set_threshold(700)
        run_role("proxy", Counting, as_json=True, drain=DEADLINE)
    finally:
        gc.set_threshold(*kept)
    assert seen == [GARBAGE]
    assert GARBAGE > 700
