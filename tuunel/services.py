"""What an agent serves itself, dialling nothing: its round trip to the relay, and bytes to measure a tunnel with.

Source: docs/spec/services.md.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel

from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.e2e.service import Measure, RelayRtt, Service, Taken
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.events import Traffic
from tuunel.identity import DeviceID
from tuunel.inflow import Inflow
from tuunel.rawstream import send_bytes
from tuunel.tunnel import Tunnel

LONGEST: Final = 15.0  #: seconds that a measurement may ask for; it gets no more
MOST: Final = 16 * 1024**3  #: bytes of one measurement: more than the fastest tunnel carries in LONGEST
GRACE: Final = 15.0  #: seconds for all of a measurement but its bytes: a client that stalls is cut then
AT_ONCE: Final = 4  #: measurements of all clients together; of one client there is one
MICROSECONDS: Final = 1_000_000

Serve = Callable[[Tunnel, Traffic], Awaitable[None]]


class Services:
    """The services of one agent. `relay_rtt` measures its round trip to the relay, in seconds; it raises Failure when there is none."""

    def __init__(self, buffers: BufferPool, relay_rtt: Callable[[], Awaitable[float]]) -> None:
        self._buffers = buffers
        self._relay_rtt = relay_rtt
        self._measuring: set[DeviceID] = set()

    @contextmanager
    def begin(self, client: DeviceID, name: str) -> Iterator[Serve]:
        """How to serve `name` to `client` on a tunnel that was answered; the block must last as long as that does.

        Failure(UNSUPPORTED) for a name that this agent does not serve, Failure(LIMIT) beyond the measurements that it carries at a time.
        What is yielded returns with the tunnel ended at this end, and raises as the tunnel, RemoteProtocolError for a client that breaks
        the service's rules, and Failure(LIMIT) for one that stalls.
        """
        match name:
            case Service.RELAY_RTT:
                yield self._tell_relay_rtt
            case Service.SINK | Service.SOURCE:
                if client in self._measuring or len(self._measuring) >= AT_ONCE:
                    raise Failure(Reason.LIMIT, Speaker.AGENT, "another measurement is under way")
                self._measuring.add(client)
                try:
                    yield partial(_in_time, self._sink if name == Service.SINK else self._source)
                finally:
                    self._measuring.discard(client)
            case _:
                raise Failure(Reason.UNSUPPORTED, Speaker.AGENT, f"this agent has no service {name!r}")

    async def _tell_relay_rtt(self, tunnel: Tunnel, traffic: Traffic) -> None:
        inflow = Inflow(tunnel, self._buffers, 0)
        while not inflow.ended:
            answered = inflow.size
            await inflow.step()
            if inflow.size > answered + 1:
                raise RemoteProtocolError("asked again before the answer")
            traffic.up = inflow.size
            if inflow.size > answered:
                await send_bytes(tunnel, self._buffers, (await self._measured()).encode())
                traffic.down += RelayRtt.LENGTH
        await tunnel.write_eof()

    async def _measured(self) -> RelayRtt:
        try:
            return RelayRtt(round(await self._relay_rtt() * MICROSECONDS))
        except Failure:
            return RelayRtt(RelayRtt.UNKNOWN)

    async def _sink(self, tunnel: Tunnel, traffic: Traffic) -> None:
        inflow = Inflow(tunnel, self._buffers, Measure.LENGTH)
        duration = await _asked(inflow)
        while not (inflow.size or inflow.ended):
            await inflow.step()
        began = inflow.size  # its time is not known: the clock starts behind it
        started = now = time.monotonic()
        while not inflow.ended and inflow.size < MOST and now < started + duration:
            await inflow.step()
            traffic.up = inflow.size
            now = time.monotonic()
        await send_bytes(tunnel, self._buffers, Taken(inflow.size - began, round((now - started) * MICROSECONDS)).encode())
        await tunnel.write_eof()
        while not inflow.ended:  # closed with bytes unread, the connection would be reset, and the answer lost
            await inflow.step()

    async def _source(self, tunnel: Tunnel, traffic: Traffic) -> None:
        duration = await _asked(Inflow(tunnel, self._buffers, Measure.LENGTH))
        zeros = memoryview(bytearray(1 + MAX_BODY))  # a borrowed buffer holds what another client sent
        end = time.monotonic() + duration
        while traffic.down < MOST and time.monotonic() < end:
            n = tunnel.chunk_limit
            if rest := tunnel.write_now(zeros, n):
                await rest()
            traffic.down += n
            await anyio.lowlevel.checkpoint()  # a socket that takes everything must not keep the agent from its other clients
        await tunnel.write_eof()
        inflow = Inflow(tunnel, self._buffers, 0)
        while not inflow.ended:
            await inflow.step()


async def _in_time(serve: Serve, tunnel: Tunnel, traffic: Traffic) -> None:
    try:
        with anyio.fail_after(LONGEST + GRACE):
            await serve(tunnel, traffic)
    except TimeoutError as error:
        tunnel.reset(Reason.LIMIT)
        raise Failure(Reason.LIMIT, Speaker.AGENT, "the measurement took too long") from error


async def _asked(inflow: Inflow) -> float:
    """For how many seconds the client wants to measure, once it has said so."""
    while not inflow.whole:
        if inflow.ended:
            raise RemoteProtocolError("a measurement was not asked for")
        await inflow.step()
    return min(Measure.decode(inflow.head).milliseconds / 1000, LONGEST)
