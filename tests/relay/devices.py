"""A small device for tests of the relay: it speaks the hop protocol and nothing of what lies inside a tunnel."""

import os
import socket
import time
from collections.abc import Sequence
from typing import TypeVar

import anyio
from cryptography.hazmat.primitives.asymmetric import ec

from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError
from tuunel.identity import DeviceID, IdentityKey
from tuunel.links import RelayLink
from tuunel.rawstream import RawStream
from tuunel.relay.handshake import DeviceHandshake, Register, Welcomed
from tuunel.relay.protocol import HopChannel
from tuunel.relay.wire import Demand, Message, Offer, Open, OpenRequest, Params, Ping, Pong, Purpose, Role, Welcome

M = TypeVar("M")


class Gone(Exception):
    """The relay has closed or reset the connection."""


async def connect(address: HostPort) -> RawStream:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        sock.connect_ex((address.host, address.port))
        await anyio.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return RawStream(sock)


class Hop:
    """One welcomed connection."""

    def __init__(self, stream: RawStream, channel: HopChannel, welcome: Welcome) -> None:
        self.stream = stream
        self.channel = channel
        self.welcome = welcome

    async def send(self, *messages: Message) -> None:
        await self.stream.send_all(b"".join(self.channel.send(message) for message in messages))

    async def receive_any(self) -> Message:
        try:
            while (message := self.channel.next_event()) is None:
                data = await self.stream.receive(self.channel.bytes_wanted)
                if not data:
                    raise Gone
                self.channel.receive_data(data)
        except OSError as error:
            raise Gone from error
        return message

    async def receive(self, kind: type[M]) -> M:
        """The next message, which must be a `kind`, but for pings, which are answered, and for demand, which may come at any time."""
        while isinstance(message := await self.receive_any(), Ping | Demand) and not isinstance(message, kind):
            if isinstance(message, Ping):
                await self.send(Pong(message.nonce))
        assert isinstance(message, kind), message
        return message

    async def is_closed(self) -> bool:
        try:
            while True:
                await self.receive_any()
        except (Gone, RemoteProtocolError):
            return True

    async def synchronise(self) -> None:
        """Return when the relay has handled everything sent before."""
        nonce = os.urandom(8)
        await self.send(Ping(nonce))
        assert await self.receive(Pong) == Pong(nonce)

    def close(self) -> None:
        self.stream.close()


class Device:
    """A device with a key, at one relay."""

    def __init__(self, link: RelayLink, role: Role, *, identity: IdentityKey | None = None, instance: bytes = b"") -> None:
        self.link = link
        self.identity = identity or IdentityKey.generate()
        self.params = Params(role, instance or os.urandom(16))
        self.hops: list[Hop] = []

    @property
    def id(self) -> DeviceID:
        return self.identity.device_id

    async def connect(self, purpose: Purpose, *first: Message, register: Register | None = None) -> Hop:
        stream = await connect(self.link.address)
        try:
            hop = await self._shake_hands(stream, purpose, first, register)
        except OSError as error:
            stream.close()
            raise Gone from error
        except BaseException:
            stream.close()
            raise
        self.hops.append(hop)
        return hop

    async def _shake_hands(self, stream: RawStream, purpose: Purpose, first: Sequence[Message], register: Register | None) -> Hop:
        handshake = self.handshake(purpose, first, register)
        await stream.send_all(handshake.data_to_send())
        while True:
            while (event := handshake.next_event()) is None:
                data = await stream.receive(handshake.bytes_wanted)
                if not data:
                    handshake.receive_eof()
                handshake.receive_data(data)
            await stream.send_all(handshake.data_to_send())
            if isinstance(event, Welcomed):
                return Hop(stream, event.channel, event.welcome)

    def handshake(self, purpose: Purpose, first: Sequence[Message] = (), register: Register | None = None) -> DeviceHandshake:
        return DeviceHandshake(
            pin=self.link.pin,
            identity=self.identity,
            register=register,
            purpose=purpose,
            params=self.params,
            random=os.urandom,
            ephemeral=lambda: ec.generate_private_key(ec.SECP256R1()),
            now=int(time.time()),
            first=first,
        )

    async def enrol(self, token: bytes | None, label: str = "a test") -> Hop:
        """Register on a control connection."""
        return await self.connect(Purpose.CONTROL, register=Register(token, label))

    async def ready(self, offer: bytes | None = None) -> Hop:
        return await self.connect(Purpose.READY, Offer(offer or make_offer()))

    async def dial(self, *first: Message) -> Hop:
        return await self.connect(Purpose.DIAL, *first)

    def close(self) -> None:
        for hop in self.hops:
            hop.close()


def make_offer() -> bytes:
    """Bytes of an OFFER's size; the relay reads nothing of it but where the point lies."""
    return b"\x01" + os.urandom(1418)


def make_open(target: DeviceID, invite_id: bytes = b"") -> Open:
    point = b"\x04" + os.urandom(64)
    return Open(OpenRequest(1, 1 if invite_id else 0, target, point, invite_id).encode())
