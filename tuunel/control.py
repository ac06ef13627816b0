"""The control socket: how a command talks to a running role of the same TUUNEL_HOME. Source: docs/reference/control-socket.md.

One JSON object a line, a request answered by an answer, over a unix socket that only its user can open. `call` needs nothing but the
standard library, so that a command that only asks starts fast; what `serve` needs is imported there.
"""

import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tuunel.errors import Failure, NotRunning, Reason, Speaker, TuunelError, UsageError

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from tuunel.rawstream import RawStream

MAX_REQUEST: Final = 64 * 1024  # bytes of a line: a hundred times the longest request there is
MAX_ANSWER: Final = 16 * 1024 * 1024  # bytes of a line: some 50,000 devices in one list
_ONE_LINE: Final = 'write one line such as {"command": "status"}'
CALL_TIMEOUT: Final = 30.0  # seconds without a byte of the answer: no command takes longer

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def serve(
    path: Path,
    handlers: Mapping[str, Handler],
    *,
    other: "Callable[[RawStream], Awaitable[object]] | None" = None,
    task_status: "TaskStatus[None] | None" = None,
) -> None:
    """Serve the control socket at `path` until cancelled; `task_status` is told once it can be called.

    A handler takes the request and returns the fields of its answer; the TuunelError that it raises is the answer too. A connection
    that does not begin with a JSON object goes to `other`, if given, which then owns it. ListenError when the role is already running.
    """
    import anyio  # noqa: PLC0415 - slow to import, and callers of `call` do not need it

    from tuunel import listen  # noqa: PLC0415 - as above

    async def serve_stream(stream: "RawStream") -> None:
        if other is not None and await stream.peek() != b"{":
            await other(stream)
        else:
            await _answer_requests(stream, handlers)
            await stream.aclose()

    listener = listen.open_unix_listener(path)
    async with anyio.create_task_group() as connections:
        if task_status is not None:
            task_status.started()
        await listen.serve([listener], serve_stream, connections)


def call(path: Path, command: str, patience: float = CALL_TIMEOUT, /, **arguments: Any) -> dict[str, Any]:
    """Ask the role that listens on `path`, and return the answer's fields without `ok`. Blocks, `patience` seconds without a byte at most.

    NotRunning when nobody is there or the role goes away before it has answered. An error answer is raised: as Failure when it has a
    reason, else as TuunelError, with the message, advice and exit code that the role gave.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(request)
            answer = _read_answer(connection)
        except (FileNotFoundError, ConnectionError, EOFError) as error:
            raise NotRunning(f"no tuunel {path.stem} is running here", "start it first") from error
        except TimeoutError as error:
            raise TuunelError(f"{path} does not answer", "look at the log of the process that serves it") from error
        except OSError as error:
            raise TuunelError(f"cannot ask {path}: {error.strerror or error}", "ask as the user who runs it") from error
    if answer.pop("ok"):
        return answer
    raise _as_exception(answer["error"])


def _read_answer(connection: socket.socket) -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise EOFError
        line += part
        if len(line) > MAX_ANSWER:
            raise TuunelError("the answer is too long", "look at the log of the process that gave it")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _as_exception(error: Mapping[str, Any]) -> TuunelError:
    if error["reason"] is None:
        raised = TuunelError(error["message"], error["advice"])
    else:
        raised = Failure(Reason(error["reason"]), Speaker(error["speaker"]), error["detail"])
    raised.exit_code = error["exit"]
    return raised


async def _answer_requests(stream: "RawStream", handlers: Mapping[str, Handler]) -> None:
    waiting = b""
    while True:
        line, newline, waiting = waiting.partition(b"\n")
        if newline:
            await stream.send_all(await _answer(line, handlers))
            continue
        if len(line) > MAX_REQUEST:
            await stream.send_all(_error(UsageError(f"a request is one line of at most {MAX_REQUEST} bytes", _ONE_LINE)))
            return
        data = await stream.receive()
        if not data:
            return
        waiting = line + data


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> bytes:
    try:
        request = _parse(line)
        handler = handlers.get(request["command"])
        if handler is None:
            raise UsageError(f"unknown command {request['command']!r}", f"known here: {', '.join(sorted(handlers))}")
        return _line({"ok": True, **await handler(request)})
    except TuunelError as error:
        return _error(error)
    except (KeyError, TypeError, ValueError) as error:
        return _error(UsageError(f"these arguments cannot be meant: {error}", "see docs/reference/control-socket.md"))
    except Exception:
        import logging  # noqa: PLC0415 - for a fault of ours alone

        logging.getLogger(__name__).exception("a control command failed")
        return _error(Failure(Reason.INTERNAL))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("a request is a JSON object", _ONE_LINE) from error
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise UsageError("a request is a JSON object with a 'command'", _ONE_LINE)
    return request


def _error(error: TuunelError) -> bytes:
    failure = error if isinstance(error, Failure) else None
    described = {
        "message": str(error),
        "advice": error.advice,
        "exit": error.exit_code,
        "reason": failure and failure.reason,
        "speaker": failure and failure.speaker,
        "detail": failure.detail if failure else "",
    }
    return _line({"ok": False, "error": described})


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
