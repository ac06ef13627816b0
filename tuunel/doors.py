"""The front doors at work: each client is told apart by its first byte, answered truthfully, and connected to its target.

Source: docs/spec/front-doors.md.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio

from tuunel.buffers import BufferPool
from tuunel.errors import Failure, Reason
from tuunel.frontdoor import EARLY_LIMIT, HEADER_DEADLINE, Credentials, Request, opening
from tuunel.httpexchange import HttpExchanges
from tuunel.httpproxy import Forward, HttpDoor
from tuunel.outbound import Dialer, Outbound, dial_for_client, pipe
from tuunel.pump import BROKEN
from tuunel.rawstream import RawStream
from tuunel.socks.protocol import AssociateRequest, Socks4Door, Socks5Door, SocksDoor
from tuunel.udpdoor import UdpDoor

__all__ = ["Dialer", "FrontDoors", "Outbound"]

IDLE_LIMIT: Final = 300.0  # seconds between two requests of a kept connection: longer than browsers keep one


class FrontDoors:
    """Serves SOCKS5, SOCKS4a, HTTP CONNECT and absolute-form HTTP on any accepted stream.

    `dial` connects targets, `udp` serves the associations of SOCKS5 clients. With `credentials` every request needs them. `pac` makes
    the auto-configuration file when it is asked for.
    """

    def __init__(
        self, dial: Dialer, *, udp: UdpDoor, pac: Callable[[], str], buffers: BufferPool, credentials: Credentials | None = None
    ) -> None:
        self._dial = dial
        self._udp = udp
        self._pac = pac
        self._buffers = buffers
        self._credentials = credentials

    async def serve_client(self, stream: RawStream) -> None:
        """Serve one client until it is done. Owns `stream`; raises nothing that a client or target can cause. Cancelled: all is reset."""
        try:
            await self._serve(stream)
        except BROKEN:
            pass
        finally:
            stream.reset()

    async def _serve(self, stream: RawStream) -> None:
        first = stream.receive_now(EARLY_LIMIT)  # most clients have spoken by now
        if first is None:
            with anyio.move_on_after(HEADER_DEADLINE):
                first = await _receive(stream)
        if first:
            local = stream.is_local
            match opening(first[0]):
                case "socks5":
                    await self._serve_socks(stream, Socks5Door(self._credentials, local=local), first)
                case "socks4":
                    await self._serve_socks(stream, Socks4Door(self._credentials, local=local), first)
                case "http":
                    await self._serve_http(stream, HttpDoor(self._credentials, local=local, pac=self._pac), first)
        await stream.aclose()

    async def _serve_socks(self, stream: RawStream, door: SocksDoor, first: bytes) -> None:
        door.receive_data(first)
        event: object = None
        with anyio.move_on_after(HEADER_DEADLINE):
            event = await _read_event(stream, door)
        if isinstance(event, Request):
            await self._connect(stream, door, event)
        elif isinstance(event, AssociateRequest):
            await self._associate(stream, door, event)
        elif event is None:
            stream.reset()  # it has had its time

    async def _serve_http(self, stream: RawStream, door: HttpDoor, first: bytes) -> None:
        door.receive_data(first)
        async with anyio.create_task_group() as group:
            exchanges = HttpExchanges(stream, door, self._dial, self._buffers, group)
            try:
                await self._serve_requests(stream, door, exchanges)
                await stream.aclose()
            except BROKEN:  # here, and not outside: a lone error, not a group of one
                stream.reset()
                exchanges.reset()
            finally:
                exchanges.release()

    async def _serve_requests(self, stream: RawStream, door: HttpDoor, exchanges: HttpExchanges) -> None:
        event = await _read_head(stream, door)
        while await self._serve_request(stream, door, exchanges, event):
            event = door.next_event()  # it may be here already: pipelined
            if event is None:
                with anyio.move_on_after(IDLE_LIMIT) as idle:
                    _feed(door, await exchanges.receive_between())
                if idle.cancelled_caught:
                    return
                event = await _read_head(stream, door)

    async def _serve_request(self, stream: RawStream, door: HttpDoor, exchanges: HttpExchanges, event: object) -> bool:
        """Serve what the client asks: whether its connection may ask again."""
        if isinstance(event, Request):
            await self._connect(stream, door, event)
        elif isinstance(event, Forward):
            try:
                return await exchanges.run(event)
            except Failure as failure:
                door.refuse(failure)
        await _flush(stream, door)
        return False

    async def _associate(self, stream: RawStream, door: SocksDoor, request: AssociateRequest) -> None:
        try:
            await self._udp.serve(stream, door, request)
        except Failure as failure:
            door.refuse(failure)
            await _flush(stream, door)

    async def _connect(self, stream: RawStream, door: SocksDoor | HttpDoor, request: Request) -> None:
        try:
            outbound, ahead = await dial_for_client(self._dial, request, stream, verbatim=True)
        except Failure as failure:
            door.refuse(failure)
            return await _flush(stream, door)
        try:
            door.accept(outbound.bound, outbound.connection if stream.is_unix else None)
            await _flush(stream, door)
            await outbound.send(self._buffers, ahead)
        except BaseException:
            outbound.reset()
            raise
        return await pipe(stream, outbound, self._buffers)


async def _read_head(stream: RawStream, door: HttpDoor) -> object:
    with anyio.move_on_after(HEADER_DEADLINE):
        return await _read_event(stream, door)
    door.refuse(Failure(Reason.BAD_REQUEST, detail=f"the head of the request took longer than {HEADER_DEADLINE:.0f} seconds"))
    return None


async def _read_event(stream: RawStream, door: SocksDoor | HttpDoor) -> object:
    """Read until the door has an event, sending its answers as they come up."""
    while (event := door.next_event()) is None:
        await _flush(stream, door)
        _feed(door, await _receive(stream))
    await _flush(stream, door)
    return event


async def _receive(stream: RawStream) -> bytes:
    """Wait for bytes of a client, b"" for its end. A cancelled call may have lost some: who cancels it is done with the client."""
    return await stream.on_readable(partial(stream.receive_now, EARLY_LIMIT))


def _feed(door: SocksDoor | HttpDoor, data: bytes) -> None:
    if data:
        door.receive_data(data)
    else:
        door.receive_eof()


async def _flush(stream: RawStream, door: SocksDoor | HttpDoor) -> None:
    if data := door.data_to_send():
        await stream.send_all(data)
