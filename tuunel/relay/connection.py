"""The proven connections of devices, as the relay holds them: hop messages over a raw stream, and who may end them.

Source: docs/spec/tunnel.md sections 2 and 3, docs/spec/relay.md, "Connections".
"""

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from tuunel.ackwatch import AckWatch
from tuunel.companions import companions
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.identity import DeviceID
from tuunel.rawstream import RawStream
from tuunel.relay.protocol import HopChannel
from tuunel.relay.wire import HopError, Message, Notice, Offer, Params, Ping, Pong, Purpose

#: A device that takes this long to accept one message is not there any more.
SEND_DEADLINE: Final = 10.0
#: Messages that may wait for a control connection's writer; a device that lets more pile up is closed.
MAX_POSTED: Final = 512

_NONE: Final = Offer(b"")

#: What a connection that is over may raise: none of it is an error of the relay.
LOST: Final = (OSError, anyio.EndOfStream, anyio.ClosedResourceError, RemoteProtocolError)


class DeviceConnection:
    """A connection of `device`, whose identity key `public_key` is retained. Owns the stream. One task at a time uses it."""

    def __init__(self, stream: RawStream, device: DeviceID, public_key: bytes, params: Params) -> None:
        self.stream = stream
        self.device = device
        self.public_key = public_key
        self.instance = params.instance
        self.role = params.role
        self.scope = anyio.CancelScope()  #: the work of the task that owns this connection now: what `cut` cancels
        self.cut_for: Failure | None = None  #: why the relay ended it
        self.acks = AckWatch()  #: of the device's machine, while this is part of a pipe
        self._channel: HopChannel

    def start(self, channel: HopChannel) -> None:
        """Take over the channel of the finished handshake."""
        self._channel = channel

    async def send(self, message: Message) -> None:
        """Send one message whole, cancelled or not. Raises one of LOST, TimeoutError among them when the device does not take it."""
        record = self._channel.send(message)
        with anyio.CancelScope(shield=True), anyio.fail_after(SEND_DEADLINE):
            await self.stream.send_all(record)

    async def receive(self) -> Message:
        """The next message. Reads no byte beyond it; cancellation loses nothing. Raises one of LOST."""
        while (message := self._channel.next_event()) is None:
            data = await self.stream.receive(self._channel.bytes_wanted)
            if not data:
                self._channel.receive_eof()
                raise anyio.EndOfStream
            self._channel.receive_data(data)
        return message

    async def converse(self, *, silence: float, dead: float) -> Message:
        """The next message that is not liveness: answers pings, and pings after `silence` seconds without a message.

        Raises one of LOST, TimeoutError among them after `dead` seconds of silence. Cancellation loses nothing.
        """
        while True:
            message = await self._receive_within(silence)
            if message is None:
                await self.say(Ping(os.urandom(8)))
                message = await self._receive_within(dead - silence)
            if message is None:
                raise TimeoutError
            self.heard()
            if isinstance(message, Ping):
                await self.say(Pong(message.nonce))
            elif not isinstance(message, Pong):
                return message

    async def _receive_within(self, seconds: float) -> Message | None:
        with anyio.move_on_after(seconds):
            return await self.receive()
        return None

    async def say(self, message: Message) -> None:
        """Send a message of liveness, from the task that converses."""
        await self.send(message)

    def heard(self) -> None:
        """The device has said something."""

    def into_pipe(self) -> bytes:
        """End hop mode, and drop its keys. The bytes behind the last hop record are returned: the pipe's first."""
        first = self._channel.trailing_data
        del self._channel
        return first

    def cut(self, failure: Failure) -> None:
        """End this connection, or the pipe that it is part of, at once; its owner cleans up. The first reason stays."""
        self.cut_for = self.cut_for or failure
        self.stream.reset()
        self.scope.cancel()


