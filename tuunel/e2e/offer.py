"""Offers: an agent's signed one-time keys for one connection, made by the agent and checked by the forward proxy.

Source: docs/spec/end-to-end.md section 2.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tuunel.e2e.keyschedule import T0, digest
from tuunel.e2e.wire import SIGNATURE, VERSION, Offer
from tuunel.errors import Failure, LocalProtocolError, PeerMismatch, Reason, RemoteProtocolError
from tuunel.identity import DeviceID, IdentityKey, decode_point, encode_point, verify

OFFER_LIFETIME: Final = 24 * 3600  #: seconds; early data's forward secrecy begins at the latest when this ends
OFFER_LABEL: Final = "tuunel/1 e2e offer"


class Decapsulator(Protocol):
    """An ML-KEM-768 private key, for one use."""

    def decapsulate(self, ciphertext: bytes, /) -> bytes:
        """The 32-byte shared secret of a ciphertext of 1088 bytes."""
        ...


@dataclass(slots=True)
class OneTimeKeys:
    """The private halves of an offer."""

    ephemeral: ec.EllipticCurvePrivateKey = field(repr=False)
    kem: Decapsulator = field(repr=False)


class OfferSecrets:
    """What an agent keeps of an offer until its one use: `Responder` takes the private keys out, and they cannot be taken again."""

    __slots__ = ("_keys", "not_after", "offer")

    def __init__(self, offer: bytes, not_after: int, ephemeral: ec.EllipticCurvePrivateKey, kem: Decapsulator) -> None:
        self.offer = offer
        self.not_after = not_after
        self._keys: OneTimeKeys | None = OneTimeKeys(ephemeral, kem)

    def take(self) -> OneTimeKeys:
        """The private keys, once; LocalProtocolError afterwards."""
        keys, self._keys = self._keys, None
        if keys is None:
            raise LocalProtocolError("an offer's keys are for one use")
        return keys

    def close(self) -> None:
        """Drop the private keys unused: the connection that the offer was made for is gone."""
        self._keys = None


def make_offer(
    identity: IdentityKey,
    relay_id: bytes,
    now: int,
    lifetime: int = OFFER_LIFETIME,
    *,
    ephemeral: ec.EllipticCurvePrivateKey,
    kem: MLKEM768PrivateKey,
) -> tuple[bytes, OfferSecrets]:
    """An agent's signed offer for one connection at one relay, and its secrets. `now` in unix seconds; both keys must be fresh."""
    if not 0 < lifetime <= OFFER_LIFETIME:
        raise LocalProtocolError(f"an offer lives at most {OFFER_LIFETIME} seconds")
    point, kem_public = encode_point(ephemeral.public_key()), kem.public_key().public_bytes_raw()
    unsigned = Offer(VERSION, point, kem_public, now + lifetime, relay_id, identity.public_bytes, bytes(SIGNATURE)).encode()[:-SIGNATURE]
    offer = unsigned + identity.sign(OFFER_LABEL, digest(T0, unsigned))
    return offer, OfferSecrets(offer, now + lifetime, ephemeral, kem)


def check_offer(data: bytes, device: DeviceID, relay_id: bytes, now: int) -> Offer:
    """The offer, once it is proven to be `device`'s, made for this relay, and not out of date by this machine's clock.

    PeerMismatch: it is of another device, for another relay, or not signed by that device. Failure(TUNNEL_LOST): it is out of
    date, which a wrong clock can be the reason of. RemoteProtocolError: it is no offer.
    """
    offer = Offer.decode(data)
    if not hmac.compare_digest(DeviceID.from_public_key(offer.identity).raw, device.raw):
        raise PeerMismatch("the offer is of another device")
    verify_peer(offer.identity, OFFER_LABEL, digest(T0, data[:-SIGNATURE]), offer.signature)
    if offer.relay_id != relay_id:
        raise PeerMismatch("the offer was made for another relay")
    if offer.not_after < now:
        advice = "set the clocks of both machines right, then try again"
        raise Failure(Reason.TUNNEL_LOST, detail="the device's offer is out of date", advice=advice)
    decode_point(offer.ephemeral)
    return offer


def verify_peer(public: bytes, label: str, transcript: bytes, signature: bytes) -> None:
    """As `identity.verify`, where a failure means that the peer is not who it must be: PeerMismatch."""
    try:
        verify(public, label, transcript, signature)
    except RemoteProtocolError as error:
        raise PeerMismatch(str(error)) from error
