"""Keys: what a terminal sends is told the same however it is cut, and nothing that it sends is more than a key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.keys import MAX_SEQUENCE, NAMED, SEQUENCES, KeyDecoder

NAMES = {*NAMED.values(), *SEQUENCES.values(), "escape"}


def keys_of(*pieces: bytes) -> list[str]:
    decoder, found = KeyDecoder(), []
    for piece in pieces:
        decoder.receive_data(piece)
        while (key := decoder.next_event()) is not None:
            found.append(key)
    return found


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"sx/", ["s", "x", "/"]),
        ("ä家".encode(), ["ä", "家"]),
        (b"\r\n\x7f\x08", ["enter", "enter", "backspace", "backspace"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[H\x1b[F\x1b[1~\x1b[4~\x1b[5~\x1b[6~\x1bOH\x1bOF", ["home", "end", "home", "end", "pageup", "pagedown", "home", "end"]),
        (b"\x1b[1;5A", ["up"]),  # with Ctrl held
        (b"\x1b[5;2~", ["pageup"]),
        (b"\x1b\x1b", ["escape"]),
        (b"\x1b[2~\x1b[15~\x1b[?1;2c\x1bOPq", ["q"]),  # keys that mean nothing here, and a terminal's answer
        (b"\x1bxq", ["q"]),  # Alt and x must not ask anything
        (b"\0\x01\x04\x0c\x1as", ["s"]),
        (b"\xff\xfes", ["s"]),
    ],
)
def test_keys_are_told_by_name_however_they_are_cut(sent: bytes, keys: list[str]) -> None:
    assert keys_of(sent) == keys
    assert keys_of(*(sent[place : place + 1] for place in range(len(sent)))) == keys
    for cut in range(len(sent)):
        assert keys_of(sent[:cut], sent[cut:]) == keys


def test_an_escape_is_a_key_of_its_own_after_a_pause() -> None:
    decoder = KeyDecoder()
    decoder.receive_data(b"s\x1b")
    assert [decoder.next_event(), decoder.next_event(), decoder.waits] == ["s", None, True]
    decoder.pause()
    assert [decoder.next_event(), decoder.next_event(), decoder.waits] == ["escape", None, False]


@pytest.mark.parametrize("begun", [b"\x1b[", b"\x1b[5", b"\x1bO"])
def test_a_sequence_that_nobody_ends_is_thrown_away_after_a_pause(begun: bytes) -> None:
    decoder = KeyDecoder()
    decoder.receive_data(begun)
    assert decoder.next_event() is None
    decoder.pause()
    decoder.receive_data(b"s")
    assert [decoder.next_event(), decoder.next_event()] == ["s", None]


def test_a_sequence_without_end_costs_bounded_memory() -> None:
    decoder = KeyDecoder()
    for _ in range(1000):
        decoder.receive_data(b"\x1b[" + b"1;" * 100)
        while decoder.next_event() is not None:
            pass
        assert len(decoder._waiting) <= MAX_SEQUENCE


@given(st.lists(st.binary(max_size=40)))
def test_whatever_comes_gives_keys_and_nothing_else(pieces: list[bytes]) -> None:
    assert all(key in NAMES or (len(key) == 1 and key.isprintable()) for key in keys_of(*pieces))
    assert keys_of(*pieces) == keys_of(b"".join(pieces))
