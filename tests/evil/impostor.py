"""The relay in the middle: it shakes hands with each side in the other's name, reads what both say, and changes it.

It has every key but the two that matter: it knows both identity keys' public halves, and signs with its own.
"""

import time
from contextlib import suppress

import anyio
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tests.evil.relay import GONE, Plot
from tests.evil.stage import Stage
from tuunel.buffers import MAX_BODY, BufferPool
from tuunel.e2e.handshake import Initiator, InitReceived, Responder
from tuunel.e2e.offer import OfferSecrets, make_offer
from tuunel.e2e.wire import Command, Target
from tuunel.errors import TuunelError
from tuunel.establish import initiate, respond
from tuunel.identity import DeviceID, IdentityKey
from tuunel.pump import PumpEnd
from tuunel.rawstream import RawStream, receive_chunk, send_bytes
from tuunel.relay.client import fresh_key
from tuunel.relay.switchboard import Pipe
from tuunel.relay.wire import PairedAgent
from tuunel.tunnel import Tunnel

OWN = IdentityKey.generate()  #: the relay's own device
FAILED = (*GONE, TuunelError, TimeoutError, anyio.IncompleteRead)


class Mask:
    """A name over the relay's own signatures. With `device` it answers to that device ID, whatever its key is."""

    def __init__(self, public: bytes, device: DeviceID | None = None) -> None:
        self.public_bytes = public
        self.device_id = device or DeviceID.from_public_key(public)

    def sign(self, label: str, digest: bytes) -> bytes:
        return OWN.sign(label, digest)


def altered(data: bytes) -> bytes:
    return data.replace(b"0", b"O")


class Middle(Plot):
    """Pose as the agent to the forward proxy, and as the forward proxy to the agent. What it reads is in `read`."""

    def __init__(self, stage: Stage, *, as_agent: Mask | IdentityKey | None = None, as_client: Mask | IdentityKey | None = None) -> None:
        super().__init__()
        self.read = bytearray()
        self.buffers = BufferPool()
        self._relay = stage.known.id
        self._agent_id = stage.device.id
        self._decoy = Target(Command.TCP, "", stage.decoy.port)
        self._as_agent = as_agent or Mask(stage.agent_identity.public_bytes)
        self._as_client = as_client or Mask(stage.client.public_bytes)
        self._asked: PairedAgent
        self._genuine = b""
        self._secrets: OfferSecrets
        self._initiator: Initiator

    def paired(self, paired: PairedAgent) -> PairedAgent:
        """To the agent: an OPEN with the relay's own key."""
        self._asked = paired
        self._initiator = Initiator(
            self._as_client, self._agent_id, self._relay, int(time.time()), self.buffers, ephemeral=fresh_key(), label="me"
        )
        return PairedAgent(self._as_client.public_bytes, self._initiator.open_message())

    def offer(self, offer: bytes) -> bytes:
        """To the forward proxy: an offer with the relay's own keys."""
        self._genuine = offer
        now, kem = int(time.time()), MLKEM768PrivateKey.generate()
        forged, self._secrets = make_offer(self._as_agent, self._relay, now, ephemeral=fresh_key(), kem=kem)
        return forged

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        await self.answer(pipe)
        await self.switch(pipe)
        with suppress(*FAILED):
            await self.between(pipe)
        pipe.forward.stream.reset()
        pipe.agent.stream.reset()
        assert self.buffers.lent == 0
        return PumpEnd.RESET

    async def between(self, pipe: Pipe) -> None:
        try:
            client, target = await self.as_agent(pipe.forward.stream)
        except FAILED:
            # the forward proxy has noticed: then at least the agent
            await self.as_client(pipe.agent.stream, self._decoy)
            return
        agent = await self.as_client(pipe.agent.stream, target)
        await client.answer_connected(agent.stream.local)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._copy, client, agent)
            tasks.start_soon(self._copy, agent, client)

    async def as_agent(self, stream: RawStream) -> tuple[Tunnel, Target]:
        async def admit(_: InitReceived) -> None:
            return

        asked = self._asked
        responder = Responder(self._as_agent, self._secrets, asked.public_key, asked.open, int(time.time()), buffers=self.buffers)
        tunnel, _ = await respond(stream, b"", responder, self.buffers, admit=admit, label="home")
        return tunnel, await tunnel.requested()

    async def as_client(self, stream: RawStream, target: Target) -> Tunnel:
        self._initiator.receive_offer(self._genuine)
        tunnel = await initiate(stream, self._initiator, self.buffers, target=target, answer_within=10)
        await tunnel.answer(10)
        return tunnel

    async def _copy(self, source: Tunnel, sink: Tunnel) -> None:
        with suppress(*FAILED):
            while data := await self._receive(source):
                self.read += data
                changed = altered(data)
                await send_bytes(sink, self.buffers, changed)
            await sink.write_eof()
            return
        source.reset()
        sink.reset()

    async def _receive(self, source: Tunnel) -> bytes:
        return await receive_chunk(source, self.buffers, MAX_BODY)


class Host(Middle):
    """Pose as the agent, and tell the app what the relay likes."""

    async def between(self, pipe: Pipe) -> None:
        client, _ = await self.as_agent(pipe.forward.stream)
        await client.answer_connected(pipe.forward.stream.local)
        self.read += await self._receive(client)
        lie = b"told by the relay\n"
        await send_bytes(client, self.buffers, lie)
        await client.write_eof()
        while self.read and await self._receive(client):
            pass
        await client.aclose()
