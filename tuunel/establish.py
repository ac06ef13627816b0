"""Shakes hands end to end over a connection that the relay has just made a pipe: one function for each side.

Source: docs/spec/end-to-end.md, docs/spec/tunnel.md (opening a tunnel).
"""

import time
from collections.abc import Awaitable, Callable

import anyio

from tuunel.buffers import BufferPool
from tuunel.e2e.handshake import ACCEPT_HEADER, INIT_HEADER, Initiator, InitReceived, Responder, sealed_length
from tuunel.e2e.records import MAX_EARLY_BODY, RecordSealer
from tuunel.e2e.wire import ANNOUNCED, Purpose, RecordType, Target
from tuunel.errors import Failure, Reason, RemoteProtocolError
from tuunel.rawstream import RawStream
from tuunel.recordstream import RecordStream
from tuunel.tunnel import Tunnel

INIT_TIMEOUT = 10.0  #: seconds that an agent waits for INIT: what pairs and then says nothing must not hold a connection


async def initiate(
    stream: RawStream, initiator: Initiator, buffers: BufferPool, *, target: Target | None, early: bytes = b"", answer_within: float
) -> Tunnel:
    """The forward proxy's side: INIT, and behind it in the same write CONNECT and `early` where a target is given; then ACCEPT.

    The caller has checked the agent's offer with `initiator`. Raises Failure: TUNNEL_LOST without an answer in `answer_within`
    seconds, the agent's refusal, or PeerMismatch. The stream is closed when it raises.
    """
    try:
        flight = initiator.init(Purpose.STANDBY if target is None else Purpose.CONNECT)
        if target is not None:
            flight += _connect_flight(initiator.sealer, target, early)
        with anyio.fail_after(answer_within):
            started = time.monotonic()
            await stream.send_all(flight)
            incoming = _Incoming(stream)
            initiator.receive_accept(await incoming.message(ACCEPT_HEADER))
            initiator.opener.receive_data(incoming.rest)
    except BaseException as error:
        stream.reset()
        initiator.close()
        if isinstance(error, TimeoutError | OSError | anyio.IncompleteRead | RemoteProtocolError):
            raise Failure(Reason.TUNNEL_LOST, detail=_why(error)) from error
        raise
    records = RecordStream(stream, initiator.sealer, initiator.opener, buffers)
    records.note_rtt(time.monotonic() - started)
    tunnel = Tunnel(records, initiator.tunnel_id)
    tunnel.peer_label = initiator.peer_label
    tunnel.peer_commands = initiator.peer_commands
    return tunnel


def _connect_flight(sealer: RecordSealer, target: Target, early: bytes) -> bytes:
    chunks = (early[start : start + MAX_EARLY_BODY] for start in range(0, len(early), MAX_EARLY_BODY))
    return sealer.seal(RecordType.CONNECT, target.encode()) + b"".join(sealer.seal(RecordType.DATA, chunk) for chunk in chunks)


async def respond(
    stream: RawStream,
    first: bytes,
    responder: Responder,
    buffers: BufferPool,
    *,
    admit: Callable[[InitReceived], Awaitable[None]],
    label: str,
) -> tuple[Tunnel, InitReceived]:
    """The agent's side: INIT (which may begin with `first`, read already), then `admit` decides on who sent it, then ACCEPT.

    `admit` raises Failure to refuse; it is raised here after the refusal was sent. RemoteProtocolError or PeerMismatch for an INIT that
    proves nothing; TimeoutError, OSError, anyio.IncompleteRead. The stream is closed when it raises.
    """
    try:
        with anyio.fail_after(INIT_TIMEOUT):
            incoming = _Incoming(stream, first)
            received = responder.receive_init(await incoming.message(INIT_HEADER))
        try:
            await admit(received)
        except Failure as refusal:
            await stream.send_all(responder.refuse(refusal.reason))
            await stream.aclose()
            raise
        await stream.send_all(responder.accept(label, frozenset(ANNOUNCED)))
        responder.opener.receive_data(incoming.rest)
    except BaseException:
        stream.reset()
        responder.close()
        raise
    return Tunnel(RecordStream(stream, responder.sealer, responder.opener, buffers), responder.tunnel_id), received


class _Incoming:
    """Reads one handshake message; `rest` is what arrived behind it: the peer's first records."""

    def __init__(self, stream: RawStream, first: bytes = b"") -> None:
        self.rest = first
        self._stream = stream

    async def message(self, header: int) -> bytes:
        await self._gather(header)
        length = header + sealed_length(self.rest[:header])
        await self._gather(length)
        message, self.rest = self.rest[:length], self.rest[length:]
        return message

    async def _gather(self, length: int) -> None:
        while len(self.rest) < length:
            data = await self._stream.receive()
            if not data:
                raise anyio.IncompleteRead
            self.rest += data


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the agent did not answer the handshake"
    if isinstance(error, RemoteProtocolError):
        return f"the answer to the handshake is worthless ({error})"
    return "the connection ended during the handshake"
