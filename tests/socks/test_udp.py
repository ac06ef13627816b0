"""The header of a datagram, byte for byte as in RFC 1928 section 7."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort
from tuunel.errors import RemoteProtocolError
from tuunel.socks.udp import Datagram, read_datagram

#                          rsv  frag atyp address                              port
HEADERS = {
    "IPv4": ("0000 00   01   0a000001                             0035", HostPort("10.0.0.1", 53)),
    "IPv6": ("0000 00   04   fd000000000000000000000000000001     0035", HostPort("fd00::1", 53)),
    "name": ("0000 00   03   0b 686f6d652e7475756e656c            0035", HostPort("home.tuunel", 53)),
    "name in capitals": ("0000 00   03   0b 484f4d452e7475756e656c            0035", HostPort("HOME.tuunel", 53)),
    "IPv4 as a name": ("0000 00   03   08 31302e302e302e31                  0035", HostPort("10.0.0.1", 53)),
    "IPv6 as a name": ("0000 00   03   03 3a3a31                            ffff", HostPort("::1", 65535)),
    "name of one letter": ("0000 00   03   01 61                                0001", HostPort("a", 1)),
}
each_header = pytest.mark.parametrize(("hexadecimal", "target"), HEADERS.values(), ids=HEADERS)


def named(name: bytes, port: int = 53) -> bytes:
    return b"\x00\x00\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2)


@each_header
@pytest.mark.parametrize("payload", [b"", b"\x00", b"question"])
def test_a_datagram_is_header_and_payload(hexadecimal: str, target: HostPort, payload: bytes) -> None:
    header = bytes.fromhex(hexadecimal)
    assert read_datagram(header + payload) == Datagram(header, target, payload)


@each_header
def test_the_header_alone_makes_the_answer_name_the_target_as_the_client_did(hexadecimal: str, target: HostPort) -> None:
    datagram = read_datagram(bytes.fromhex(hexadecimal) + b"question")
    assert read_datagram(datagram.header + b"answer") == Datagram(datagram.header, target, b"answer")


@each_header
def test_a_datagram_cut_at_any_byte_of_its_header_is_refused(hexadecimal: str, target: HostPort) -> None:
    header = bytes.fromhex(hexadecimal)
    for size in range(len(header)):
        with pytest.raises(RemoteProtocolError):
            read_datagram(header[:size])


@each_header
def test_a_fragment_is_refused(hexadecimal: str, target: HostPort) -> None:
    whole = bytes.fromhex(hexadecimal) + b"part"
    for fragment in (1, 2, 127, 128, 255):
        with pytest.raises(RemoteProtocolError, match="fragment"):
            read_datagram(whole[:2] + bytes([fragment]) + whole[3:])


@each_header
def test_reserved_bytes_are_zero(hexadecimal: str, target: HostPort) -> None:
    whole = bytes.fromhex(hexadecimal) + b"question"
    for reserved in (b"\x00\x01", b"\x01\x00", b"\xff\xff"):
        with pytest.raises(RemoteProtocolError, match="reserved"):
            read_datagram(reserved + whole[2:])


@pytest.mark.parametrize("kind", [kind for kind in range(256) if kind not in (1, 3, 4)])
def test_other_address_types_are_refused(kind: int) -> None:
    with pytest.raises(RemoteProtocolError):
        read_datagram(bytes([0, 0, 0, kind]) + bytes(300))


def test_a_name_has_at_most_253_bytes() -> None:
    labels = b".".join([b"a" * 63] * 4)  # 255
    longest = labels[:253]
    assert read_datagram(named(longest) + b"x").target == HostPort(longest.decode(), 53)
    for size in (254, 255):
        with pytest.raises(RemoteProtocolError):
            read_datagram(named(labels[:size]) + b"x")


@pytest.mark.parametrize("name", [b"", b"-a", b"a b", b"a:b", b"a/b", b"fe80::1%eth0", b"a\x00b", "ä".encode(), b"[::1]", b"\xff" * 255])
def test_what_no_host_can_be_is_refused(name: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_datagram(named(name) + b"x")


def test_port_0_is_no_target() -> None:
    with pytest.raises(RemoteProtocolError):
        read_datagram(named(b"home.tuunel", 0))


@given(st.ip_addresses(v=4), st.integers(1, 65535), st.binary(max_size=100))
def test_every_ipv4_address(address: object, port: int, payload: bytes) -> None:
    header = b"\x00\x00\x00\x01" + address.packed + port.to_bytes(2)  # type: ignore[attr-defined]
    assert read_datagram(header + payload) == Datagram(header, HostPort(str(address), port), payload)


@given(st.ip_addresses(v=6), st.integers(1, 65535), st.binary(max_size=100))
def test_every_ipv6_address(address: object, port: int, payload: bytes) -> None:
    header = b"\x00\x00\x00\x04" + address.packed + port.to_bytes(2)  # type: ignore[attr-defined]
    assert read_datagram(header + payload) == Datagram(header, HostPort(str(address), port), payload)


@pytest.mark.parametrize("head", [b"", b"\x00\x00\x00", b"\x00\x00\x00\x01", b"\x00\x00\x00\x03", b"\x00\x00\x00\x04"])
@given(data=st.binary(max_size=400))
def test_garbage_is_a_datagram_or_refused(head: bytes, data: bytes) -> None:
    try:
        datagram = read_datagram(head + data)
    except RemoteProtocolError:
        return
    assert datagram.header + datagram.payload == head + data
    assert 8 <= len(datagram.header) <= 262
    assert 1 <= datagram.target.port <= 65535
    assert datagram.target.host


def test_the_largest_datagram() -> None:
    header = bytes.fromhex("0000 00 01 0a000001 0035")
    payload = bytes(65507 - len(header))
    assert read_datagram(header + payload).payload == payload
