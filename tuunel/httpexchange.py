"""Absolute-form HTTP at work: one client's requests, one at a time, each carried to its origin server and its response carried back.

Source: docs/spec/front-doors.md sections 5 and 6.
"""

from dataclasses import dataclass
from http import HTTPStatus

import anyio
import h11
from anyio.abc import TaskGroup

from tuunel.address import HostPort
from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.errors import Failure, Reason, RemoteProtocolError
from tuunel.frontdoor import EARLY_LIMIT
from tuunel.httpproxy import Forward, HttpDoor, HttpOrigin
from tuunel.outbound import Dialer, Outbound, dial_for_client, pipe, until_broken
from tuunel.pump import BROKEN
from tuunel.rawstream import RawStream


@dataclass(frozen=True, slots=True)
class _Origin:
    """The connection to the origin server of a client's last request."""

    target: HostPort
    outbound: Outbound
    http: HttpOrigin


class HttpExchanges:
    """Carries a client's absolute-form requests. Origin connections are closed in `group`, so that no request waits for that.

    After an error the connection to the origin server has been reset.
    """

    def __init__(self, client: RawStream, door: HttpDoor, dial: Dialer, buffers: BufferPool, group: TaskGroup) -> None:
        self._client = client
        self._door = door
        self._dial = dial
        self._buffers = buffers
        self._group = group
        self._origin: _Origin | None = None

    async def run(self, forward: Forward) -> bool:
        """Carry one request and its response: whether the client's connection may carry another.

        Raises Failure while nothing of a response has been sent: answer with its page. ConnectionResetError when the client must see a
        reset.
        """
        if self._origin and self._origin.target != forward.request.target:
            self.release()
        if self._origin:
            exchange = _Exchange(self._client, self._door, self._origin, self._buffers)
            try:
                return await self._carry(exchange, forward)
            except Failure as failure:
                # RFC 9112 section 9.3.1: the server may have closed the idle connection just as the request went out
                if exchange.answered or not forward.repeatable or failure.reason is Reason.KILLED:
                    raise
        outbound, ahead = await dial_for_client(self._dial, forward.request, self._client)
        if ahead:
            self._door.receive_data(ahead)
        self._origin = _Origin(forward.request.target, outbound, HttpOrigin())
        return await self._carry(_Exchange(self._client, self._door, self._origin, self._buffers), forward)

    async def receive_between(self) -> bytes:
        """Wait for the client's bytes between two requests; meanwhile an origin server that ends its connection is let go."""
        data = b""
        error: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_origin)
            try:
                data = await self._client.receive(MAX_BODY)
            except BROKEN as broken:  # a lone one, not a group of one
                error = broken
            group.cancel_scope.cancel()
        if error:
            raise error
        return data

    def release(self) -> None:
        """Let go of the origin server's connection, cleanly. Idempotent."""
        if self._origin:
            self._group.start_soon(self._origin.outbound.close, self._buffers)
            self._origin = None

    def reset(self, reason: str = "reset") -> None:
        """Abort the origin server's connection. Idempotent."""
        if self._origin:
            self._origin.outbound.reset(reason)
            self._origin = None

    async def _carry(self, exchange: "_Exchange", forward: Forward) -> bool:
        try:
            await exchange.run(forward)
        except Failure as failure:
            self.reset(failure.reason)
            raise
        except BaseException:
            self.reset()
            raise
        if exchange.switched:
            await self._become_pipe(exchange.origin)
            return False
        if not exchange.sent:
            self.reset()
        elif exchange.ended or not exchange.origin.http.start_next_cycle():
            self.release()
        return self._door.start_next_cycle()

    async def _become_pipe(self, origin: _Origin) -> None:
        await self._client.send_all(origin.http.trailing_data)
        await origin.outbound.send(self._buffers, self._door.trailing_data)
        self._origin = None  # the pipe ends it
        await pipe(self._client, origin.outbound, self._buffers)

    async def _watch_origin(self) -> None:
        if self._origin is None:
            return
        try:
            # whatever an idle server says, the connection is of no more use
            await self._origin.outbound.receive(self._buffers)
        except BROKEN:
            self.reset("done")
        else:
            self.release()


