"""The end-to-end handshake: the forward proxy (initiator) and the agent (responder) agree on keys that the relay cannot know.

    R -> F  OFFER    signed one-time keys, through the relay          e2e.offer        Initiator.receive_offer
    F -> R  OPEN     in clear to the relay                            .open_message    Responder(...)
    F -> R  INIT     first bytes through the pipe                     .init            .receive_init
    R -> F  ACCEPT   or a refusal, equally authenticated              .receive_accept  .accept / .refuse

P-256 and ML-KEM-768 together, HKDF-SHA-256, ChaCha20-Poly1305, ECDSA P-256. One suite, nothing to negotiate.
Source: docs/spec/end-to-end.md.
"""

import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from tuunel.e2e.keyschedule import (
    LENGTH,
    digest,
    handshake_secret,
    keyed_transcript,
    open_accept,
    open_init,
    record_secret,
    seal_accept,
    seal_init,
    sealed_length,
)
from tuunel.e2e.offer import OfferSecrets, OneTimeKeys, check_offer, make_offer, verify_peer
from tuunel.e2e.params import Parameters
from tuunel.e2e.records import Buffers, RecordOpener, RecordSealer
from tuunel.e2e.wire import (
    KEM_CIPHERTEXT,
    POINT,
    VERSION,
    Accept,
    Direction,
    Init,
    InviteProof,
    Offer,
    Purpose,
)
from tuunel.errors import Failure, LocalProtocolError, PeerMismatch, Reason, RemoteProtocolError, Speaker
from tuunel.identity import DeviceID, IdentityKey, ecdh, encode_point
from tuunel.links import Invite
from tuunel.relay.wire import AGENT_POINT_AT, OpenRequest, tunnel_id

__all__ = [
    "ACCEPT_HEADER",
    "INIT_HEADER",
    "InitReceived",
    "Initiator",
    "OfferSecrets",
    "Responder",
    "encapsulate",
    "make_offer",
    "sealed_length",
]

INIT_HEADER: Final = KEM_CIPHERTEXT + LENGTH  #: read this many bytes of INIT, then `sealed_length` of them
ACCEPT_HEADER: Final = LENGTH  #: read this many bytes of ACCEPT, then `sealed_length` of them

_INITIATOR_LABEL: Final = "tuunel/1 e2e initiator"
_RESPONDER_LABEL: Final = "tuunel/1 e2e responder"

