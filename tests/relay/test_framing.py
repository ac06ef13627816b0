"""Frames and sealed records: `len u16 || payload`, ceilings refused by the length alone, every record its own nonce."""

import pytest

from tuunel.errors import LocalProtocolError, RemoteProtocolError
from tuunel.hkdf import AeadKey
from tuunel.relay import framing
from tuunel.relay.framing import MAX_PLAINTEXT, MAX_RECORD, TAG, Frames, Opener, Sealer, frame

KEY = AeadKey(bytes(range(32)), bytes(range(12)))


def test_a_frame_is_two_bytes_of_length_and_the_payload() -> None:
    assert frame(b"abc") == bytes.fromhex("0003 616263")


def test_bytes_wanted_ends_with_the_frame() -> None:
    frames = Frames(b"TN")
    assert frames.bytes_wanted(b"TNL1") == 4
    frames.receive_data(b"L1\0\5")
    assert frames.bytes_wanted(b"TNL1") == 5
    frames.receive_data(b"12345surplus")
    assert frames.bytes_wanted(b"TNL1") == 0
    assert frames.next(floor=1, ceiling=5, magic=b"TNL1") == b"12345"
    assert frames.take_all() == b"surplus"
    assert len(frames) == 0


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_wrong_magic_is_refused_at_its_first_wrong_byte(length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Frames(b"TNL1"[: length - 1] + b"?").next(floor=1, ceiling=9, magic=b"TNL1")


@pytest.mark.parametrize("length", [3, 10])
def test_a_length_outside_its_bounds_is_refused_before_the_payload(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="outside 4 to 9"):
        Frames(length.to_bytes(2)).next(floor=4, ceiling=9)


def test_the_longest_record_passes_and_one_byte_more_is_our_own_fault() -> None:
    record = Sealer(KEY).seal(bytes(MAX_PLAINTEXT))
    assert len(record) == 2 + MAX_RECORD
    assert Opener(KEY).open(record[2:]) == bytes(MAX_PLAINTEXT)
    with pytest.raises(LocalProtocolError):
        Sealer(KEY).seal(bytes(MAX_PLAINTEXT + 1))


def test_equal_plaintexts_give_different_records() -> None:
    sealer = Sealer(KEY)
    assert len({sealer.seal(b"same") for _ in range(5)}) == 5


def test_a_record_does_not_open_twice_nor_out_of_order_nor_under_another_length() -> None:
    sealer = Sealer(KEY)
    first, second = sealer.seal(b"first")[2:], sealer.seal(b"second")[2:]
    for spoilt in (second, first[:-1], first + b"\0", b"", first[:TAG]):
        with pytest.raises(RemoteProtocolError, match="not genuine"):
            Opener(KEY).open(spoilt)
    opener = Opener(KEY)
    assert opener.open(first) == b"first"
    with pytest.raises(RemoteProtocolError):
        opener.open(first)


def test_a_key_is_not_used_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_RECORDS", 1)
    sealer, opener = Sealer(KEY), Opener(KEY)
    record = sealer.seal(b"last")[2:]
    with pytest.raises(LocalProtocolError):
        sealer.seal(b"one more")
    opener.open(record)
    with pytest.raises(RemoteProtocolError, match="too many"):
        opener.open(record)