class _Exchange:
    """One request and its response: sends the one while the other arrives, and keeps an eye on the client."""

    def __init__(self, client: RawStream, door: HttpDoor, origin: _Origin, buffers: BufferPool) -> None:
        self.origin = origin
        self.answered = False  #: whether any byte of a response has arrived
        self.switched = False  #: whether the origin server has changed the protocol: both connections are a pipe now
        self.sent = False  #: whether the whole request has been sent
        self.ended = False  #: whether the client's end was passed on behind it: the origin server gets no other request
        self._begun = False
        self._client = client
        self._door = door
        self._buffers = buffers
        self._client_lost = False
        self._scope = anyio.CancelScope()

    async def run(self, forward: Forward) -> None:
        """Carry it. Raises Failure while no response has begun, ConnectionResetError afterwards or when the client has gone."""
        error: Exception | None = None
        async with anyio.create_task_group() as group:
            self._scope = group.cancel_scope
            group.start_soon(self._watch_client)
            group.start_soon(self._send_request, forward)
            try:
                await self._pass_response()
            except (*BROKEN, Failure) as broken:  # a lone one, not a group of one
                error = broken
            group.cancel_scope.cancel()
        if self._client_lost or (error and self._begun):
            raise ConnectionResetError("the exchange was cut") from error
        if isinstance(error, Failure):
            raise error
        if error and self.origin.outbound.killed():
            raise Failure(Reason.KILLED) from error
        if error:
            raise Failure(Reason.BAD_RESPONSE, detail=str(error)) from error

    async def _pass_response(self) -> None:
        http = self.origin.http
        while True:
            match http.next_event():
                case None:
                    await self._flush()
                    data = await self.origin.outbound.receive(self._buffers)
                    if data:
                        self.answered = True
                        http.receive_data(data)
                    else:
                        http.receive_eof()
                case h11.InformationalResponse() as event:
                    self._inform(event)
                    if self.switched:
                        return await self._flush()
                case h11.Response() as event:
                    self._door.respond(event)
                    self._begun = True
                case h11.Data() as event:
                    self._door.body(event)
                case h11.EndOfMessage() as event:
                    self._door.end(event)
                    return await self._flush()

    def _inform(self, event: h11.InformationalResponse) -> None:
        if event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            if not self.sent:
                raise RemoteProtocolError("it changed the protocol before it had the whole request")
            self._begun = self.switched = True
        self._door.inform(event)

    async def _flush(self) -> None:
        if data := self._door.data_to_send():
            await self._client.send_all(data)

    async def _send_request(self, forward: Forward) -> None:
        try:
            await self._send_head_and_body(forward)
            await self._read_ahead()
        except _OriginDeafError:
            pass  # it may have answered before it stopped to listen: the response decides
        except BROKEN:
            self._lose_client()

    async def _watch_client(self) -> None:
        # all the time: nobody reads the client while a write to the origin server is blocked
        await until_broken(self._client)
        self._lose_client()

    def _lose_client(self) -> None:
        self._client_lost = True
        self._scope.cancel()

    async def _send_head_and_body(self, forward: Forward) -> None:
        http, door = self.origin.http, self._door
        out = [http.request(forward.head)]
        while True:
            match door.next_event():
                case h11.Data() as event:
                    out.append(http.body(event))
                case h11.EndOfMessage() as event:
                    out.append(http.end(event))
                    await self._send(out)
                    self.sent = True
                    return
                case _:
                    await self._send(out)
                    out = []
                    data = await self._client.receive(MAX_BODY)
                    if data:
                        door.receive_data(data)
                    else:
                        door.receive_eof()

    async def _read_ahead(self) -> None:
        """Read on, up to a limit. A client that ends its side says so to the origin server, as it would without a proxy."""
        ahead = 0
        while ahead < EARLY_LIMIT:
            data = await self._client.receive(EARLY_LIMIT - ahead)
            if not data:
                self._door.receive_eof()
                await self._end_origin()
                return
            self._door.receive_data(data)
            ahead += len(data)

    async def _end_origin(self) -> None:
        self.ended = True
        try:
            await self.origin.outbound.conduit.write_eof()
        except BROKEN as error:
            raise _OriginDeafError from error

    async def _send(self, out: list[bytes]) -> None:
        try:
            await self.origin.outbound.send(self._buffers, b"".join(out))
        except BROKEN as error:
            raise _OriginDeafError from error


class _OriginDeafError(Exception):
    """The origin server takes no more of the request."""
