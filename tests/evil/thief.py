"""A device that the forward proxy trusts, in league with the relay: it takes the client's signature to another agent."""

import time
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tests.evil.impostor import FAILED, Middle
from tests.evil.stage import Stage
from tuunel.e2e import handshake, keyschedule
from tuunel.e2e.handshake import Initiator
from tuunel.e2e.offer import make_offer
from tuunel.e2e.wire import KEM_CIPHERTEXT, Init
from tuunel.identity import DeviceID, IdentityKey, ecdh
from tuunel.pump import PumpEnd
from tuunel.relay.client import fresh_key
from tuunel.relay.switchboard import Pipe
from tuunel.relay.wire import OpenRequest, PairedAgent


class StolenName:
    """The client's public key, and the one signature of it that the thief has seen."""

    def __init__(self, public: bytes, signature: bytes) -> None:
        self.public_bytes = public
        self.device_id = DeviceID.from_public_key(public)
        self._signature = signature

    def sign(self, label: str, digest: bytes) -> bytes:
        return self._signature


class Thief(Middle):
    """Answer as `device`, whose key the relay has, open the client's INIT, and use its signature at the agent that it robs."""

    def __init__(self, stage: Stage, device: IdentityKey) -> None:
        super().__init__(stage)
        self._stage, self._device = stage, device
        self.stolen = b""

    def paired(self, paired: PairedAgent) -> PairedAgent:
        self._asked = paired
        return paired

    def offer(self, offer: bytes) -> bytes:
        self._point, self._kem = fresh_key(), MLKEM768PrivateKey.generate()
        self._own_offer, _ = make_offer(self._device, self._relay, int(time.time()), ephemeral=self._point, kem=self._kem)
        return self._own_offer

    async def carry(self, pipe: Pipe) -> PumpEnd:
        self.struck += 1
        await self.answer(pipe)
        await self.switch(pipe)
        init = await pipe.forward.stream.receive_exactly(handshake.INIT_HEADER)
        init += await pipe.forward.stream.receive_exactly(handshake.sealed_length(init))
        self.stolen = self._open(init).signature
        with suppress(*FAILED):
            await self._rob()
        pipe.forward.stream.reset()
        return PumpEnd.RESET

    def _open(self, init: bytes) -> Init:
        ciphertext = init[:KEM_CIPHERTEXT]
        keyed = handshake.keyed_transcript(self._own_offer, self._asked.open, ciphertext)
        shared = ecdh(self._point, OpenRequest.decode(self._asked.open).point)
        hs = keyschedule.handshake_secret(keyed, shared, self._kem.decapsulate(ciphertext))
        return Init.decode(keyschedule.open_init(hs, init[KEM_CIPHERTEXT:]))

    async def _rob(self) -> None:
        client = StolenName(self._asked.public_key, self.stolen)
        robbed = self._stage.device.id
        self._initiator = Initiator(client, robbed, self._relay, int(time.time()), self.buffers, ephemeral=fresh_key())
        ready = await self._stage.tunnels.approach(robbed, PairedAgent(client.public_bytes, self._initiator.open_message()))
        self._genuine = ready.offer.body
        try:
            (await self.as_client(ready.stream, self._decoy)).reset()
        finally:
            self._stage.tunnels._drop(ready)
