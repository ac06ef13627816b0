"""How long a command takes to start, beside an empty typer app: `python -m bench.startup [ROUNDS]`.

The commands take turns within each round, so that what else the machine does meets all of them. Processor time is told besides elapsed
time: on a busy machine only the first is the program's own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY_APP = '''
import typer
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
@app.command()
def one() -> None:
    """One."""
@app.command()
def two() -> None:
    """Two."""
app()
'''
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "an empty typer app --help": ["-c", EMPTY_APP, "--help"],
    "tuunel --help": ["-m", "tuunel", "--help"],
    "an empty typer app one": ["-c", EMPTY_APP, "one"],
    "tuunel status": ["-m", "tuunel", "status"],
    "tuunel nc --help": ["-m", "tuunel", "nc", "--help"],
}


def measure(arguments: list[str], home: str) -> tuple[float, float]:
    """Run one command to its end; returns its elapsed and its processor time in seconds."""
    begin = time.monotonic()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *arguments], stdout=quiet, stderr=quiet, env=os.environ | {"TUUNEL_HOME": home})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.monotonic() - begin, used.ru_utime + used.ru_stime


def main(rounds: int = 21) -> None:
    """Print medians in milliseconds; the first round only warms the caches."""
    with tempfile.TemporaryDirectory() as home:
        turns = [{name: measure(arguments, str(Path(home))) for name, arguments in COMMANDS.items()} for _ in range(rounds + 1)][1:]
    print(f"{'':26}{'elapsed':>9}{'processor':>11}   ms, median of {rounds}")
    for name in COMMANDS:
        elapsed, used = (statistics.median(turn[name][part] * 1000 for turn in turns) for part in (0, 1))
        print(f"{name:26}{elapsed:9.0f}{used:11.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
