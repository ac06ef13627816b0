"""A relay in the test's hands: it shakes hands as it must, and then says what the test wants."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from tests.world import LOOPBACK, PATIENCE, open_descriptors, until
from tuunel.address import HostPort
from tuunel.devices import KnownRelay
from tuunel.errors import Reason
from tuunel.identity import IdentityKey
from tuunel.listen import address_of, open_listeners, serve
from tuunel.rawstream import RawStream
from tuunel.relay.certificates import make_leaf, make_root
from tuunel.relay.client import fresh_key
from tuunel.relay.handshake import DeviceIdentified, RelayHandshake
from tuunel.relay.protocol import HopChannel
from tuunel.relay.wire import Limits, Message, Ping, Pong, Purpose

M = TypeVar("M")
IDENTITY = IdentityKey.generate()


class Gone(Exception):
    """The device has closed the connection."""


class Link:
    """One welcomed connection, at the relay."""

    def __init__(self, stream: RawStream, channel: HopChannel, device: DeviceIdentified) -> None:
        self.stream = stream
        self.channel = channel
        self.device = device

    async def say(self, *messages: Message) -> None:
        await self.stream.send_all(b"".join(self.channel.send(message) for message in messages))

    async def hear_any(self) -> Message:
        with anyio.fail_after(PATIENCE):
            while (message := self.channel.next_event()) is None:
                try:
                    data = await self.stream.receive()
                except OSError as error:
                    raise Gone from error
                if not data:
                    raise Gone
                self.channel.receive_data(data)
        return message

    async def hear(self, kind: type[M]) -> M:
        """The next message, which must be a `kind`; pings are answered."""
        while isinstance(message := await self.hear_any(), Ping) and kind is not Ping:
            await self.say(Pong(message.nonce))
        assert isinstance(message, kind), message
        return message

    async def until_gone(self) -> None:
        try:
            while True:
                await self.hear_any()
        except Gone:
            return


class ScriptedRelay:
    """Listens on loopback. `refusal` answers a device in place of WELCOME; `deaf` makes it accept and say nothing."""

    def __init__(self, address: HostPort) -> None:
        now = int(time.time())
        root = make_root(fresh_key(), now)
        self.credentials = make_leaf(root, fresh_key(), now)
        self.known = KnownRelay(root.relay_id, address, True)
        self.links: list[Link] = []
        self.streams: list[RawStream] = []
        self.refusal: tuple[Reason, int] | None = None
        self.deaf = False

    async def next(self, purpose: Purpose, count: int = 1) -> Link:
        """The `count`-th connection of this purpose."""
        found: list[Link] = []

        def there() -> bool:
            found[:] = [link for link in self.links if link.device.purpose is purpose]
            return len(found) >= count

        await until(there)
        return found[count - 1]

    async def serve(self, stream: RawStream) -> None:
        self.streams.append(stream)
        if self.deaf:
            return
        handshake = RelayHandshake(
            credentials=self.credentials,
            random=os.urandom,
            ephemeral=fresh_key,
            now=int(time.time()),
            limits=Limits(64, 64, 1024),
            observed=HostPort("203.0.113.7", 50123),
        )
        while (event := handshake.next_event()) is None:
            await stream.send_all(handshake.data_to_send())
            data = await stream.receive()
            if not data:
                stream.close()
                return
            handshake.receive_data(data)
        handshake.verify(IDENTITY.public_bytes)
        if self.refusal is not None:
            reason, retry_after = self.refusal
            await stream.send_all(handshake.refuse(reason, retry_after))
            await stream.aclose()
            return
        await stream.send_all(handshake.welcome())
        self.links.append(Link(stream, handshake.channel, event))


@asynccontextmanager
async def scripted_relay() -> AsyncIterator[tuple[ScriptedRelay, TaskGroup]]:
    """The relay, and a group for the tasks under test: cancelled at the end, when nothing may be left open."""
    await anyio.to_thread.run_sync(lambda: None)
    before = open_descriptors()
    (listener,) = await open_listeners(LOOPBACK)
    relay = ScriptedRelay(address_of(listener))
    try:
        async with anyio.create_task_group() as serving:
            serving.start_soon(serve, [listener], relay.serve, serving)
            async with anyio.create_task_group() as tasks:
                yield relay, tasks
                tasks.cancel_scope.cancel()
            serving.cancel_scope.cancel()
    finally:
        for stream in relay.streams:
            stream.close()
    assert open_descriptors() == before, "a descriptor was left open"
