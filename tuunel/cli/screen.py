"""The live table on this process's terminal, and the keys that are pressed there: only while the process is in the foreground.

The terminal reads keys one by one (cbreak) as long as the table is shown, and gets its own mode back however that ends: an end, an error,
a signal, a stop by Ctrl-Z. Source: termios(3), and the GNU C library's manual on job control.
"""

import os
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from anyio.abc import TaskStatus

from tuunel.events import Act, Emit
from tuunel.keys import KeyDecoder

if TYPE_CHECKING:
    from tuunel.display import LiveTable

DRAW_INTERVAL: Final = 0.5  #: seconds: the table is drawn at most twice a second; a key shows at once
KEY_PAUSE: Final = 0.1  #: seconds after which an escape was the key itself: a terminal sends a key's bytes in one piece
READ_SIZE: Final = 1024  #: bytes of keys taken at a time
SIGNALS: Final = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)


def is_screen() -> bool:
    """Whether stderr is a terminal on which a table can be drawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}


class Screen:
    """Shows `table` as long as its context lasts. Keys are read from stdin where that is this process's terminal."""

    def __init__(self, table: "LiveTable") -> None:
        self.emit: Emit = table
        self._table = table
        self._keyboard = 0 if os.isatty(0) else None
        self._mode: list[Any] | None = None  # the terminal's own, while keys are read one by one
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._shown:
            self._table.draw()
        self.leave()

    def leave(self) -> None:
        """Give the terminal back as it was. Idempotent; safe at any moment, a signal's included."""
        self._read_lines()
        self._shown = False
        self._table.suspend()

    async def run(self, act: Act) -> None:
        """Draw, and read keys, until cancelled; `act` is called with what a person asks of the role."""
        self._table.act = act
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._heed_signals)  # before the terminal is taken: a stop must not leave it as it is then
            tasks.start_soon(self._take_keys)
            while True:
                self._look()
                if self._shown:
                    self._table.draw()
                await anyio.sleep(DRAW_INTERVAL)

    # whose terminal it is

    def _look(self) -> None:
        """Take the terminal when this process is in the foreground, and leave it alone when it is not."""
        if not self._shown and _is_foreground():
            self._shown = True
            self._table.keys = self._read_keys()
            self._table.resume()
        elif self._shown and not _is_foreground():
            self._lose()

    def _lose(self) -> None:
        self._mode = None  # whoever has the terminal now, or has had it, has set its mode
        self._shown = False
        self._table.suspend()

    def _read_keys(self) -> bool:
        if self._keyboard is None or self._mode is not None or not _is_terminal_of_ours(self._keyboard):
            return self._mode is not None
        with suppress(termios.error):
            self._mode = termios.tcgetattr(self._keyboard)
            mode = [*self._mode[:6], [*self._mode[6]]]
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._keyboard, termios.TCSANOW, mode)
        return self._mode is not None

    def _read_lines(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None and self._keyboard is not None and _is_terminal_of_ours(self._keyboard):
            with suppress(termios.error):  # it has gone
                termios.tcsetattr(self._keyboard, termios.TCSANOW, mode)

    # signals

    async def _heed_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*SIGNALS) as received:
            task_status.started()
            stopped = False
            async for number in received:
                if number == signal.SIGTSTP:
                    self.leave()
                    _stop()
                    stopped = True
                elif number == signal.SIGCONT and not stopped and self._shown:
                    self._lose()  # it was stopped without being asked, and others have had the terminal
                elif number == signal.SIGCONT:
                    stopped = False
                self._look()
                if self._shown:
                    self._table.draw()

    # keys

    async def _take_keys(self) -> None:
        decoder = KeyDecoder()
        async for data in self._typed(decoder):
            if data:
                decoder.receive_data(data)
            else:
                decoder.pause()
            while (key := decoder.next_event()) is not None:
                self._table.press(key)

    async def _typed(self, decoder: KeyDecoder) -> AsyncIterator[bytes]:
        """What is typed, as it comes; b"" for a pause within a key. Ends with the terminal."""
        while self._keyboard is not None:
            if self._mode is None or not _is_foreground():
                await anyio.sleep(DRAW_INTERVAL)  # what is typed now is somebody else's
                continue
            data = b""
            with anyio.move_on_after(KEY_PAUSE if decoder.waits else DRAW_INTERVAL) as patience:
                await anyio.wait_readable(self._keyboard)
            if patience.cancelled_caught and not decoder.waits:
                continue
            if not patience.cancelled_caught:
                if self._mode is None or not _is_foreground():
                    continue
                data = _read(self._keyboard)
                if not data:
                    return
            yield data


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, READ_SIZE)
    except OSError:
        return b""


def _is_terminal_of_ours(descriptor: int) -> bool:
    """Whether `descriptor` is the terminal of this process's session, and this process in its foreground."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


def _is_foreground() -> bool:
    """Whether this process may draw on stderr: another one may have the terminal. One of no session of ours has nobody else."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return True


def _stop() -> None:
    """Stop this process, as Ctrl-Z does to one that does not heed it; returns when it goes on."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
