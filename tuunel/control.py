"""The control socket's wire format, and the side that asks: one JSON line each way over a unix socket.

Standard library only: `tuunel nc` asks before anything large is imported. Source: docs/reference/control-socket.md.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from tuunel.errors import Failure, NotRunning, Reason, RemoteProtocolError, Speaker, TuunelError

MAX_LINE: Final = 1024 * 1024  #: bytes of a request or an answer: the clients of the largest agent fit; a stray peer costs no more
TIMEOUT: Final = 30.0  #: seconds for an answer: an invite waits for the relay for ten

Document = dict[str, Any]


def call(path: Path, command: str, **arguments: Any) -> Document:
    """Ask the role that listens at `path` and return its answer.

    Raises NotRunning when nobody listens there, and the error that the role answered: a Failure keeps its reason, any other its
    message, advice and exit code.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(encode_line({"command": command, **arguments}))
            with connection.makefile("rb") as lines:
                answer = decode_line(lines.readline(MAX_LINE + 1))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(f"nothing listens at {path}") from error
        except OSError as error:
            raise NotRunning(f"nothing answers at {path}: {error.strerror or error}") from error
    if answer.pop("ok", False):
        return answer
    raise error_of(answer.get("error") or {})


def encode_line(document: Document) -> bytes:
    """One line of the protocol."""
    return json.dumps(document).encode() + b"\n"


def decode_line(line: bytes) -> Document:
    """Read one line. RemoteProtocolError when it is no JSON object, or too long."""
    if len(line) > MAX_LINE:
        raise RemoteProtocolError("a control line is too long")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("a control line is no JSON") from error
    if not isinstance(document, dict):
        raise RemoteProtocolError("a control line is no JSON object")
    return document


def error_document(error: TuunelError) -> Document:
    """What of an error goes over the socket."""
    document: Document = {"message": str(error), "advice": error.advice, "exit": error.exit_code}
    if isinstance(error, Failure):
        document |= {"reason": error.reason.value, "speaker": error.speaker.value, "detail": error.detail}
    return document


def error_of(document: Document) -> TuunelError:
    """The error that a document describes, as far as this version knows it."""
    if document.get("reason") in set(Reason):
        return Failure(Reason(document["reason"]), Speaker(document.get("speaker", "local")), str(document.get("detail", "")))
    error = TuunelError(str(document.get("message", "the command failed")), str(document.get("advice", "")))
    error.exit_code = int(document.get("exit", 1))
    return error
