"""What a command is doing while a person waits: one line on the terminal that is gone when it ends. Nothing anywhere else."""

import os
import shutil
from types import TracebackType
from typing import Final, Self, TextIO

ERASE_LINE: Final = "\r\x1b[K"  # ECMA-48, EL: from the cursor to the end of the line


class Progress:
    """Call it with what is being done now. A context manager that takes its line away, also when the work fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._seen = stream.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}

    def __call__(self, what: str) -> None:
        """Show `what` in place of what was shown before."""
        if self._seen:
            room = shutil.get_terminal_size().columns - 1  # a full line would become two, and only one is erased
            self._stream.write(f"{ERASE_LINE}{what[:room]}")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._seen:
            self._stream.write(ERASE_LINE)
            self._stream.flush()
