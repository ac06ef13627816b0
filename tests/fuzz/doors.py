"""The local front doors that speak SOCKS, and the names that come in through any door."""

import unicodedata
from ipaddress import IPv6Address
from typing import Final

from tests.fuzz.harness import Choices, harness, pieces
from tuunel.address import MAX_HOST, HostPort, TuunelName, ip6_label, parse_tuunel_name
from tuunel.errors import Failure, Reason, RemoteProtocolError, UsageError
from tuunel.frontdoor import Credentials, Refused, Request, under_tuunel
from tuunel.identity import DeviceID, IdentityKey
from tuunel.policy import parse_target_pattern
from tuunel.socks.protocol import AssociateRequest, Socks4Door, Socks5Door, SocksDoor
from tuunel.socks.udp import read_datagram
from tuunel.socks.wire import MAX_MESSAGE

_CREDENTIALS: Final = Credentials("me", "secret")
_PASSWORD: Final = b"\1\2me\6secret"
_NAME: Final = b"\3\x0bhome.tuunel\0\x16"
_DEVICE: Final = IdentityKey.from_private_value(0x1D).device_id
_LONGEST_ANSWER: Final = 64  #: bytes in all that a door says before a client is let in

_Outcome = tuple[Request | AssociateRequest | Refused | None, bytes, bytes]


def _negotiate(door: SocksDoor, data: bytes, size: int) -> _Outcome:
    """What came of it, with the early bytes taken out; what was answered; and what belongs to the target."""
    unread = b""
    event = None
    for piece in pieces(data, size):
        if event is not None:
            unread += piece
            continue
        door.receive_data(piece)
        event = door.next_event()
        if event is None:
            assert len(door._buffer) < MAX_MESSAGE + len(piece), "a door waits for no more than the longest message"
    if event is None:
        door.receive_eof()
        try:
            assert door.next_event() is None
        except RemoteProtocolError:
            return None, door.data_to_send(), b""
        assert not data or isinstance(event, Refused)
    behind = b"" if event is None or isinstance(event, Refused) else door.trailing_data + unread
    if isinstance(event, Request):
        assert event.early == door.trailing_data
        assert event.target.port > 0
        assert 0 < len(event.target.host) <= MAX_HOST
        event = Request(event.target, event.door, b"", event.local)
        door.accept(HostPort("192.0.2.1", 1))
    elif isinstance(event, AssociateRequest):
        door.refuse(Failure(Reason.LIMIT))
    assert door.next_event() is None, "one negotiation has one outcome"
    return event, door.data_to_send(), behind


def _check_door(kind: type[SocksDoor], data: bytes) -> None:
    choices = Choices(data)
    options, size, data = choices.byte(), choices.byte(), choices.rest()
    credentials = _CREDENTIALS if options & 1 else None
    whole = _negotiate(kind(credentials), data, 0)
    assert _negotiate(kind(credentials), data, size) == whole, "pieces change nothing"
    event, answer, _ = whole
    assert len(answer) <= _LONGEST_ANSWER
    if isinstance(event, Request | AssociateRequest) and credentials:
        assert _PASSWORD in data, "nobody comes in without the password"
    assert event is None or answer, "whoever is heard is answered"


@harness(
    max_length=1100,
    seeds=[
        b"\0\0\5\1\0\5\1\0" + _NAME + b"GET / HTTP/1.1\r\n",
        b"\1\3\5\2\0\2" + _PASSWORD + b"\5\1\0" + _NAME,
        b"\1\0\5\1\2\1\2me\5wrong\5\1\0" + _NAME,
        b"\1\0\5\1\0",
        b"\0\1\5\1\0\5\3\0\1\0\0\0\0\0\0",
        b"\0\2\5\1\0\5\1\0\4" + bytes(15) + b"\1\0\x50",
        b"\0\0\5\1\0\5\2\0\1\x7f\0\0\1\0\x50",
        b"\0\0\5\1\0\5\1\0\2",
        b"\0\0\4\1",
    ],
)
def socks5(data: bytes) -> None:
    """Any bytes, in any pieces, are one request, one answered refusal or RemoteProtocolError, hold 520 bytes and need the password."""
    _check_door(Socks5Door, data)


