"""Runs a long-running role: shows what it does, and ends it on Ctrl-C or SIGTERM."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import anyio
import anyio.abc

from tuunel.cli.nextsteps import after_ready
from tuunel.events import Emit

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAW_INTERVAL = 0.5  # seconds: the table is drawn at most twice a second

Draw = Callable[[], None]


class Role(Protocol):
    """A long-running part of tuunel."""

    async def run(self) -> None:
        """Serve until `stop()` or cancellation."""

    def stop(self) -> None:
        """Take no new work; `run()` returns when the work under way is done."""


def run_role(name: str, build: Callable[[Emit], Role], *, as_json: bool, drain: float) -> None:
    """Run the role that `build` makes until it ends or is told to by a signal.

    The first Ctrl-C or SIGTERM stops it and cancels it after `drain` seconds; a second one ends the process at once.
    Raises what the role raised, possibly inside an exception group.
    """
    with listening(name, as_json=as_json) as (emit, draw):
        anyio.run(serve, build, emit, draw, drain)


@contextmanager
def listening(name: str, *, as_json: bool) -> Iterator[tuple[Emit, Draw | None]]:
    """Who hears the role's events: JSON lines, the live table when stderr is a terminal, log lines else."""
    from tuunel.journal import JsonJournal, LogJournal  # noqa: PLC0415 - and rich only where a table is drawn

    if as_json:
        yield JsonJournal(sys.stdout), None
    elif sys.stderr.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}:
        from tuunel.display import LiveTable  # noqa: PLC0415

        with LiveTable(name, next_steps=after_ready) as table:
            yield table, table.draw
    else:
        yield LogJournal(sys.stderr, after_ready), None


async def serve(build: Callable[[Emit], Role], emit: Emit, draw: Draw | None, drain: float) -> None:
    """Run the role with its table and its signals; returns when the role has ended."""
    async with anyio.create_task_group() as tasks:
        role = build(emit)
        await tasks.start(end_on_signal, role, drain, tasks.cancel_scope)
        if draw is not None:
            tasks.start_soon(keep_drawn, draw)
        await role.run()
        tasks.cancel_scope.cancel()


async def end_on_signal(
    role: Role,
    drain: float,
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Wait for the first signal, stop the role, and cancel `scope` after `drain` seconds."""
    with anyio.open_signal_receiver(*SIGNALS) as received:
        task_status.started()
        await anext(aiter(received))
    for number in SIGNALS:
        signal.signal(number, exit_at_once)
    role.stop()
    await anyio.sleep(drain)
    scope.cancel()


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """End the process now: the person has asked twice. A terminal gets its cursor back."""
    del frame
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
    os._exit(128 + number)


async def keep_drawn(draw: Draw) -> None:
    """Draw the table at most twice a second, until cancelled."""
    while True:
        draw()
        await anyio.sleep(DRAW_INTERVAL)
