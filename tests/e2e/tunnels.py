"""Two ends of a tunnel made from fixed keys: every test may own any part of them."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.handshake import Initiator, InitReceived, Responder, encapsulate
from tuunel.e2e.offer import OfferSecrets, make_offer
from tuunel.e2e.records import BUFFER_SIZE, RecordOpener, RecordSealer
from tuunel.e2e.wire import Command, Connected, Direction, Purpose, RecordType, Target
from tuunel.identity import IdentityKey
from tuunel.links import Invite, RelayLink

AGENT = IdentityKey.from_private_value(0xA6E47)
FORWARD = IdentityKey.from_private_value(0xF0E)
STRANGER = IdentityKey.from_private_value(0x57A4)
RELAY_ID = bytes(range(32))
OTHER_RELAY_ID = bytes(range(1, 33))
NOW = 1_800_000_000
INVITE = Invite(RelayLink(HostPort("relay.example.net", 7443), RELAY_ID), AGENT.device_id, bytes(range(16)))


def private_point(value: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(value, ec.SECP256R1())


def offer(identity: IdentityKey = AGENT, *, relay_id: bytes = RELAY_ID, now: int = NOW, ephemeral: int = 11) -> tuple[bytes, OfferSecrets]:
    kem = MLKEM768PrivateKey.from_seed_bytes(bytes([ephemeral]) * 64)
    return make_offer(identity, relay_id, now, ephemeral=private_point(ephemeral), kem=kem)


class Handshake:
    """One handshake, step by step, with the relay's part in the test's hands."""

    def __init__(self, *, invite: Invite | None = None, ephemeral: int = 22, now: int = NOW) -> None:
        self.buffers = BufferPool()
        self.initiator = Initiator(
            FORWARD,
            AGENT.device_id,
            RELAY_ID,
            now,
            self.buffers,
            ephemeral=private_point(ephemeral),
            encapsulate=encapsulate,
            invite=invite,
            label="laptop",
        )
        self.offer, self.secrets = offer()
        self.open = self.initiator.open_message()

    def init(self, purpose: Purpose = Purpose.CONNECT) -> bytes:
        self.initiator.receive_offer(self.offer)
        return self.initiator.init(purpose)

    def responder(self, *, public: bytes | None = None, open_message: bytes | None = None, now: int = NOW) -> Responder:
        public = FORWARD.public_bytes if public is None else public
        opened = self.open if open_message is None else open_message
        return Responder(AGENT, self.secrets, public, opened, now, buffers=self.buffers)

    def run(self) -> tuple[InitReceived, Responder]:
        responder = self.responder()
        received = responder.receive_init(self.init())
        self.initiator.receive_accept(responder.accept("home"))
        return received, responder


class Stream:
    """One direction of records under a fixed secret."""

    def __init__(self, direction: Direction = Direction.FORWARD_TO_AGENT, *, early: bool = False, opened: bool = True) -> None:
        self.buffers = BufferPool()
        self.sealer = RecordSealer(b"s" * 32, direction, early=early)
        self.opener = RecordOpener(b"s" * 32, direction, self.buffers, early=early)
        self.chunk = memoryview(bytearray(BUFFER_SIZE))
        if opened:
            self.start()

    def start(self) -> None:
        self.opener.receive_data(self.sealer.seal(RecordType.CONNECT, Target(Command.TCP, "host", 80).encode()))
        assert self.next() is not None

    def next(self) -> tuple[RecordType, bytes] | None:
        record = self.opener.open_into(self.chunk)
        return record and (record[0], bytes(self.chunk[1 : 1 + record[1]]))

    def feed(self, data: bytes) -> list[tuple[RecordType, bytes]]:
        self.opener.receive_data(data)
        records = []
        while (record := self.next()) is not None:
            records.append(record)
        return records


OPENING = {
    Direction.FORWARD_TO_AGENT: (RecordType.CONNECT, Target(Command.TCP, "host", 80).encode()),
    Direction.AGENT_TO_FORWARD: (RecordType.CONNECTED, Connected(HostPort("127.0.0.1", 40000)).encode()),
}
