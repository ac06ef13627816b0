"""The relay spoils the agent's offer, or gives another one: the forward proxy sends nothing, and says who it is not talking to."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tests.evil.relay import Plot
from tests.evil.stage import LOST, MISMATCH, Stage
from tests.evil.verdict import Expected
from tuunel.e2e.keyschedule import T0, digest
from tuunel.e2e.offer import OFFER_LABEL, make_offer
from tuunel.e2e.wire import SIGNATURE, Offer
from tuunel.identity import IdentityKey, encode_point
from tuunel.relay.client import fresh_key

pytestmark = pytest.mark.anyio

OWN = IdentityKey.generate()  #: the relay's own device
DAY = 24 * 3600
Swap = Callable[[Stage, Offer], bytes]


class SwapOffer(Plot):
    """Give the forward proxy another offer than the agent's."""

    def __init__(self, stage: Stage, swap: Swap) -> None:
        super().__init__()
        self._stage, self._swap = stage, swap

    def offer(self, offer: bytes) -> bytes:
        self.struck += 1
        return self._swap(self._stage, Offer.decode(offer))


def own_point(stage: Stage, offer: Offer) -> bytes:
    return replace(offer, ephemeral=encode_point(fresh_key().public_key())).encode()


def own_kem_key(stage: Stage, offer: Offer) -> bytes:
    return replace(offer, kem_public=MLKEM768PrivateKey.generate().public_key().public_bytes_raw()).encode()


def signed_again(stage: Stage, offer: Offer) -> bytes:
    own = Offer.decode(made_by(OWN, stage))
    unsigned = replace(own, identity=offer.identity).encode()[:-SIGNATURE]
    return unsigned + OWN.sign(OFFER_LABEL, digest(T0, unsigned))


def longer_life(stage: Stage, offer: Offer) -> bytes:
    return replace(offer, not_after=offer.not_after + DAY).encode()


def made_by(identity: IdentityKey, stage: Stage, *, relay: bytes | None = None, now: int | None = None) -> bytes:
    kem = MLKEM768PrivateKey.generate()
    offer, _ = make_offer(identity, relay or stage.known.id, int(time.time()) if now is None else now, ephemeral=fresh_key(), kem=kem)
    return offer


def own_offer(stage: Stage, offer: Offer) -> bytes:
    return made_by(OWN, stage)


def of_the_asker(stage: Stage, offer: Offer) -> bytes:
    return made_by(stage.client, stage)


def collected_elsewhere(stage: Stage, offer: Offer) -> bytes:
    return made_by(stage.agent_identity, stage, relay=bytes(32))


def of_yesterday(stage: Stage, offer: Offer) -> bytes:
    return made_by(stage.agent_identity, stage, now=int(time.time()) - DAY - 60)


def used_before(stage: Stage, offer: Offer) -> bytes:
    """The agent's own, for another connection: its keys have been used or will never be."""
    return made_by(stage.agent_identity, stage)


def other_version(version: int) -> Swap:
    return lambda stage, offer: replace(offer, version=version).encode()


def cut_to(length: int) -> Swap:
    return lambda stage, offer: offer.encode()[:length]


def longer(stage: Stage, offer: Offer) -> bytes:
    return offer.encode() + b"\0"


def flipped(at: int) -> Swap:
    def flip(stage: Stage, offer: Offer) -> bytes:
        data = bytearray(offer.encode())
        data[at] ^= 1
        return bytes(data)

    return flip


SWAPS: dict[str, tuple[Swap, Expected]] = {
    "its own eR": (own_point, MISMATCH),
    "its own ekR": (own_kem_key, MISMATCH),
    "its own keys under the agent's name": (signed_again, MISMATCH),
    "an offer of its own device": (own_offer, MISMATCH),
    "an offer of the asker's own device": (of_the_asker, MISMATCH),
    "an offer collected by another relay": (collected_elsewhere, MISMATCH),
    "a longer life": (longer_life, MISMATCH),
    "an offer of yesterday": (of_yesterday, LOST),
    "an offer of another connection": (used_before, LOST),
    "version 0": (other_version(0), LOST),
    "version 2": (other_version(2), LOST),
    "no offer at all": (cut_to(0), LOST),
    "half of it": (cut_to(700), LOST),
    "all but one byte": (cut_to(1418), LOST),
    "one byte more": (longer, LOST),
    "a bit of eR": (flipped(40), MISMATCH),
    "a bit of ekR": (flipped(600), MISMATCH),
    "a bit of its end": (flipped(1256), MISMATCH),
    "a bit of the relay id": (flipped(1260), MISMATCH),
    "a bit of idpkR": (flipped(1300), MISMATCH),
    "a bit of sigR": (flipped(1400), MISMATCH),
}


async def test_an_offer_that_is_not_the_agents_for_this_connection_leads_nowhere(stage: Stage) -> None:
    assert await stage.attack((name, SwapOffer(stage, swap), expected) for name, (swap, expected) in SWAPS.items()) == {}
