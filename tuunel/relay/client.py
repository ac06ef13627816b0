"""A device's connections to a relay: dial, hop handshake, then hop messages until the connection becomes a pipe.

Source: docs/spec/hop-handshake.md, docs/spec/tunnel.md.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from enum import Enum

import anyio
from cryptography.hazmat.primitives.asymmetric import ec

from tuunel.devices import KnownRelay
from tuunel.dial import dial
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker
from tuunel.identity import IdentityKey
from tuunel.rawstream import RawStream
from tuunel.relay.handshake import DeviceHandshake, Register, RelayAuthenticated, Welcomed
from tuunel.relay.protocol import HopChannel, State
from tuunel.relay.wire import Message, Params, Ping, Pong, Purpose, Welcome

SEND_TIMEOUT = 10.0  #: seconds for the relay to take a message: one that does not is gone, and must not hold up who waits to send
CONNECT_TIMEOUT = 10.0  #: seconds for TCP and the hop handshake together: three round trips fit on any usable link


class Step(Enum):
    """What a connection to a relay has come through, before the relay's welcome."""

    CONNECTED = "connected"  #: by TCP
    AUTHENTICATED = "authenticated"  #: the relay has proven that it is the pinned one


def _ignore(step: Step) -> None:
    """For those who ask only whether it came about."""


class HopConnection:
    """An authenticated connection to a relay. Several tasks may send while one receives; whoever has it last closes it.

    `receive` may be cancelled without loss. A `send` that is cancelled before all of it is out closes the connection.
    """

    def __init__(self, stream: RawStream, channel: HopChannel, welcome: Welcome) -> None:
        self.stream = stream
        self.welcome = welcome
        self._channel = channel
        self._sending = anyio.Lock()

    async def send(self, *messages: Message) -> None:
        """Send `messages` in one write. Raises Failure RELAY_UNREACHABLE when the connection is gone, or its key used up."""
        async with self._sending:
            if self._channel.state is State.CLOSED:  # the relay has said its last word, which another task reads
                raise _lost()
            if len(messages) > self._channel.records_left:
                raise Failure(Reason.RELAY_UNREACHABLE, detail="the connection's key is used up")
            data = b"".join(self._channel.send(message) for message in messages)
            try:
                with anyio.fail_after(SEND_TIMEOUT):
                    await self.stream.send_all(data)
            except TimeoutError as error:
                self.close()  # a record was cut
                raise Failure(Reason.RELAY_UNREACHABLE, detail=f"the relay took nothing for {SEND_TIMEOUT:.0f} s") from error
            except (OSError, anyio.ClosedResourceError) as error:
                raise _lost() from error
            except BaseException:
                self.close()
                raise

    async def ping(self) -> float:
        """Send a PING and wait for its PONG: the round trip now, in seconds. For an idle DIAL connection that nobody else reads.

        Raises as `send` and `receive`; close the connection when it was cancelled.
        """
        nonce = os.urandom(8)
        sent = time.monotonic()
        await self.send(Ping(nonce))
        while (message := await self.receive()) != Pong(nonce):
            if isinstance(message, Ping):
                await self.send(Pong(message.nonce))
        return time.monotonic() - sent

    async def receive(self) -> Message:
        """The next hop message. Raises Failure RELAY_UNREACHABLE at the connection's end, PROTOCOL for bytes that mean nothing."""
        try:
            while (message := self._channel.next_event()) is None:
                data = await self.stream.receive()
                if not data:
                    raise _lost()
                self._channel.receive_data(data)
        except RemoteProtocolError as error:
            raise Failure(Reason.PROTOCOL, detail=str(error)) from error
        except (OSError, anyio.ClosedResourceError) as error:
            raise _lost() from error
        return message

    def into_pipe(self) -> tuple[RawStream, bytes]:
        """End hop mode after PAIRED or SWITCH: the stream, now the caller's, and the bytes of the pipe that arrived already."""
        return self.stream, self._channel.trailing_data

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self.stream.close()


async def connect(
    relay: KnownRelay,
    identity: IdentityKey,
    *,
    purpose: Purpose,
    params: Params,
    register: Register | None = None,
    first: Sequence[Message] = (),
    passed: Callable[[Step], None] = _ignore,
) -> HopConnection:
    """Connect to `relay`, prove both identities, and send `first` in the flight that carries ours. `passed` hears of each step.

    With `register` the device is enrolled where it is not yet; otherwise it logs in. Raises Failure: RELAY_UNREACHABLE,
    RELAY_UNTRUSTED, PROTOCOL, VERSION, or what the relay answered. Cancellation closes the connection.
    """
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            stream = await _dial_relay(relay)
            passed(Step.CONNECTED)
            handshake = DeviceHandshake(
                pin=relay.id,
                identity=identity,
                register=register,
                purpose=purpose,
                params=params,
                random=os.urandom,
                ephemeral=fresh_key,
                now=int(time.time()),
                first=first,
            )
            try:
                return await _shake_hands(stream, handshake, passed)
            except BaseException:
                stream.close()
                raise
    except TimeoutError as error:
        raise Failure(Reason.RELAY_UNREACHABLE, detail=f"{relay.address} did not answer within {CONNECT_TIMEOUT:.0f} s") from error
    except OSError as error:
        raise Failure(Reason.RELAY_UNREACHABLE, detail=f"{relay.address}: {error.strerror or error}") from error
    except RemoteProtocolError as error:
        raise Failure(Reason.PROTOCOL, detail=f"{relay.address}: {error}") from error


async def _dial_relay(relay: KnownRelay) -> RawStream:
    try:
        return await dial(relay.address, allow=list, speaker=Speaker.LOCAL, timeout=CONNECT_TIMEOUT)
    except Failure as failure:
        raise Failure(Reason.RELAY_UNREACHABLE, detail=f"{relay.address}: {failure}") from failure


async def _shake_hands(stream: RawStream, handshake: DeviceHandshake, passed: Callable[[Step], None]) -> HopConnection:
    await stream.send_all(handshake.data_to_send())
    while True:
        while (event := handshake.next_event()) is None:
            data = await stream.receive()
            if data:
                handshake.receive_data(data)
            else:
                raise _lost()  # no wrong byte came: it may be restarting, or full
        await stream.send_all(handshake.data_to_send())
        if isinstance(event, RelayAuthenticated):
            passed(Step.AUTHENTICATED)
        if isinstance(event, Welcomed):
            return HopConnection(stream, event.channel, event.welcome)


def fresh_key() -> ec.EllipticCurvePrivateKey:
    """A new ephemeral P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def device_label() -> str:
    """What this machine calls itself: a label for lists that people read, never an identity."""
    return socket.gethostname()[:64]


def _lost() -> Failure:
    return Failure(Reason.RELAY_UNREACHABLE, detail="the relay closed the connection")
