"""The suite would notice: with one check patched off, in these tests only, the same attacks succeed, and the verdict tells it.

The product has no switch for any of this.
"""

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.evil.impostor import OWN, Host, Mask, Middle
from tests.evil.recorder import Recorder
from tests.evil.relay import Plot
from tests.evil.stage import CUT_SHORT, MISMATCH, UNHARMED, Stage
from tests.evil.test_messages import Meddle, behind_the_next, double, drop, flip
from tests.evil.test_truncation import CutAt
from tests.evil.verdict import APP_WORDS, CLEAN, TARGET_WORDS, Expected, Story, breaches
from tuunel.e2e import handshake, offer, records
from tuunel.e2e.offer import OfferSecrets
from tuunel.recordstream import RecordStream
from tuunel.tunnel import Tunnel

pytestmark = pytest.mark.anyio

ALIEN = "received what the other side did not send"


async def seen(stage: Stage, plot: Plot, expected: Expected) -> list[str]:
    stage.begin(plot)
    return breaches(await stage.story(await stage.ask()), expected)


def trust_every_signature(*_: object) -> None:
    return


async def test_without_signatures_the_relay_reads_and_changes_everything(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "verify_peer", trust_every_signature)
    monkeypatch.setattr(offer, "verify_peer", trust_every_signature)
    plot = Middle(stage)
    found = await seen(stage, plot, MISMATCH)
    assert sum(ALIEN in each for each in found) == 2, found
    assert f"the app was told {CLEAN}, not PEER_MISMATCH" in found
    assert "alarms at the forward proxy: []" in found
    assert len(plot.read) == len(APP_WORDS) + len(TARGET_WORDS)
    assert {b"asks 000000\n", b"told 000000\n"} <= set(bytes(plot.read).splitlines(keepends=True))


async def test_without_the_look_at_the_device_id_the_relays_own_device_is_the_agent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "hmac", SimpleNamespace(compare_digest=lambda one, other: True))
    plot = Host(stage, as_agent=Mask(OWN.public_bytes, stage.device.id))
    found = await seen(stage, plot, MISMATCH)
    assert any(ALIEN in each and "by the relay" in each for each in found), found
    assert plot.read.startswith(b"asks 000000\n")


async def test_with_offers_for_many_uses_a_replay_would_dial(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage.agent.role._make_offer()

    def again() -> tuple[bytes, OfferSecrets]:
        data, secrets = made
        keys = secrets._keys
        assert keys is not None
        return data, OfferSecrets(data, secrets.not_after, keys.ephemeral, keys.kem)

    assert stage.agent.role._ready is not None
    monkeypatch.setattr(stage.agent.role._ready, "_make_offer", again)
    recorder = Recorder()
    while recorder.offered != made[0]:  # those that wait already have offers of their own
        recorder = Recorder()
        stage.begin(recorder)
        talk = await stage.ask()
    await recorder.replay_to_agent(stage)
    found = breaches(await stage.story(talk), UNHARMED)
    assert "the target was dialled 2 times, not 1 at most" in found


class WithoutTag:
    """ChaCha20-Poly1305 whose tag nobody looks at."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._real = ChaCha20Poly1305(key)
        self.encrypt, self.encrypt_into = self._real.encrypt, self._real.encrypt_into

    def decrypt_into(self, nonce: bytes, data: memoryview, associated: memoryview, buffer: memoryview) -> int:
        plain = Cipher(algorithms.ChaCha20(self._key, (1).to_bytes(4, "little") + nonce), None).decryptor().update(bytes(data[:-16]))
        buffer[: len(plain)] = plain
        return len(plain)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_without_tags_a_flipped_bit_would_arrive(stage: Stage, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(records, "ChaCha20Poly1305", WithoutTag)
    found = await seen(stage, Meddle(way, 3, flip(4000)), CUT_SHORT)
    assert any(ALIEN in each for each in found), found


@pytest.mark.parametrize("change", [double, drop, behind_the_next])
async def test_without_numbers_records_out_of_place_would_arrive(stage: Stage, monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    monkeypatch.setattr(records._Cipher, "next_nonce", lambda cipher: bytes(12))
    found = await seen(stage, Meddle("down", 3, change), CUT_SHORT)
    assert any(ALIEN in each for each in found), found


async def test_without_the_rule_of_truncation_half_of_it_would_pass_for_all(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    class End(Exception):
        pass

    cut, read_into = RecordStream._cut, Tunnel.read_into

    def end_of_stream(stream: RecordStream, reason: str) -> None:
        if reason == "the connection ended without an end":
            raise End
        cut(stream, reason)

    def read(tunnel: Tunnel, buffer: memoryview, limit: int) -> int | None:
        try:
            return read_into(tunnel, buffer, limit)
        except End:
            return 0

    monkeypatch.setattr(RecordStream, "_cut", end_of_stream)
    monkeypatch.setattr(Tunnel, "read_into", read)
    found = await seen(stage, CutAt("up", 4, 0, clean=True), CUT_SHORT)
    assert any(each.startswith("the target saw a clean end after") for each in found), found


def test_an_attack_that_was_not_made_proves_nothing() -> None:
    assert breaches(Story(CLEAN, TARGET_WORDS, [], 0, {}, 0), UNHARMED) == ["the relay did not attack"]
