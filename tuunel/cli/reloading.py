"""SIGHUP: a running role reads its settings and books again, without dropping a tunnel."""

import os
import signal
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from tuunel.config import Resolved
from tuunel.configfile import RunningSettings
from tuunel.errors import TuunelError
from tuunel.events import Alarm, Emit, Notice
from tuunel.journal import Level, Threshold
from tuunel.supervisor import Supervisor


class Reload:
    """What a reload changes. `apply` hands the values in force to the role, which reads its books again too."""

    def __init__(self, settings: RunningSettings, apply: Callable[[], Awaitable[None]], emit: Emit, threshold: Threshold | None) -> None:
        self._settings = settings
        self._apply = apply
        self._emit = emit
        self._threshold = threshold

    async def now(self) -> None:
        """Reload. What is broken stays as it was, and an alarm says so; nothing is raised for it."""
        try:
            changes = self._settings.reread()
        except TuunelError as error:
            self._emit(Alarm(f"not reloaded, the settings stay as they were: {error}; {error.advice}"))
        else:
            for each in changes.fixed:
                self._emit(Notice(f"{_told(each)}: it takes effect at the next start"))
            changed = ", ".join(each.setting.name for each in changes.live) or "no setting has changed"
            self._emit(Notice(f"settings read again: {changed}"))
        if self._threshold is not None:
            self._threshold.level = Level(self._settings.value("log.level"))
        try:
            await self._apply()
        except TuunelError as error:
            self._emit(Alarm(f"{error}; {error.advice}"))


def _told(changed: Resolved) -> str:
    return f"{changed.setting.name} has changed ({changed.where or 'no longer set'})"


async def reload_on_hangup(
    reload: Reload, supervisor: Supervisor, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Reload at each SIGHUP, until cancelled.

    A terminal that is gone sends SIGHUP, too: that ends the process in order, unless nohup(1) has started it.
    """
    ends_with_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    with anyio.open_signal_receiver(signal.SIGHUP) as received:
        task_status.started()
        async for _ in received:
            if ends_with_terminal and not has_terminal():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            supervisor.reloading()
            try:
                await reload.now()
            finally:
                supervisor.reloaded()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal: tty(4). Where its output goes is another matter."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
