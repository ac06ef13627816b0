"""Runs a long-running role: shows what it does, and ends it on Ctrl-C or SIGTERM."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio
import anyio.abc

from tuunel.cli.nextsteps import after_ready
from tuunel.cli.qr import NextSteps
from tuunel.events import Emit, Event
from tuunel.journal import JsonJournal, Level, LogJournal, Threshold
from tuunel.supervisor import Supervisor

if TYPE_CHECKING:
    from tuunel.cli.monitoring import Monitor
    from tuunel.configfile import RunningSettings

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAW_INTERVAL = 0.5  # seconds: the table is drawn at most twice a second

Draw = Callable[[], None]


class Role(Protocol):
    """A long-running part of tuunel."""

    async def run(self) -> None:
        """Serve until `stop()` or cancellation."""

    def stop(self) -> None:
        """Take no new work; `run()` returns when the work under way is done."""


RoleType = TypeVar("RoleType", bound=Role)


@dataclass(frozen=True, slots=True)
class Audience:
    """Who hears a role's events: the live table, to be drawn now and then, or a journal with a threshold."""

    emit: Emit
    draw: Draw | None = None
    threshold: Threshold | None = None


def run_role(
    name: str,
    build: Callable[[Emit], RoleType],
    *,
    as_json: bool,
    drain: float,
    log_level: Level = Level.INFO,
    metrics: str | None = None,
    settings: "RunningSettings | None" = None,
    reload: Callable[[RoleType], Awaitable[None]] | None = None,
    next_steps: NextSteps = after_ready,
) -> None:
    """Run the role that `build` makes until it ends or is told to by a signal.

    The first Ctrl-C or SIGTERM stops it and cancels it after `drain` seconds; a second one ends the process at once. With `settings`
    SIGHUP has them read again, and awaits `reload`. `metrics` is where the role's metrics are served. Raises UsageError, ListenError, and
    what the role raised, possibly inside an exception group.
    """
    monitor = None
    if metrics is not None:
        from tuunel.cli.monitoring import Monitor  # noqa: PLC0415 - a large library, which most do not need

        monitor = Monitor(name, metrics)
    with listening(name, as_json=as_json, level=log_level, next_steps=next_steps) as audience:
        anyio.run(partial(serve, build, audience, drain, settings=settings, reload=reload, monitor=monitor))


@contextmanager
def listening(name: str, *, as_json: bool, level: Level, next_steps: NextSteps = after_ready) -> Iterator[Audience]:
    """Who hears the role's events: JSON lines, the live table when stderr is a terminal, log lines else. `level` is for lines."""
    if not as_json and sys.stderr.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}:
        from tuunel.display import LiveTable  # noqa: PLC0415 - rich only where a table is drawn

        with LiveTable(name, next_steps=next_steps) as table:
            yield Audience(table, table.draw)
    else:
        threshold = Threshold(JsonJournal(sys.stdout) if as_json else LogJournal(sys.stderr, next_steps), level)
        yield Audience(threshold, threshold=threshold)


async def serve(
    build: Callable[[Emit], RoleType],
    audience: Audience,
    drain: float,
    *,
    settings: "RunningSettings | None" = None,
    reload: Callable[[RoleType], Awaitable[None]] | None = None,
    monitor: "Monitor | None" = None,
) -> None:
    """Run the role with its table and its signals; returns when the role has ended."""
    supervisor = Supervisor()

    def emit(event: Event) -> None:
        heard = event if monitor is None else monitor.hear(event)
        audience.emit(heard)
        supervisor(heard)

    async with anyio.create_task_group() as tasks:
        role = build(emit)
        await tasks.start(end_on_signal, role, drain, tasks.cancel_scope, supervisor)
        if settings is not None and reload is not None:
            from tuunel.cli.reloading import Reload, reload_on_hangup  # noqa: PLC0415 - the demo has no settings

            await tasks.start(reload_on_hangup, Reload(settings, lambda: reload(role), emit, audience.threshold), supervisor)
        for notice in [] if monitor is None else await monitor.start(tasks, role):
            emit(notice)
        tasks.start_soon(supervisor.show_life)
        if audience.draw is not None:
            tasks.start_soon(keep_drawn, audience.draw)
        await role.run()
        tasks.cancel_scope.cancel()


async def end_on_signal(
    role: Role,
    drain: float,
    scope: anyio.CancelScope,
    supervisor: Supervisor,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Wait for the first signal, stop the role, and cancel `scope` after `drain` seconds."""
    with anyio.open_signal_receiver(*SIGNALS) as received:
        task_status.started()
        await anext(aiter(received))
    for number in SIGNALS:
        signal.signal(number, exit_at_once)
    supervisor.stopping()
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
