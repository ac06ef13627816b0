"""The end-to-end handshake at both ends: the harness holds the keys, so that the parsers behind them are reached."""

import copy
from typing import Any, Final

from tests.e2e.tunnels import AGENT, FORWARD, INVITE, NOW, RELAY_ID, STRANGER, private_point
from tests.e2e.tunnels import offer as make_offer
from tests.fuzz.harness import Choices, harness
from tuunel.buffers import BufferPool
from tuunel.e2e.handshake import Initiator, InitReceived, Responder
from tuunel.e2e.keyschedule import T0, digest, handshake_secret, keyed_transcript, seal_accept, seal_init, sealed_length
from tuunel.e2e.offer import OFFER_LABEL, OfferSecrets
from tuunel.e2e.params import Parameters
from tuunel.e2e.records import RecordSealer
from tuunel.e2e.wire import (
    HANDSHAKE_CEILING,
    KEM_CIPHERTEXT,
    PAD_BLOCK,
    POINT,
    SIGNATURE,
    Accept,
    Direction,
    Init,
    InviteProof,
    Offer,
    Purpose,
)
from tuunel.errors import Failure, LocalProtocolError, PeerMismatch, Reason, RemoteProtocolError, Speaker
from tuunel.identity import ecdh, encode_point
from tuunel.relay.wire import OpenRequest

_FORWARD_KEY: Final = private_point(22)
_AGENT_KEY: Final = private_point(11)
_OFFER: Final = make_offer()[0]
_SHARED: Final = b"k" * 32  # what the KEM would agree on: its own work is not a parser's
_CIPHERTEXT: Final = b"c" * KEM_CIPHERTEXT
_OPEN: Final = OpenRequest(1, 0, AGENT.device_id, encode_point(_FORWARD_KEY.public_key()), b"").encode()
_OPEN_INVITED: Final = OpenRequest(1, 1, AGENT.device_id, encode_point(_FORWARD_KEY.public_key()), INVITE.invite_id).encode()


class _Kem:
    """A decapsulator that always agrees."""

    def decapsulate(self, ciphertext: bytes, /) -> bytes:
        """The secret that both ends of these harnesses share."""
        return _SHARED


def _initiator() -> Initiator:
    initiator = Initiator(
        FORWARD,
        AGENT.device_id,
        RELAY_ID,
        NOW,
        BufferPool(),
        ephemeral=_FORWARD_KEY,
        encapsulate=lambda public: (_SHARED, _CIPHERTEXT),
        label="laptop",
    )
    assert initiator.open_message() == _OPEN
    return initiator


def _whole_blocks(plaintext: bytes) -> bytes:
    """A plaintext that has a possible length: the length itself is `sealed_length`'s matter."""
    plaintext = plaintext[:HANDSHAKE_CEILING]
    return plaintext + bytes(-len(plaintext) % PAD_BLOCK or PAD_BLOCK * (not plaintext))


@harness(
    max_length=1430,
    seeds=[
        b"\0" + _OFFER,
        b"\1" + _OFFER[:-SIGNATURE],
        b"\2" + _OFFER[:-SIGNATURE],
        b"\1" + Offer(1, bytes(65), bytes(1184), NOW - 1, RELAY_ID, AGENT.public_bytes, b"").signature + _OFFER[1:-SIGNATURE],
    ],
)
def offer(data: bytes) -> None:
    """Any offer is the asked device's, for this relay and in date, and starts a handshake, or ends it in a named error for good."""
    choices = Choices(data)
    mode, data = choices.byte() % 3, choices.rest()
    if mode:
        data += (AGENT if mode == 1 else STRANGER).sign(OFFER_LABEL, digest(T0, data))
    initiator = _initiator()
    try:
        initiator.receive_offer(data)
    except (Failure, RemoteProtocolError) as error:
        if isinstance(error, Failure) and not isinstance(error, PeerMismatch) and error.reason is not Reason.TUNNEL_LOST:
            raise
        return _check_over(initiator)
    assert mode == 1 or data == _OFFER, "an offer was believed without its signature"
    checked = Offer.decode(data)
    assert checked.identity == AGENT.public_bytes
    assert checked.relay_id == RELAY_ID
    assert checked.not_after >= NOW
    assert checked.encode() == data
    assert len(initiator.init(Purpose.CONNECT)) > KEM_CIPHERTEXT
    return None


def _check_over(core: Initiator | Responder) -> None:
    assert core._hs is None
    assert core._sealer is None or core._sealer._cipher is None
    assert core._opener is None or core._opener._cipher is None
    try:
        if isinstance(core, Initiator):
            core.init(Purpose.CONNECT)
        else:
            core.accept()
    except LocalProtocolError:
        return
    raise AssertionError("a dead handshake goes on")


_HS_INIT: Final = {
    opened: handshake_secret(
        keyed_transcript(_OFFER, opened, _CIPHERTEXT), ecdh(_FORWARD_KEY, encode_point(_AGENT_KEY.public_key())), _SHARED
    )
    for opened in (_OPEN, _OPEN_INVITED)
}
_INIT_TAIL: Final = Init(FORWARD.public_bytes, bytes(SIGNATURE), None, Purpose.CONNECT, Parameters("laptop")).encode()[POINT + SIGNATURE :]
_INIT_TAIL_INVITED: Final = Init(
    FORWARD.public_bytes, bytes(SIGNATURE), InviteProof(INVITE.invite_id, b"p" * 32), Purpose.STANDBY, Parameters()
).encode()[POINT + SIGNATURE :]


