"""A real terminal to look at and to type into: tmux, which folds long lines anew when it becomes narrower, as most terminals do."""

import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.journeys.peers import program
from tests.journeys.processes import until


class Terminal:
    """One program on a screen of its own."""

    def __init__(self, tmux: Sequence[str], code: Path) -> None:
        self._tmux = tmux
        self._code = code

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=20).stdout

    def types(self, *keys: str) -> None:
        """Press keys: characters, or tmux's names of keys such as `Down` and `C-c`."""
        self._run("send-keys", "-t", "0", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self._run("resize-window", "-t", "0", "-x", str(columns), "-y", str(rows))

    def lines(self) -> list[str]:
        """What is on the screen, without the empty lines below."""
        return self._run("capture-pane", "-p", "-t", "0").rstrip("\n").split("\n")

    def shows(self, text: str) -> list[str]:
        """Wait until the screen shows `text`: the whole of it."""
        try:
            return until(lambda: [*lines] if text in "\n".join(lines := self.lines()) else [], f"the screen shows {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.lines())) from None

    def row(self, text: str) -> str:
        """Wait for a line with `text` and return it."""
        return next(line for line in self.shows(text) if text in line)

    def code(self) -> int:
        """Wait for the program's end and return its exit code."""
        return int(until(lambda: self._code.exists() and self._code.read_text().strip(), "the program ends"))


@contextmanager
def terminal(argv: Sequence[str], env: Mapping[str, str], columns: int = 100, rows: int = 24) -> Iterator[Terminal]:
    """Run a program in a terminal; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="tuuterm", dir="/tmp") as name:
        tmux = [program("tmux"), "-S", str(Path(name) / "s"), "-f", "/dev/null"]
        program_line = shlex.join(["env", "-i", *(f"{key}={value}" for key, value in {**env, "TERM": "screen"}.items()), *argv])
        code = Path(name) / "code"
        # tmux does not always know a program's exit code; the shell that waits for it must survive its Ctrl-C
        command = f"trap : INT; {program_line}; echo $? >{code}"
        size = ["-x", str(columns), "-y", str(rows)]
        start = [*tmux, "new-session", "-d", *size, command, ";", "set-option", "-g", "remain-on-exit", "on"]
        subprocess.run(start, check=True, timeout=20, env={**env, "TERM": "screen"})
        try:
            yield Terminal(tmux, code)
        finally:
            subprocess.run([*tmux, "kill-server"], check=False, capture_output=True, timeout=20)
