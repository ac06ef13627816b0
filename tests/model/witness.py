"""Sees every nonce, every one-time key and every hop message of a run, and remembers what must not come twice."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from tuunel import agent
from tuunel.e2e import handshake, keyschedule, records
from tuunel.identity import encode_point
from tuunel.relay import framing
from tuunel.relay import handshake as hop_handshake
from tuunel.relay.protocol import HopChannel
from tuunel.relay.wire import HopError, Message, Open, PairedAgent, PairedForward, Side, Switch


class Witness:
    """What was seen. Each method that notes something asserts that it may be."""

    def __init__(self) -> None:
        self.sealed: set[tuple[bytes, bytes]] = set()
        self.opened: set[tuple[bytes, bytes]] = set()
        self.agreed: set[bytes] = set()
        self.ciphers = weakref.WeakSet[Any]()
        self.prekeys = weakref.WeakSet[Any]()
        self.faults: list[str] = []  # assertions made inside tuunel's own tasks could be taken for a fault of the tunnel
        self._silent = weakref.WeakSet[HopChannel]()
        self._asking = weakref.WeakSet[HopChannel]()

    def note(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)

    def seal(self, key: bytes, nonce: bytes) -> None:
        self.note((key, nonce) not in self.sealed, "a nonce was used twice under one key")
        self.sealed.add((key, nonce))

    def open(self, key: bytes, nonce: bytes) -> None:
        self.note((key, nonce) in self.sealed, "something opened that nobody has sealed")
        self.note((key, nonce) not in self.opened, "a record was opened twice")
        self.opened.add((key, nonce))

    def agree(self, private: EllipticCurvePrivateKey) -> None:
        point = encode_point(private.public_key())
        self.note(point not in self.agreed, "an ephemeral key was used twice")
        self.agreed.add(point)

    def say(self, channel: HopChannel, message: Message) -> None:
        self.note(channel not in self._silent, f"{type(message).__name__} behind the last hop record")
        self.note(channel not in self._asking, f"{type(message).__name__} between OPEN and its answer")
        if isinstance(message, Switch | PairedAgent | PairedForward):
            self._silent.add(channel)
        if isinstance(message, Open):
            self._asking.add(channel)

    def hear(self, channel: HopChannel, message: Message | None) -> None:
        if channel._side is Side.DEVICE and isinstance(message, PairedForward | HopError):
            self._asking.discard(channel)
        if isinstance(message, PairedForward):
            self._silent.add(channel)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand beside every cipher and every channel while the block runs."""
        with ExitStack() as patches:
            for module, name in ((records, "ChaCha20Poly1305"), (keyschedule, "ChaCha20Poly1305"), (framing, "AESGCM")):
                patches.enter_context(patch.object(module, name, self._watched(vars(module)[name])))
            for module in (handshake, hop_handshake):
                patches.enter_context(patch.object(module, "ecdh", self._counted(vars(module)["ecdh"])))
            patches.enter_context(patch.object(agent, "MLKEM768PrivateKey", _Prekeys(self)))
            patches.enter_context(patch.object(HopChannel, "send", self._sending(HopChannel.send)))
            patches.enter_context(patch.object(HopChannel, "next_event", self._hearing(HopChannel.next_event)))
            yield

    def _watched(self, cipher: type[Any]) -> Callable[[bytes], Any]:
        return lambda key: _Watched(self, cipher, bytes(key))

    def _counted(self, ecdh: Callable[..., bytes]) -> Callable[..., bytes]:
        def counted(private: EllipticCurvePrivateKey, point: bytes) -> bytes:
            self.agree(private)
            return ecdh(private, point)

        return counted

    def _sending(self, send: Callable[..., bytes]) -> Callable[..., bytes]:
        def sending(channel: HopChannel, message: Message) -> bytes:
            record = send(channel, message)
            self.say(channel, message)
            return record

        return sending

    def _hearing(self, next_event: Callable[..., Message | None]) -> Callable[..., Message | None]:
        def hearing(channel: HopChannel) -> Message | None:
            message = next_event(channel)
            self.hear(channel, message)
            return message

        return hearing


class _Watched:
    """A cipher that tells of each nonce."""

    def __init__(self, witness: Witness, cipher: type[Any], key: bytes) -> None:
        self._witness = witness
        self._aead = cipher(key)
        self._key = key
        witness.ciphers.add(self)

    def encrypt(self, nonce: bytes, *arguments: Any) -> bytes:
        self._witness.seal(self._key, nonce)
        return bytes(self._aead.encrypt(nonce, *arguments))

    def encrypt_into(self, nonce: bytes, *arguments: Any) -> int:
        self._witness.seal(self._key, nonce)
        return int(self._aead.encrypt_into(nonce, *arguments))

    def decrypt(self, nonce: bytes, *arguments: Any) -> bytes:
        plaintext = bytes(self._aead.decrypt(nonce, *arguments))
        self._witness.open(self._key, nonce)
        return plaintext

    def decrypt_into(self, nonce: bytes, *arguments: Any) -> int:
        n = int(self._aead.decrypt_into(nonce, *arguments))
        self._witness.open(self._key, nonce)
        return n


class _Prekeys:
    """Makes ML-KEM keys of which one can see whether they still exist."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def generate(self) -> "_Prekey":
        key = _Prekey()
        self._witness.prekeys.add(key)
        return key


class _Prekey:
    def __init__(self) -> None:
        self._key = MLKEM768PrivateKey.generate()

    def public_key(self) -> MLKEM768PublicKey:
        return self._key.public_key()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return self._key.decapsulate(ciphertext)
