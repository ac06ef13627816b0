"""Apps and targets: what each end said, what it heard, and how it ended."""

from dataclasses import dataclass, field
from typing import Final

import anyio

from tests.model.wires import Wire, WireStream
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.devices import Device
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure
from tuunel.events import Traffic
from tuunel.pool import TunnelPool
from tuunel.pump import BROKEN, PumpEnd, copy_both_ways
from tuunel.tunnel import Tunnel

FIRST_PORT: Final = 20_000  #: each call asks for a port of its own: so every dial tells which call it is for


_BUFFER: Final = memoryview(bytearray(65536))


class Peer:
    """An app or a target: reads at once what comes, unless it pauses."""

    def __init__(self, stream: WireStream) -> None:
        self.stream = stream
        self.said = bytearray()
        self.heard = bytearray()
        self.has_ended = False  #: it has said its own clean end
        self.heard_end = False
        self.is_reset = False
        self.pauses = False

    @property
    def over(self) -> bool:
        return self.stream.closed

    @property
    def may_say(self) -> bool:
        return not (self.over or self.has_ended)

    def say(self, data: bytes) -> None:
        """Say what the connection takes of it."""
        try:
            self.said += data[: self.stream.send_now(data)]
        except OSError:
            self._end(reset=True)

    def end(self) -> None:
        if self.may_say:
            self.has_ended = True
            self.stream._eof_written = True
            self.stream._out.ended = True
            self.stream._out.sent()
            self._close_if_done()

    def reset(self) -> None:
        self.stream.reset()

    def listen(self) -> bool:
        """Read what has come; whether there was anything."""
        buffer = _BUFFER
        heard = False
        while not (self.over or self.pauses or self.heard_end):
            try:
                n = self.stream.receive_into(buffer)
            except OSError:
                self._end(reset=True)
                return True
            if n is None:
                break
            heard = True
            self.heard += buffer[:n]
            self.heard_end = n == 0
        self._close_if_done()
        return heard

    def _close_if_done(self) -> None:
        if self.has_ended and self.heard_end and not self.over:
            self._end(reset=False)

    def _end(self, *, reset: bool) -> None:
        self.is_reset = reset
        self.stream.close()


@dataclass
class Call:
    """One connection of an app, and every target that was dialled for it."""

    number: int
    forward: str
    host: str
    early: bytes
    app: Peer
    near: WireStream
    refuses: bool = False  #: the target does
    slow: anyio.Event | None = None  #: set when the target answers
    targets: list[Peer] = field(default_factory=list)
    dialled: list[WireStream] = field(default_factory=list)  #: the agent's ends of the connections to them
    outcome: str = ""  #: "done", "reset" or the name of a reason, once it is over
    tunnel: str = ""
    is_spoilt: bool = False  #: one of its ends has reset it

    @property
    def place(self) -> HostPort:
        return HostPort(self.host, FIRST_PORT + self.number)

    async def run(self, pool: TunnelPool, device: Device, buffers: BufferPool) -> None:
        """What a front door does for an app."""
        end = str(PumpEnd.RESET)
        try:
            tunnel, _ = await pool.connect(device, self.place, EarlyBytes(self.early, self._at_hand))
            end = str(await self._carry(tunnel, buffers))
        except Failure as failure:
            end = str(failure.reason)
        except BROKEN:
            pass
        finally:
            self.near.reset()
            self.outcome = end

    def _at_hand(self) -> bytes:
        """What the app has said by now."""
        try:
            n = self.near.receive_into(_BUFFER) or 0
        except BROKEN:
            n = 0
        return bytes(_BUFFER[:n])

    async def _carry(self, tunnel: Tunnel, buffers: BufferPool) -> PumpEnd:
        self.tunnel = tunnel.id
        end = await copy_both_ways(self.near, tunnel, Traffic(), buffers)
        if end is PumpEnd.DONE:
            await self.near.aclose()
            await tunnel.aclose()
        return end

    def problems(self) -> list[str]:
        """What may never be: bytes that nobody said, a clean end that nobody meant, bytes of one app at two targets."""
        found = []
        for target in self.targets:
            if not self.app.said.startswith(target.heard):
                found.append("a target heard what the app has not said")
            if target.heard_end and not (self.app.has_ended and target.heard == self.app.said):
                found.append("a target heard an end that the app has not said")
        talked = [target for target in self.targets if target.heard]
        if len(talked) > 1:
            found.append("two targets heard the same app")
        said = [target for target in self.targets if target.said.startswith(self.app.heard)]
        if self.app.heard and not said:
            found.append("the app heard what no target has said")
        if self.app.heard_end and not any(target.has_ended and target.said == self.app.heard for target in said):
            found.append("the app heard an end that no target has said")
        return found


def new_call(number: int, forward: str, host: str, early: bytes) -> Call:
    wire = Wire("app", forward, immediate=True)
    app = Peer(wire.near)
    app.said += early
    return Call(number, forward, host, early, app, wire.far)
