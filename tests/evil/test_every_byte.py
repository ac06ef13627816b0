"""Every byte of the end-to-end handshake, changed: no keys, and an alarm exactly where it is the identity that is wrong.

Without roles around it, because there are thousands of places; the other files take a sample of them through the whole world.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tests.e2e.tunnels import AGENT, FORWARD, NOW, RELAY_ID, Handshake, offer
from tuunel.e2e.handshake import Responder
from tuunel.e2e.offer import OfferSecrets, check_offer
from tuunel.e2e.wire import KEM_CIPHERTEXT
from tuunel.errors import PeerMismatch, RemoteProtocolError, TuunelError

SIGNED = {PeerMismatch}
SEALED = {RemoteProtocolError}


def changed(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    for at in places:
        yield data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]


def again(secrets: OfferSecrets) -> OfferSecrets:
    """For one more try: the product's own serve one."""
    keys = secrets._keys
    assert keys is not None
    return OfferSecrets(secrets.offer, secrets.not_after, keys.ephemeral, keys.kem)


def errors(step: Callable[[bytes], object], inputs: Iterable[bytes]) -> set[type]:
    found: Counter[type] = Counter()
    for data in inputs:
        try:
            step(data)
        except TuunelError as error:
            found[type(error)] += 1
        else:
            found[type(None)] += 1
    return set(found)


def test_every_byte_of_an_offer_but_its_version_is_under_the_agents_signature() -> None:
    made, _ = offer()

    def check(data: bytes) -> object:
        return check_offer(data, AGENT.device_id, RELAY_ID, NOW)

    assert errors(check, [made]) == {type(None)}
    assert errors(check, changed(made, [0])) == SEALED
    assert errors(check, changed(made, range(1, len(made)))) == SIGNED


def test_every_byte_of_open_is_under_the_keys_of_init() -> None:
    handshake = Handshake()
    init = handshake.init()

    def respond(opened: bytes) -> object:
        return Responder(AGENT, again(handshake.secrets), FORWARD.public_bytes, opened, NOW, buffers=handshake.buffers).receive_init(init)

    assert errors(respond, [handshake.open]) == {type(None)}
    assert errors(respond, changed(handshake.open, range(len(handshake.open)))) == SEALED


def test_every_byte_of_init_is_under_its_keys() -> None:
    handshake = Handshake()
    init = handshake.init()

    def respond(data: bytes) -> object:
        return Responder(
            AGENT, again(handshake.secrets), FORWARD.public_bytes, handshake.open, NOW, buffers=handshake.buffers
        ).receive_init(data)

    assert errors(respond, [init]) == {type(None)}
    assert errors(respond, changed(init, range(KEM_CIPHERTEXT, len(init)))) == SEALED
    assert errors(respond, changed(init, range(KEM_CIPHERTEXT))) == SEALED


def test_every_byte_of_accept_is_under_its_keys() -> None:
    handshake = Handshake()
    responder = handshake.responder()
    responder.receive_init(handshake.init())
    accept = responder.accept()

    def receive(data: bytes) -> object:
        return copy.copy(handshake.initiator).receive_accept(data)

    assert errors(receive, changed(accept, range(len(accept)))) == SEALED
    handshake.initiator.receive_accept(accept)


def test_a_name_that_is_wrong_is_an_alarm_wherever_it_stands() -> None:
    handshake = Handshake()
    init = handshake.init()

    def respond(public: bytes) -> object:
        return Responder(AGENT, again(handshake.secrets), public, handshake.open, NOW, buffers=handshake.buffers).receive_init(init)

    assert errors(respond, changed(FORWARD.public_bytes, range(65))) == SIGNED