class ControlConnection(DeviceConnection):
    """The presence of one running instance. Everybody may `post`; one task converses, and one that `deliver`s alone sends.

    Presences mostly rest: what delivers is started when there is something to deliver, and costs nothing until then.
    """

    def __init__(self, stream: RawStream, device: DeviceID, public_key: bytes, params: Params) -> None:
        super().__init__(stream, device, public_key, params)
        self._posted: deque[Message] = deque()
        self._start: Callable[[], object] | None = None
        self._delivering = False
        self._lost = False
        self._sign: anyio.Event | None = None  # what those wait for who ask whether the device is alive
        self.over = False  #: the device will never say anything again
        self.dismissed = False  #: the relay's last word is posted

    def deliver_with(self, start: Callable[[], object] | None) -> None:
        """Have `start()` run `deliver` whenever something is posted and nobody delivers, from now on; None: never any more."""
        self._start = start
        self._see_to_delivery()

    def _see_to_delivery(self) -> None:
        if self._posted and self._start is not None and not self._delivering:
            self._delivering = True
            self._start()

    def post(self, message: Message) -> None:
        """Queue a message for delivery; a device that lets too many pile up is closed.

        A Notice is lost then: it only explains, and a partner that is banned in the midst of a thousand tunnels is no fault of this device.
        """
        if self.dismissed or self._lost:
            return
        if len(self._posted) >= MAX_POSTED:
            if not isinstance(message, Notice):
                self.stream.close()
            return
        self._posted.append(message)
        self._see_to_delivery()

    def dismiss(self, failure: Failure) -> None:
        """Queue the relay's last word: when it is delivered, the connection ends."""
        self.post(HopError(failure.reason, failure.retry_after, failure.detail))
        self.dismissed = True

    async def deliver(self) -> None:
        """Send what is posted, until nothing is left. Raises one of LOST."""
        try:
            while self._posted:
                await self.send(self._posted.popleft())
        finally:
            self._delivering = False

    async def say(self, message: Message) -> None:
        """Post it: `deliver` alone may send, or two half-written records would mix."""
        self.post(message)

    async def answers(self, patience: float) -> bool:
        """Ask whether the device is alive: False when nothing came within `patience` seconds, or the connection has ended."""
        sign = self._sign = self._sign or anyio.Event()
        self.post(Ping(os.urandom(8)))
        with anyio.move_on_after(patience):
            await sign.wait()
        return sign.is_set() and not self.over

    def heard(self) -> None:
        """The device has said something: wake those who ask."""
        if self._sign is not None:
            self._sign.set()
            self._sign = None

    def lose(self) -> None:
        """The device is gone, or has broken the rules: nothing is delivered any more, not even by what has just been started."""
        self._lost = True
        self._posted.clear()

    def end(self) -> None:
        """Note that the conversation is over, and wake those who ask."""
        self.over = True
        self.heard()


class ReadyConnection(DeviceConnection):
    """An agent's parked connection with its offer. It changes owner once: from the task that parks it to the open that claims it."""

    def __init__(self, stream: RawStream, device: DeviceID, public_key: bytes, params: Params) -> None:
        super().__init__(stream, device, public_key, params)
        self.offer = _NONE
        self._parking = anyio.CancelScope()
        self._parks = False
        self._released: anyio.Event | None = None  # what the open waits for that claims this
        self._lost = False

    async def park(self, *, silence: float, dead: float) -> None:
        """Keep the connection alive; returns when it is claimed and this task must leave it alone. Raises one of LOST before that."""
        self._parks = True
        try:
            with self._parking:
                await self.converse(silence=silence, dead=dead)
                raise RemoteProtocolError("a parked connection may only wait")
        except BaseException:
            self._lost = True
            raise
        finally:
            self._parks = False
            if self._released is not None:
                self._released.set()

    def into_pipe(self) -> bytes:
        """End hop mode; the offer has been passed on, and nobody parks this again."""
        self.offer = _NONE
        del self._parking, self._released
        return super().into_pipe()

    async def claim(self) -> bool:
        """Take the connection from the task that parks it; False when it has been lost meanwhile."""
        if self._parks:
            self._released = anyio.Event()
            self._parking.cancel()
            await self._released.wait()
        return not self._lost


class DialConnection(DeviceConnection):
    """A forward proxy's connection. While its open waits, `wait_for_ready` is what it does."""

    def __init__(self, stream: RawStream, device: DeviceID, public_key: bytes, params: Params) -> None:
        super().__init__(stream, device, public_key, params)
        self._answer: ReadyConnection | Failure | None = None
        self._answered = anyio.Event()

    def check_silence(self) -> None:
        """Raise RemoteProtocolError when bytes came with an OPEN, which must be answered before the device says anything more."""
        self._channel.next_event()

    def answer(self, answer: ReadyConnection | Failure) -> None:
        """Give the waiting open its ready connection (now owned by this one), or say why there will be none."""
        self._answer = answer
        self._answered.set()

    async def wait_for_ready(self, patience: float) -> ReadyConnection:
        """Wait for `answer`. Raises Failure: OPEN_TIMEOUT after `patience` seconds, or what was answered.

        When the device goes meanwhile, the connection's scope is cancelled.
        """
        with anyio.move_on_after(patience):
            async with companions() as beside:
                beside.start(self._watch)
                await self._answered.wait()
                beside.cancel()
        answer = self.take_answer()
        if answer is None:
            raise Failure(Reason.OPEN_TIMEOUT, Speaker.RELAY)
        if isinstance(answer, Failure):
            raise answer
        return answer

    def into_pipe(self) -> bytes:
        """End hop mode; no open waits any more."""
        del self._answered
        return super().into_pipe()

    async def _watch(self) -> None:
        # From OPEN to its answer the device has nothing to say: whatever comes is its end, or breaks the rules.
        with suppress(OSError, anyio.ClosedResourceError):
            await self.stream.wait_readable()
        if self._answer is None:
            self.scope.cancel()

    def take_answer(self) -> ReadyConnection | Failure | None:
        """The answer that nobody has taken yet; the next open waits for its own."""
        answer, self._answer = self._answer, None
        self._answered = anyio.Event()
        return answer


CONNECTION_TYPES: Final[dict[Purpose, type[DeviceConnection]]] = {
    Purpose.CONTROL: ControlConnection,
    Purpose.READY: ReadyConnection,
    Purpose.DIAL: DialConnection,
}
