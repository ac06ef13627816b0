"""SOCKS messages, byte for byte as in RFC 1928, RFC 1929 and the SOCKS4a paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError
from tuunel.socks import wire

COMPLETE = {
    "greeting": (wire.read_methods, "05 02 00 02", b"\x00\x02"),
    "password": (wire.read_password, "01 03 616e6e 02 7077", (b"ann", b"pw")),
    "empty password": (wire.read_password, "01 00 00", (b"", b"")),
    "IPv4": (wire.read_socks5_request, "05 01 00 01 0a000001 0050", wire.Socks5Request(1, "10.0.0.1", 80)),
    "IPv6": (wire.read_socks5_request, "05 01 00 04 00000000000000000000000000000001 01bb", wire.Socks5Request(1, "::1", 443)),
    "name": (wire.read_socks5_request, "05 01 00 03 0b 686f6d652e7475756e656c 0016", wire.Socks5Request(1, "home.tuunel", 22)),
    "SOCKS4": (wire.read_socks4_request, "04 01 0050 0a000001 616e6e 00", wire.Socks4Request(1, "10.0.0.1", 80)),
    "SOCKS4a": (wire.read_socks4_request, "04 01 0050 00000001 00 686f6d65 00", wire.Socks4Request(1, "home", 80)),
    "SOCKS4 to 0.0.0.0": (wire.read_socks4_request, "04 01 0050 00000000 00", wire.Socks4Request(1, "0.0.0.0", 80)),
}
each_message = pytest.mark.parametrize(("read", "hexadecimal", "message"), COMPLETE.values(), ids=COMPLETE)


@each_message
def test_a_message_takes_its_own_bytes_and_no_more(read, hexadecimal, message) -> None:  # type: ignore[no-untyped-def]
    data = bytes.fromhex(hexadecimal)
    assert read(data) == (message, len(data))
    assert read(data + b"early") == (message, len(data))


@each_message
def test_a_part_of_a_message_needs_more(read, hexadecimal, message) -> None:  # type: ignore[no-untyped-def]
    data = bytes.fromhex(hexadecimal)
    assert all(read(data[:size]) is None for size in range(len(data)))


@each_message
def test_another_version_is_refused_at_once(read, hexadecimal, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RemoteProtocolError):
        read(b"\x06")


def test_the_longest_message_has_its_length() -> None:
    password = b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
    assert wire.read_password(password) == ((b"u" * 255, b"p" * 255), len(password))
    longest = b"\x04\x01\x00\x50\x00\x00\x00\x01" + b"u" * 255 + b"\x00" + b"n" * 255 + b"\x00"
    assert wire.read_socks4_request(longest) == (wire.Socks4Request(1, "n" * 255, 80), wire.MAX_MESSAGE)
    assert len(password) < len(longest) == wire.MAX_MESSAGE


@pytest.mark.parametrize("head", [b"", b"\x00"])
def test_socks4_fields_have_a_ceiling(head: bytes) -> None:
    start = bytes.fromhex("04 01 0050 00000001") + head
    assert wire.read_socks4_request(start + b"x" * wire.MAX_SOCKS4_FIELD) is None
    with pytest.raises(RemoteProtocolError):
        wire.read_socks4_request(start + b"x" * (wire.MAX_SOCKS4_FIELD + 1))


@pytest.mark.parametrize("kind", [0, 2, 5, 255])
def test_an_unknown_address_type_is_told_as_such(kind: int) -> None:
    with pytest.raises(wire.UnknownAddressType):
        wire.read_socks5_request(bytes([5, 1, 0, kind, 0]))


@pytest.mark.parametrize("data", [b"\x05\x01\x00\x03\x01\xe4\x00\x50", b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\xe4\x00"])
def test_names_are_ascii(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        (wire.read_socks5_request if data[0] == 5 else wire.read_socks4_request)(data)


def test_answers() -> None:
    assert wire.write_method(wire.Method.NONE_ACCEPTABLE) == b"\x05\xff"
    assert wire.write_password_status(right=True) == b"\x01\x00"
    assert wire.write_password_status(right=False) == b"\x01\x01"
    assert wire.write_socks5_reply(0, HostPort("10.0.0.1", 80)).hex(" ") == "05 00 00 01 0a 00 00 01 00 50"
    assert wire.write_socks5_reply(0, HostPort("::1", 80)) == bytes([5, 0, 0, 4]) + bytes(15) + b"\x01\x00\x50"
    assert wire.write_socks5_reply(5).hex(" ") == "05 05 00 01 00 00 00 00 00 00"
    assert wire.write_socks5_reply(0, HostPort("a.name", 80)) == wire.write_socks5_reply(0)
    assert wire.write_socks4_reply(wire.Reply4.GRANTED).hex(" ") == "00 5a 00 00 00 00 00 00"


@given(st.binary(max_size=600))
def test_garbage_is_a_message_or_needs_more_or_breaks_the_protocol(data: bytes) -> None:
    for read in (wire.read_methods, wire.read_password, wire.read_socks5_request, wire.read_socks4_request):
        for version in (b"", b"\x01", b"\x04", b"\x05"):
            try:
                outcome = read(version + data)
            except RemoteProtocolError:
                continue
            assert outcome is None or outcome[1] <= len(version + data)
            assert outcome is not None or len(data) < wire.MAX_MESSAGE + 8