Encapsulate = Callable[[bytes], tuple[bytes, bytes]]


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh shared secret (32 bytes) and its ciphertext (1088 bytes) for an ML-KEM-768 key; RemoteProtocolError when that is no key."""
    try:
        return MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    except ValueError:
        raise RemoteProtocolError("an offer has no ML-KEM-768 key") from None


class _Step(Enum):
    NEW = "new"
    OPENED = "opened"
    OFFERED = "offered"
    INITIATED = "initiated"
    ANSWERED = "answered"
    DEAD = "dead"


class _Core(ABC):
    """What both sides share: the step they are at, and that a step that fails leaves nothing behind."""

    def __init__(self, identity: IdentityKey, buffers: Buffers) -> None:
        self._identity = identity
        self._buffers = buffers
        self._step = _Step.NEW
        self._hs: bytes | None = None
        self._sealer: RecordSealer | None = None
        self._opener: RecordOpener | None = None
        self._tunnel_id = ""

    @property
    def tunnel_id(self) -> str:
        """The name under which all three parties log this tunnel; "" before both ephemeral keys are known."""
        return self._tunnel_id

    @property
    def sealer(self) -> RecordSealer:
        """Seals this side's records, as soon as this side's last handshake message is made."""
        if self._sealer is None:
            raise LocalProtocolError("there are no keys to seal with yet")
        return self._sealer

    @property
    def opener(self) -> RecordOpener:
        """Opens the peer's records, as soon as the peer's last handshake message has been verified."""
        if self._opener is None:
            raise LocalProtocolError("there are no keys to open with yet")
        return self._opener

    def close(self) -> None:
        """Drop every secret and buffer, of sealer and opener too. May be called at any time, more than once."""
        self._step = _Step.DEAD
        self._hs = None
        self._drop_keys()
        if self._sealer is not None:
            self._sealer.close()
        if self._opener is not None:
            self._opener.close()

    @abstractmethod
    def _drop_keys(self) -> None:
        """Forget the one-time private keys."""

    def _enter(self, expected: _Step, step: _Step) -> None:
        if self._step is not expected:
            raise LocalProtocolError(f"the handshake is {self._step.value}, not {expected.value}")
        self._step = step

    @contextmanager
    def _advance(self, expected: _Step, step: _Step) -> Iterator[None]:
        """Take one step; when it fails, drop everything."""
        self._enter(expected, step)
        try:
            yield
        except BaseException:
            self.close()
            raise


class Initiator(_Core):
    """The forward proxy's side of one tunnel: `open_message`, `receive_offer`, `init`, `receive_accept`, each once, in that order.

    A step that raises ends the handshake: every secret is dropped and each further step is LocalProtocolError. `ephemeral` must
    be fresh; `now` is in unix seconds; `relay_id` is of the relay that this machine has authenticated and sends OPEN to.
    """

    def __init__(
        self,
        identity: IdentityKey,
        device: DeviceID,
        relay_id: bytes,
        now: int,
        buffers: Buffers,
        *,
        ephemeral: ec.EllipticCurvePrivateKey,
        encapsulate: Encapsulate = encapsulate,
        invite: Invite | None = None,
        label: str = "",
    ) -> None:
        super().__init__(identity, buffers)
        if invite is not None and invite.device != device:
            raise LocalProtocolError("the invite is of another device")
        self._device = device
        self._relay_id = relay_id
        self._now = now
        self._ephemeral: ec.EllipticCurvePrivateKey | None = ephemeral
        self._encapsulate = encapsulate
        self._invite = invite
        self._label = label
        self._point = encode_point(ephemeral.public_key())
        flags, invite_id = (OpenRequest.HAS_INVITE, invite.invite_id) if invite else (0, b"")
        self._open = OpenRequest(VERSION, flags, device, self._point, invite_id).encode()
        self._offer: Offer | None = None
        self._offer_bytes = b""
        self._t4 = b""
        self._peer = Parameters()

    @property
    def peer_label(self) -> str:
        """What the agent's machine calls itself, once it has accepted: untrusted text."""
        return self._peer.label

    @property
    def peer_commands(self) -> frozenset[int]:
        """The codes of CONNECT that the agent takes besides 1 to 3, once it has accepted."""
        return self._peer.commands

    def open_message(self) -> bytes:
        """The body of OPEN."""
        self._enter(_Step.NEW, _Step.OPENED)
        return self._open

    def receive_offer(self, data: bytes) -> None:
        """Check the offer that the relay gave for OPEN; what it may raise is `check_offer`'s."""
        with self._advance(_Step.OPENED, _Step.OFFERED):
            offer = check_offer(data, self._device, self._relay_id, self._now)
            self._offer, self._offer_bytes = offer, data
            self._tunnel_id = tunnel_id(offer.ephemeral, self._point)

    def init(self, purpose: Purpose) -> bytes:
        """INIT as it is sent. `sealer` works from here on: app data may follow in the same write."""
        with self._advance(_Step.OFFERED, _Step.INITIATED):
            offer, ephemeral, invite = self._offer, self._ephemeral, self._invite
            assert offer is not None
            assert ephemeral is not None
            shared, ciphertext = self._encapsulate(offer.kem_public)
            keyed = keyed_transcript(self._offer_bytes, self._open, ciphertext)
            hs = self._hs = handshake_secret(keyed, ecdh(ephemeral, offer.ephemeral), shared)
            self._drop_keys()
            own = self._identity.public_bytes
            t3 = digest(keyed, own)
            proof = None if invite is None else InviteProof(invite.invite_id, hmac.digest(invite.proof_key, t3, "sha256"))
            plaintext = Init(own, self._identity.sign(_INITIATOR_LABEL, t3), proof, purpose, Parameters(self._label)).encode()
            self._t4 = digest(t3, plaintext[POINT:])
            secret = record_secret(hs, Direction.FORWARD_TO_AGENT, self._t4)
            self._sealer = RecordSealer(secret, Direction.FORWARD_TO_AGENT, early=True)
            return ciphertext + seal_init(hs, plaintext)

    def receive_accept(self, data: bytes) -> None:
        """Check ACCEPT (header included) and finish: `opener` works from here on.

        Failure, spoken by the agent: it refuses this machine. PeerMismatch: the answer is not signed by the device asked for.
        RemoteProtocolError: it is no answer to this INIT.
        """
        with self._advance(_Step.INITIATED, _Step.ANSWERED):
            hs, self._hs = self._hs, None
            assert hs is not None
            assert self._offer is not None
            plaintext = open_accept(hs, self._t4, data)
            accept = Accept.decode(plaintext)
            verify_peer(self._offer.identity, _RESPONDER_LABEL, self._t4, accept.signature)
            if accept.refusal is not None:
                raise Failure(accept.refusal, Speaker.AGENT)
            secret = record_secret(hs, Direction.AGENT_TO_FORWARD, digest(self._t4, plaintext))
            self._opener = RecordOpener(secret, Direction.AGENT_TO_FORWARD, self._buffers)
            self.sealer.peer_authenticated()
            self._peer = accept.params

    def _drop_keys(self) -> None:
        self._ephemeral = None
        self._invite = None


@dataclass(frozen=True, slots=True)
class InitReceived:
    """Who asks for the tunnel, proven; nothing is answered yet. `label` is untrusted text.

    `proof` is HMAC-SHA256(proof key, t3), unchecked: only the book of invites knows the key.
    """

    device: DeviceID
    label: str
    purpose: Purpose
    invite_id: bytes | None
    proof: bytes | None = field(repr=False)
    t3: bytes = field(repr=False)