@harness(
    max_length=1100,
    seeds=[
        b"\0\0\4\1\0\x50\x7f\0\0\1me\0hello",
        b"\0\5\4\1\0\x50\0\0\0\1me\0home.tuunel\0",
        b"\1\0\4\1\0\x50\0\0\0\1\0home.tuunel\0",
        b"\0\0\4\2\0\x50\x7f\0\0\1\0",
        b"\0\1\4\1\0\x50\0\0\0\1" + b"x" * 256,
    ],
)
def socks4(data: bytes) -> None:
    """Any bytes, in any pieces, are one request, one answered refusal or RemoteProtocolError, hold 520 bytes and pass no password."""
    _check_door(Socks4Door, data)


@harness(
    max_length=600,
    seeds=[b"\0\0\0" + _NAME + b"payload", b"\0\0\0\1\x7f\0\0\1\0\x35", b"\0\0\0\4" + bytes(15) + b"\1\0\x35q", b"\0\0\1" + _NAME],
)
def socks_datagram(data: bytes) -> None:
    """Any datagram is a header of at most 262 bytes, a target and a payload, which together are the datagram, or RemoteProtocolError."""
    try:
        datagram = read_datagram(data)
    except RemoteProtocolError:
        return
    assert datagram.header + datagram.payload == data
    assert 8 <= len(datagram.header) <= 262
    assert datagram.target.port
    assert datagram.target.host
    assert read_datagram(datagram.header + b"answer").target == datagram.target


@harness(
    max_length=400,
    seeds=[
        name.encode()
        for name in (
            "home.tuunel",
            "nas.lan.home.tuunel.",
            "HOME\N{IDEOGRAPHIC FULL STOP}tuunel",
            "192.168.1.5.home.tuunel",
            "fd00--1.ip6.home.tuunel",
            f"{_DEVICE}.tuunel",
            _DEVICE.compact,
            "example.com:443",
            "[::1]:80",
            "*.lab.example.com:80-90",
            "10.0.0.0/8:22",
            "unix:/run/docker.sock",
            "internet",
        )
    ],
    words=[b".tuunel", b".ip6.", b"tuunel", "\N{FULLWIDTH LATIN SMALL LETTER T}".encode(), "\N{IDEOGRAPHIC FULL STOP}".encode()],
)
def names(data: bytes) -> None:
    """Any text is a name, an address, a device ID or a target pattern in one normal form, or its named error; `.tuunel` never leaks."""
    text = data.decode("utf-8", "replace")
    try:
        name = parse_tuunel_name(text)
    except Failure as failure:
        if failure.reason is not Reason.UNKNOWN_NAME:
            raise
    else:
        assert (name is not None) or not under_tuunel(unicodedata.normalize("NFKC", text)), "a name under .tuunel would be asked of DNS"
        if name is not None:
            assert parse_tuunel_name(_spell(name)) == name
    _check_device_id(text)
    _check_address(text)
    _check_pattern(text)


def _spell(name: TuunelName) -> str:
    host = f"{ip6_label(IPv6Address(name.host))}.ip6" if ":" in name.host else name.host
    return ".".join(part for part in (host, name.name, "tuunel") if part)


def _check_device_id(text: str) -> None:
    try:
        device = DeviceID.parse(text)
    except UsageError:
        return
    assert DeviceID.parse(str(device)) == DeviceID.parse(device.compact) == device


def _check_address(text: str) -> None:
    try:
        address = HostPort.parse(text)
    except UsageError:
        return
    assert HostPort.parse(str(address)) == address
    assert str(address).isascii()
    assert str(address).isprintable()


def _check_pattern(text: str) -> None:
    try:
        pattern = parse_target_pattern(text)
    except UsageError:
        return
    assert parse_target_pattern(str(pattern)) == pattern
    assert str(pattern).isprintable()
