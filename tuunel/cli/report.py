"""Where a command's answer goes: data to stdout, words to stderr, and every error as what happened plus what to do.

Nothing here imports typer: `tuunel nc` reports its errors without it.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, Final

from tuunel.errors import Failure, NotRunning, Speaker, TuunelError
from tuunel.events import printable

Document = dict[str, Any]

_MAX_MESSAGE = 500
_WHO: Final = {Speaker.LOCAL: "", Speaker.RELAY: "the relay says ", Speaker.AGENT: "the agent says "}


def say(*lines: str) -> None:
    """Write lines for people, to stderr."""
    for line in lines:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def put(*lines: str) -> None:
    """Write lines of data, to stdout."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def what_happened(error: TuunelError) -> str:
    """One line: what went wrong, and for a connection its reason and the hop that said so."""
    message = printable(str(error), _MAX_MESSAGE) or type(error).__name__
    return f"{_WHO[error.speaker]}{error.reason}: {message}" if isinstance(error, Failure) else message


def say_error(error: TuunelError) -> None:
    """Tell a person about `error`: one line what happened, one line what to do about it."""
    say(f"tuunel: {what_happened(error)}")
    if error.advice:
        say(f"        {printable(error.advice, _MAX_MESSAGE)}")


def error_document(error: TuunelError) -> Document:
    """`error` as the JSON document that a one-shot command with `--json` ends with."""
    facts: Document = {"message": str(error), "advice": error.advice, "exit": error.exit_code}
    if isinstance(error, Failure):
        facts |= {"reason": error.reason.value, "speaker": error.speaker.value}
    return {"error": facts}


def answer(work: Callable[[], Document], show: Callable[[Document], None], *, as_json: bool) -> None:
    """Do `work` and show its document: as one JSON document (an error too), or through `show`."""
    try:
        document = work()
    except TuunelError as error:
        if as_json:
            put(json.dumps(error_document(error)))
        raise
    if as_json:
        put(json.dumps(document))
    else:
        show(document)


def first_error(error: BaseException) -> TuunelError | None:
    """The error that a person should read among what a group of tasks raised, if there is one."""
    if isinstance(error, TuunelError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = (first_error(each) for each in error.exceptions)
        return next((each for each in found if each is not None), None)
    return None


def ask_role(role: str, command: str, **arguments: Any) -> Document:
    """Ask the role that runs on this machine. NotRunning says which command starts it."""
    from tuunel.control import call  # noqa: PLC0415 - only commands that ask a running role pay for it
    from tuunel.settings import Home  # noqa: PLC0415

    try:
        return call(Home.find().socket(role), command, **arguments)
    except NotRunning as error:
        raise NotRunning(f"no tuunel {role} runs here", f"start it with '{START[role]}'") from error


START: Final = {"relay": "tuunel relay serve", "agent": "tuunel agent", "proxy": "tuunel proxy"}
