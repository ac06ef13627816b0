"""The `tuunel` command. `tuunel nc`, which ssh starts for every connection, leaves before anything slow is imported."""
# ruff: noqa: PLC0415 - the point of this module is to import late

import os
import sys
from collections.abc import Sequence

from tuunel.errors import TuunelError
from tuunel.mlkem import require_ml_kem

COMPLETION = "_TUUNEL_COMPLETE"  # set by the lines of `tuunel completion`
INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    try:
        return run(sys.argv[1:])
    except TuunelError as error:
        from tuunel.cli.report import say_error

        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def run(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name; returns its exit code. Raises StateError when the encryption cannot work here."""
    if arguments[:1] != ["nc"]:
        if not _only_tells(arguments):
            require_ml_kem()
        from tuunel.cli import app

        return app.main(arguments)
    from tuunel import netcat
    from tuunel.settings import Home

    if netcat.needs_tunnel(arguments[1:]) or not Home.find().socket("proxy").exists():
        # else a running proxy does the encryption, and has checked it
        require_ml_kem()
    return netcat.main(arguments[1:])


def _only_tells(arguments: Sequence[str]) -> bool:
    """Whether the command opens no tunnel and is of use without one: help, the version, completion, and `doctor`, which tells it itself."""
    return arguments[:1] in ([], ["doctor"], ["completion"], ["--version"]) or "--help" in arguments or COMPLETION in os.environ


if __name__ == "__main__":
    sys.exit(main())
