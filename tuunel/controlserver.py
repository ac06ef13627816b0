"""The control socket's serving side: every long-running role answers commands on a unix socket of its own.

Source: docs/reference/control-socket.md.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus

from tuunel.control import MAX_LINE, Document, decode_line, encode_line, error_document
from tuunel.errors import RemoteProtocolError, TuunelError, UsageError
from tuunel.listen import StreamHandler, unix_listener
from tuunel.listen import serve as serve_listeners
from tuunel.rawstream import RawStream

PATIENCE: Final = 30.0  #: seconds that a connection may stay silent before its first byte and between its lines

Handler = Callable[[Mapping[str, Any]], Awaitable[Document]]


async def serve(
    path: Path,
    handlers: Mapping[str, Handler],
    *,
    other: StreamHandler | None = None,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer commands at `path` (mode 0600) until cancelled; `task_status` is told once it listens.

    A connection that does not begin with "{" goes to `other`, which then owns it. ListenError when a role answers there already; a
    socket that a crashed one left is replaced.
    """
    with ExitStack() as closing:
        listener = closing.enter_context(unix_listener(path))
        async with anyio.create_task_group() as clients:
            task_status.started()
            await serve_listeners([listener], lambda stream: _serve_stream(stream, handlers, other), clients)


async def _serve_stream(stream: RawStream, handlers: Mapping[str, Handler], other: StreamHandler | None) -> None:
    try:
        with anyio.fail_after(PATIENCE):
            first = await stream.peek()
        if other is not None and first not in (b"{", b""):
            await other(stream)
        else:
            await _answer_lines(stream, handlers)
    except (OSError, TimeoutError, RemoteProtocolError, anyio.ClosedResourceError):
        pass  # nobody to tell: the asking side is gone or is none
    finally:
        stream.close()


async def _answer_lines(stream: RawStream, handlers: Mapping[str, Handler]) -> None:
    pending = b""
    while True:
        while b"\n" not in pending:
            with anyio.fail_after(PATIENCE):
                data = await stream.receive()
            if not data:
                return
            pending += data
            if len(pending) > MAX_LINE:
                raise RemoteProtocolError("a control line is too long")
        line, _, pending = pending.partition(b"\n")
        await stream.send_all(encode_line(await _answer(decode_line(line), handlers)))


async def _answer(request: Document, handlers: Mapping[str, Handler]) -> Document:
    try:
        handler = handlers.get(str(request.get("command")))
        if handler is None:
            raise UsageError(f"unknown command {request.get('command')!r}", f"this role knows {', '.join(sorted(handlers))}")
        return {"ok": True, **await handler(request)}
    except TuunelError as error:
        return {"ok": False, "error": error_document(error)}
    except (KeyError, TypeError, ValueError) as error:
        return {"ok": False, "error": error_document(UsageError(f"the command's arguments cannot be meant: {error}"))}