@harness(
    max_length=1900,
    seeds=[
        b"\0" + _INIT_TAIL,
        b"\1" + _INIT_TAIL_INVITED,
        b"\2" + FORWARD.public_bytes + bytes(SIGNATURE) + _INIT_TAIL,
        b"\4" + _CIPHERTEXT + seal_init(_HS_INIT[_OPEN], bytes(256)),
        b"\5" + _OPEN,
        b"\5" + _OPEN_INVITED,
    ],
)
def init(data: bytes) -> None:
    """Any INIT behind good keys, and any OPEN, is a proven device's in one spelling, or ends the handshake in a named error for good."""
    choices = Choices(data)
    mode, data = choices.byte() % 6, choices.rest()
    opened = _OPEN_INVITED if mode in (1, 3) else _OPEN
    hs = _HS_INIT[opened]
    if mode < 2:  # signed: what is chosen stands behind the signature
        t3 = digest(keyed_transcript(_OFFER, opened, _CIPHERTEXT), FORWARD.public_bytes)
        plaintext = _whole_blocks(FORWARD.public_bytes + FORWARD.sign("tuunel/1 e2e initiator", t3) + data)
        message = _CIPHERTEXT + seal_init(hs, plaintext)
    elif mode < 4:
        plaintext = _whole_blocks(data)
        message = _CIPHERTEXT + seal_init(hs, plaintext)
    else:
        plaintext, message = b"", (data if mode == 4 else _CIPHERTEXT + seal_init(hs, bytes(PAD_BLOCK)))
        opened = data if mode == 5 else opened
    responder = Responder(AGENT, OfferSecrets(_OFFER, NOW, _AGENT_KEY, _Kem()), FORWARD.public_bytes, opened, NOW, buffers=BufferPool())
    try:
        received = responder.receive_init(message)
    except (RemoteProtocolError, PeerMismatch):
        return _check_over(responder)
    assert mode < 2, "an INIT was believed without its signature"
    return _check_received(responder, received, plaintext, opened)


def _check_received(responder: Responder, received: InitReceived, plaintext: bytes, opened: bytes) -> None:
    assert received.device == FORWARD.device_id
    assert received.invite_id == OpenRequest.decode(opened).invite_id
    assert len(received.label.encode()) <= 64
    decoded = Init.decode(plaintext)
    assert Init.decode(decoded.encode()) == decoded
    if responder._t4[0] % 2:
        assert responder.refuse(Reason.NOT_PAIRED)
        assert responder._hs is None
    else:
        assert responder.accept("home")
        assert responder.sealer


class _Waiting:
    """An initiator that waits for ACCEPT, made once and copied for each input."""

    def __init__(self) -> None:
        self._initiator = _initiator()
        self._initiator.receive_offer(_OFFER)
        self._initiator.init(Purpose.CONNECT)
        self.hs, self.t4 = self._initiator._hs or b"", self._initiator._t4

    def initiator(self) -> Initiator:
        """One more of them, whose keys die with it."""
        initiator: Any = copy.copy(self._initiator)
        initiator._sealer = RecordSealer(b"s" * 32, Direction.FORWARD_TO_AGENT, early=True)
        return initiator


_WAITING: Final = _Waiting()
_ACCEPT_TAIL: Final = Accept(None, bytes(SIGNATURE), Parameters("home", frozenset({4}))).encode()[1 + SIGNATURE :]


@harness(
    max_length=800,
    seeds=[
        b"\0\0" + _ACCEPT_TAIL,
        b"\0\1" + _ACCEPT_TAIL,
        b"\1" + Accept(None, bytes(SIGNATURE), Parameters("home")).encode(),
        b"\2" + seal_accept(_WAITING.hs, _WAITING.t4, bytes(PAD_BLOCK)),
    ],
)
def accept(data: bytes) -> None:
    """Any ACCEPT behind good keys is the asked device's answer, its refusal, or ends the handshake in a named error for good."""
    choices = Choices(data)
    mode, data = choices.byte() % 3, choices.rest()
    if mode == 0:  # signed
        data = data[:1].ljust(1, b"\0") + AGENT.sign("tuunel/1 e2e responder", _WAITING.t4) + data[1:]
    message = data if mode == 2 else seal_accept(_WAITING.hs, _WAITING.t4, _whole_blocks(data))
    initiator = _WAITING.initiator()
    try:
        initiator.receive_accept(message)
    except (Failure, RemoteProtocolError) as error:
        if isinstance(error, Failure) and not isinstance(error, PeerMismatch) and (mode or error.speaker is not Speaker.AGENT):
            raise
        return _check_over(initiator)
    assert mode == 0, "an ACCEPT was believed without its signature"
    assert initiator.opener
    assert len(initiator.peer_label.encode()) <= 64
    assert initiator.peer_commands <= set(range(256))
    return None


@harness(max_length=1200, seeds=[b"\x01\x10", bytes(1088) + b"\x01\x10", b""])
def handshake_header(data: bytes) -> None:
    """Any header of INIT or ACCEPT announces at most 784 sealed bytes, whole blocks and a tag, or is RemoteProtocolError."""
    try:
        length = sealed_length(data)
    except RemoteProtocolError:
        return
    assert 16 < length <= HANDSHAKE_CEILING + 16
    assert (length - 16) % PAD_BLOCK == 0