class Responder(_Core):
    """The agent's side of one tunnel: `receive_init`, then `accept` or `refuse`. Takes the offer's keys, whatever comes after.

    `peer_public` and `open_message` are what PAIRED says: the relay's word, checked against INIT. A step that raises ends the handshake:
    every secret is dropped and each further step is LocalProtocolError. `now` is in unix seconds.
    """

    def __init__(
        self, identity: IdentityKey, offer: OfferSecrets, peer_public: bytes, open_message: bytes, now: int, *, buffers: Buffers
    ) -> None:
        super().__init__(identity, buffers)
        self._keys: OneTimeKeys | None = offer.take()
        self._offer = offer.offer
        self._not_after = offer.not_after
        self._now = now
        self._peer_public = peer_public
        self._open = open_message
        self._t4 = b""

    def receive_init(self, data: bytes) -> InitReceived:
        """Check INIT (header included). The caller asks its grants about `device`, then calls `accept` or `refuse`.

        PeerMismatch: OPEN names another device, or INIT is not from the device that the relay named or not signed by it.
        RemoteProtocolError: it is no INIT for this offer and this OPEN, or the offer is out of date.
        """
        with self._advance(_Step.NEW, _Step.INITIATED):
            request = self._check_open()
            hs, keyed = self._agree(request, data[:KEM_CIPHERTEXT])
            plaintext = open_init(hs, data[KEM_CIPHERTEXT:])
            init = Init.decode(plaintext)
            if not hmac.compare_digest(init.identity, self._peer_public):
                raise PeerMismatch("INIT is not from the device that the relay named")
            t3 = digest(keyed, init.identity)
            verify_peer(init.identity, _INITIATOR_LABEL, t3, init.signature)
            if (init.invite.id if init.invite else None) != request.invite_id:
                raise RemoteProtocolError("INIT and OPEN name different invites")
            self._hs = hs
            self._t4 = digest(t3, plaintext[POINT:])
            secret = record_secret(hs, Direction.FORWARD_TO_AGENT, self._t4)
            self._opener = RecordOpener(secret, Direction.FORWARD_TO_AGENT, self._buffers, early=True)
            invite_id, proof = (init.invite.id, init.invite.proof) if init.invite else (None, None)
            return InitReceived(DeviceID.from_public_key(init.identity), init.params.label, init.purpose, invite_id, proof, t3)

    def accept(self, label: str = "", commands: frozenset[int] = frozenset()) -> bytes:
        """ACCEPT as it is sent, with the commands to announce; `sealer` works from here on, and `opener` takes large records."""
        with self._advance(_Step.INITIATED, _Step.ANSWERED):
            hs, plaintext = self._answer(None, Parameters(label, commands))
            secret = record_secret(hs, Direction.AGENT_TO_FORWARD, digest(self._t4, plaintext))
            self._sealer = RecordSealer(secret, Direction.AGENT_TO_FORWARD)
            self.opener.peer_authenticated()
            return seal_accept(hs, self._t4, plaintext)

    def refuse(self, reason: Reason) -> bytes:
        """ACCEPT with the reason why not, as it is sent; the tunnel ends with it and every secret is dropped."""
        with self._advance(_Step.INITIATED, _Step.ANSWERED):
            hs, plaintext = self._answer(reason, Parameters())
            self.close()
            return seal_accept(hs, self._t4, plaintext)

    def _check_open(self) -> OpenRequest:
        request = OpenRequest.decode(self._open)
        if request.device != self._identity.device_id:
            raise PeerMismatch("the relay handed over an OPEN for another device")
        if self._not_after < self._now:
            raise RemoteProtocolError("the offer is out of date")
        self._tunnel_id = tunnel_id(self._offer[AGENT_POINT_AT : AGENT_POINT_AT + POINT], request.point)
        return request

    def _agree(self, request: OpenRequest, ciphertext: bytes) -> tuple[bytes, bytes]:
        """The handshake secret and t2'; the one-time keys are gone behind it."""
        keys, self._keys = self._keys, None
        assert keys is not None
        if len(ciphertext) != KEM_CIPHERTEXT:
            raise RemoteProtocolError("INIT is cut short")
        keyed = keyed_transcript(self._offer, self._open, ciphertext)
        return handshake_secret(keyed, ecdh(keys.ephemeral, request.point), keys.kem.decapsulate(ciphertext)), keyed

    def _answer(self, refusal: Reason | None, params: Parameters) -> tuple[bytes, bytes]:
        """The handshake secret, taken out, and the plaintext of ACCEPT."""
        hs, self._hs = self._hs, None
        assert hs is not None
        return hs, Accept(refusal, self._identity.sign(_RESPONDER_LABEL, self._t4), params).encode()

    def _drop_keys(self) -> None:
        self._keys = None
