"""The evil relay: the project's own, with its part in every tunnel in the hands of a `Plot`."""

from collections.abc import Callable, Iterable, Iterator

import anyio
import anyio.lowlevel

from tuunel.e2e.handshake import ACCEPT_HEADER, INIT_HEADER
from tuunel.identity import DeviceID
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream
from tuunel.relay.connection import DeviceConnection, DialConnection, ReadyConnection
from tuunel.relay.server import RelayServer
from tuunel.relay.switchboard import Pipe
from tuunel.relay.tunnels import Tunnels
from tuunel.relay.wire import PairedAgent, PairedForward, Switch

Pieces = Iterable[bytes | None]  #: what is sent on for one message; None lets everybody else run first
RECORD_HEADER = 3
GONE = (OSError, anyio.ClosedResourceError, anyio.EndOfStream)


class Cut(Exception):
    """End this direction as a clean end of TCP; the other one goes on."""


class Plot:
    """What the relay does to the tunnels that it pairs. This one is honest; each hook that is overridden is an attack.

    `up` and `down` get every message of the tunnel whole: INIT or ACCEPT first, then records. `struck` counts what was done.
    """

    def __init__(self) -> None:
        self.struck = 0
        self.seen_up = 0
        self.seen_down = 0

    def offer(self, offer: bytes) -> bytes:
        return offer

    def paired(self, paired: PairedAgent) -> PairedAgent:
        return paired

    def up(self, number: int, message: bytes) -> Pieces:
        return [message]

    def down(self, number: int, message: bytes) -> Pieces:
        return [message]

    async def answer(self, pipe: Pipe) -> None:
        """The relay's word to the forward proxy."""
        await pipe.forward.send(PairedForward(self.offer(pipe.agent.offer.body)))

    async def carry(self, pipe: Pipe) -> PumpEnd:
        await self.answer(pipe)
        await self.switch(pipe)
        return await self.pump(pipe)

    async def switch(self, pipe: Pipe) -> None:
        assert isinstance(await pipe.agent.receive(), Switch)

    async def pump(self, pipe: Pipe) -> PumpEnd:
        forward, agent = pipe.forward.stream, pipe.agent.stream
        whole: list[bool] = []

        async def move(source: RawStream, sink: RawStream, header: int, change: Callable[[bytes], Pieces]) -> None:
            try:
                await self.move(source, sink, header, change)
                whole.append(True)
            except GONE:
                forward.reset()
                agent.reset()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move, forward, agent, INIT_HEADER, self._up)
            tasks.start_soon(move, agent, forward, ACCEPT_HEADER, self._down)
        return PumpEnd.DONE if len(whole) == 2 else PumpEnd.RESET

    def _up(self, message: bytes) -> Pieces:
        self.seen_up += 1
        return self.up(self.seen_up - 1, message)

    def _down(self, message: bytes) -> Pieces:
        self.seen_down += 1
        return self.down(self.seen_down - 1, message)

    async def move(self, source: RawStream, sink: RawStream, header: int, change: Callable[[bytes], Pieces]) -> None:
        divided = Messages(header)
        try:
            while data := await source.receive():
                for message in divided.feed(data):
                    await deliver(sink, change(message))
        except Cut:
            await sink.write_eof()
            while await source.receive():
                pass
        else:
            await sink.write_eof()


async def deliver(sink: RawStream, pieces: Pieces) -> None:
    for piece in pieces:
        if piece is None:
            await anyio.lowlevel.checkpoint()
        else:
            await sink.send_all(piece)


class Messages:
    """Divides a tunnel's bytes as its clear lengths do: a handshake message whose length ends its `header`, then records."""

    def __init__(self, header: int) -> None:
        self._header = header
        self._field = 2
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._pending += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> bytes | None:
        end = self._header + int.from_bytes(self._pending[self._header - self._field : self._header], "big")
        if not self._header <= end <= len(self._pending):
            return None
        message = bytes(self._pending[:end])
        del self._pending[:end]
        self._header = self._field = RECORD_HEADER
        return message


class EvilTunnels(Tunnels):
    """The relay's tunnels, as the plot of the moment wants them."""

    relay: "EvilRelay"

    async def _pair_agent(self, ready: ReadyConnection, paired: PairedAgent, *, claim: bool) -> bool:
        return await super()._pair_agent(ready, self.relay.plot.paired(paired), claim=claim)

    async def _carry(self, pipe: Pipe) -> PumpEnd:
        self.relay.plot.seen_up = self.relay.plot.seen_down = 0
        return await self.relay.plot.carry(pipe)

    async def approach(self, agent: DeviceID, paired: PairedAgent) -> ReadyConnection:
        """One of the agent's connections, told PAIRED although nobody has asked for it, and switched. The caller closes it."""
        waiting = self._registry._agents[agent].parked
        while True:
            while not waiting:
                await anyio.lowlevel.checkpoint()
            ready = self._registry.take(object(), agent)
            if isinstance(ready, ReadyConnection) and await super()._pair_agent(ready, paired, claim=True):
                assert isinstance(await ready.receive(), Switch)
                return ready


class EvilRelay(RelayServer):
    """`plot` may be changed at any time: it holds for the tunnels that are paired from then on."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.plot = Plot()

    @property
    def tunnels(self) -> EvilTunnels:
        if not isinstance(self._tunnels, EvilTunnels):
            self._tunnels = EvilTunnels(self._tunnels._switchboard, self._tunnels._pipes)
            self._tunnels.relay = self
        return self._tunnels

    async def _serve_purpose(self, connection: DeviceConnection) -> bool:
        assert self.tunnels.relay is self
        return await super()._serve_purpose(connection)

    def connections(self, kind: type[DeviceConnection]) -> list[DeviceConnection]:
        return [connection for connection in self._switchboard.registry.connections() if isinstance(connection, kind)]

    def hang_up(self, kind: type[DeviceConnection] = DialConnection) -> None:
        """Lose the devices' connections of one kind."""
        for connection in self.connections(kind):
            connection.stream.reset()
            connection.scope.cancel()


def seal_raw(connection: DeviceConnection, plaintext: bytes) -> bytes:
    """A hop record under the connection's own key, whatever the protocol allows now."""
    return connection._channel._sealer.seal(plaintext)
