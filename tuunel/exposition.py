"""`GET /metrics`, and nothing else: a page for a monitor, over HTTP/1.1, one request a connection.

Guests of this machine's agent never reach it: like every listener of tuunel it is announced. docs/reference/metrics.md.
"""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import anyio
import h11
from anyio.abc import TaskStatus

from tuunel.address import HostPort
from tuunel.errors import UsageError
from tuunel.listen import address_of, close_listener, drop_waiting, open_listeners, serve
from tuunel.listeners import Announcement
from tuunel.rawstream import RawStream
from tuunel.settings import Home

PATH: Final = "/metrics"
HEAD_LIMIT: Final = 16 * 1024  #: bytes of a request's head; a monitor sends a few hundred
DEADLINE: Final = 10.0  #: seconds from a connection to the end of its answer: monitors give up no later
MOST_AT_ONCE: Final = 32  #: connections; more than all monitors and people have together

Page = Callable[[str], Awaitable[tuple[bytes, str]]]  #: of an Accept header: the body and its media type


async def serve_metrics(
    home: Home, role: str, listen: HostPort, page: Page, *, task_status: TaskStatus[HostPort] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve `page` at `listen` until cancelled; `task_status` gets the address with its real port. ListenError, StateError at start."""
    home.ensure()
    with ExitStack() as closing:
        announced = closing.enter_context(Announcement(home, f"{role}-metrics"))
        listeners = await open_listeners(listen)
        for listener in listeners:
            closing.callback(close_listener, listener)
        addresses = [address_of(listener) for listener in listeners]
        announced.add(*addresses)
        drop_waiting(listeners)  # nobody has been told of the port yet, but a guest of the agent may have guessed it
        endpoint = _Endpoint(page, only_here=all(ip_address(each.host).is_loopback for each in addresses))
        async with anyio.create_task_group() as connections:
            task_status.started(HostPort(listen.host, addresses[0].port))
            await serve(listeners, endpoint.serve_client, connections)


class _Endpoint:
    def __init__(self, page: Page, *, only_here: bool) -> None:
        self._page = page
        self._only_here = only_here
        self._clients = 0

    async def serve_client(self, stream: RawStream) -> None:
        """Answer one request. Owns the stream."""
        if self._clients >= MOST_AT_ONCE:
            stream.close()
            return
        self._clients += 1
        try:
            with anyio.move_on_after(DEADLINE):
                await self._answer(stream)
                await stream.aclose()
        finally:
            self._clients -= 1
            stream.close()

    async def _answer(self, stream: RawStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        request = None
        try:
            request = await _next_request(stream, connection)
            if request is None:
                return
            status, body, media_type, more = await self._judge(request)
        except h11.RemoteProtocolError:
            status, body, media_type, more = HTTPStatus.BAD_REQUEST, b"no HTTP request\n", "text/plain", []
        headers = [("Content-Type", media_type), ("Content-Length", str(len(body))), ("X-Content-Type-Options", "nosniff")]
        answer = h11.Response(status_code=status, reason=status.phrase, headers=[*headers, *more, ("Connection", "close")])
        only_head = request is not None and request.method == b"HEAD"
        parts = [answer, *([] if only_head else [h11.Data(data=body)]), h11.EndOfMessage()]
        await stream.send_all(b"".join(data for part in parts if (data := connection.send(part))))

    async def _judge(self, request: h11.Request) -> tuple[HTTPStatus, bytes, str, list[tuple[str, str]]]:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        if self._only_here and not _is_here(headers.get("host", "")):
            # a web page whose name was made to point to this machine (DNS rebinding) gives itself away by its Host
            return HTTPStatus.FORBIDDEN, b"ask by a loopback address\n", "text/plain", []
        if request.target.partition(b"?")[0] != PATH.encode():
            return HTTPStatus.NOT_FOUND, b"there is only /metrics\n", "text/plain", []
        if request.method != b"GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n", "text/plain", [("Allow", "GET")]
        body, media_type = await self._page(headers.get("accept", ""))
        return HTTPStatus.OK, body, media_type, []


async def _next_request(stream: RawStream, connection: h11.Connection) -> h11.Request | None:
    """The request's head; None when the client leaves before it is whole. Raises h11.RemoteProtocolError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = await stream.receive(HEAD_LIMIT)
        if not data:
            return None
        connection.receive_data(data)
    return event if isinstance(event, h11.Request) else None


def _is_here(host: str) -> bool:
    try:
        name = HostPort.parse(host, 80).host
        return name.lower() == "localhost" or ip_address(name).is_loopback
    except (UsageError, ValueError):
        return False
