"""Runs a long-running role: shows what it does, passes on what a person asks of it, and ends it on Ctrl-C or SIGTERM."""

import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio
import anyio.abc

from tuunel.cli.nextsteps import after_ready
from tuunel.cli.qr import NextSteps
from tuunel.errors import UsageError
from tuunel.events import Command, Emit, Event, Kill
from tuunel.journal import JsonJournal, Level, LogJournal, Threshold
from tuunel.supervisor import Supervisor

if TYPE_CHECKING:
    from tuunel.cli.monitoring import Monitor
    from tuunel.cli.screen import Screen
    from tuunel.configfile import RunningSettings

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Objects that may come into being, beyond those that go, before Python looks for garbage: it looks through the newest, five times as
#: seldom through those that have stayed, and then through all. Its own number, 700, is passed by the coming and going of timers alone where
#: thousands of connections wait, and to look through all that a relay of 5,000 agents holds stops it for a second.
GARBAGE = 50_000


class Role(Protocol):
    """A long-running part of tuunel."""

    async def run(self) -> None:
        """Serve until `stop()` or cancellation."""

    def stop(self) -> None:
        """Take no new work; `run()` returns when the work under way is done."""

    def kill(self, number: int) -> None:
        """End the connection of this number, because a person wants it. UsageError when there is none."""


RoleType = TypeVar("RoleType", bound=Role)


@dataclass(frozen=True, slots=True)
class Audience:
    """Who hears a role's events: the live table on its screen, or a journal with a threshold."""

    emit: Emit
    screen: "Screen | None" = None
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
    gc.set_threshold(GARBAGE, 5, 5)
    with listening(name, as_json=as_json, level=log_level, next_steps=next_steps) as audience:
        anyio.run(partial(serve, build, audience, drain, settings=settings, reload=reload, monitor=monitor))


@contextmanager
def listening(name: str, *, as_json: bool, level: Level, next_steps: NextSteps = after_ready) -> Iterator[Audience]:
    """Who hears the role's events: JSON lines, the live table when stderr is a terminal, log lines else. `level` is for lines."""
    from tuunel.cli.screen import Screen, is_screen  # noqa: PLC0415 - the terminal, and rich, only where a table is drawn

    if not as_json and is_screen():
        from tuunel.display import LiveTable  # noqa: PLC0415

        with Screen(LiveTable(name, next_steps=next_steps)) as screen:
            yield Audience(screen.emit, screen)
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
        leave = audience.screen.leave if audience.screen is not None else _do_nothing
        await tasks.start(end_on_signal, role, drain, tasks.cancel_scope, supervisor, leave)
        if settings is not None and reload is not None:
            from tuunel.cli.reloading import Reload, reload_on_hangup  # noqa: PLC0415 - the demo has no settings

            await tasks.start(reload_on_hangup, Reload(settings, lambda: reload(role), emit, audience.threshold), supervisor)
        for notice in [] if monitor is None else await monitor.start(tasks, role):
            emit(notice)
        tasks.start_soon(supervisor.show_life)
        if audience.screen is not None:
            tasks.start_soon(audience.screen.run, partial(obey, role))
        await role.run()
        tasks.cancel_scope.cancel()


def obey(role: Role, command: Command) -> None:
    """Do what a person at the table asks."""
    if isinstance(command, Kill):
        with suppress(UsageError):  # it has just ended by itself
            role.kill(command.id)
    else:
        role.stop()


def _do_nothing() -> None:
    """There is no terminal to give back."""


async def end_on_signal(
    role: Role,
    drain: float,
    scope: anyio.CancelScope,
    supervisor: Supervisor,
    leave: Callable[[], None],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Wait for the first signal, stop the role, and cancel `scope` after `drain` seconds. A second signal: `leave`, and end at once."""
    with anyio.open_signal_receiver(*SIGNALS) as received:
        task_status.started()
        await anext(aiter(received))
    for number in SIGNALS:
        signal.signal(number, partial(exit_at_once, leave))
    supervisor.stopping(drain)
    role.stop()
    await anyio.sleep(drain)
    scope.cancel()


def exit_at_once(leave: Callable[[], None], number: int, frame: FrameType | None) -> None:
    """End the process now: the person has asked twice. A terminal is given back by `leave`."""
    del frame
    leave()
    os._exit(128 + number)
