"""SOCKS negotiations: one request, one answer, whatever the pieces; and a refusal for everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort
from tuunel.errors import ANSWERS, Failure, LocalProtocolError, Reason, RemoteProtocolError
from tuunel.frontdoor import Credentials, Refused, Request
from tuunel.socks.protocol import AssociateRequest, Socks4Door, Socks5Door, SocksDoor

ANN = Credentials("ann", "pw")
NAME = b"\x03\x0bhome.tuunel\x00\x16"
SOCKS5 = b"\x05\x01\x00" + b"\x05\x01\x00" + NAME
SOCKS5_PASSWORD = b"\x05\x02\x00\x02" + b"\x01\x03ann\x02pw" + b"\x05\x01\x00" + NAME
SOCKS4A = b"\x04\x01\x00\x16\x00\x00\x00\x01me\x00home.tuunel\x00"
TARGET = HostPort("home.tuunel", 22)
ASSOCIATE = b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"


def feed(door: SocksDoor, data: bytes) -> Request | AssociateRequest | Refused | None:
    door.receive_data(data)
    return door.next_event()


class TestRequests:
    def test_socks5(self) -> None:
        door = Socks5Door()
        assert feed(door, SOCKS5 + b"early") == Request(TARGET, "socks5", b"early")
        assert door.data_to_send() == b"\x05\x00"
        assert door.trailing_data == b"early"
        door.accept(HostPort("127.0.0.1", 22))
        assert door.data_to_send() == b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x16"

    def test_socks5_with_a_password(self) -> None:
        door = Socks5Door(ANN)
        assert feed(door, SOCKS5_PASSWORD) == Request(TARGET, "socks5")
        assert door.data_to_send() == b"\x05\x02\x01\x00"

    def test_socks4a(self) -> None:
        door = Socks4Door(local=True)
        assert feed(door, SOCKS4A + b"early") == Request(TARGET, "socks4a", b"early", local=True)
        door.accept()
        assert door.data_to_send() == b"\x00\x5a" + bytes(6)

    @given(st.data())
    def test_pieces_do_not_matter(self, data: st.DataObject) -> None:
        for door, whole in ((Socks5Door(), SOCKS5), (Socks5Door(ANN), SOCKS5_PASSWORD), (Socks4Door(), SOCKS4A)):
            cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
            events = [feed(door, whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
            assert [event.target for event in events if isinstance(event, Request)] == [TARGET]

    @pytest.mark.parametrize("reason", Reason)
    def test_each_failure_has_its_reply(self, reason: Reason) -> None:
        five, four = Socks5Door(), Socks4Door()
        feed(five, SOCKS5)
        feed(four, SOCKS4A)
        five.data_to_send()
        five.refuse(Failure(reason))
        four.refuse(Failure(reason))
        assert five.data_to_send() == bytes([5, ANSWERS[reason].socks, 0, 1]) + bytes(6)
        assert four.data_to_send() == b"\x00\x5b" + bytes(6)

    def test_a_request_has_one_answer(self) -> None:
        door = Socks5Door()
        with pytest.raises(LocalProtocolError):
            door.accept()
        feed(door, SOCKS5)
        door.accept()
        with pytest.raises(LocalProtocolError):
            door.refuse(Failure(Reason.INTERNAL))


class TestAssociations:
    """RFC 1928 section 4, UDP ASSOCIATE: DST.ADDR and DST.PORT are where the client means to send from."""

    @pytest.mark.parametrize(
        ("address", "port"),
        [
            ("01 00000000 0000", 0),
            ("01 7f000001 d431", 54321),
            ("04 00000000000000000000000000000000 0000", 0),
            ("04 00000000000000000000000000000001 ffff", 65535),
            ("03 00 0001", 1),
            ("03 0b 686f6d652e7475756e656c 0000", 0),
        ],
    )
    @pytest.mark.parametrize("local", [False, True])
    def test_the_port_counts_and_the_host_does_not(self, address: str, port: int, local: bool) -> None:
        door = Socks5Door(local=local)
        assert feed(door, b"\x05\x01\x00\x05\x03\x00" + bytes.fromhex(address)) == AssociateRequest(port, local)
        assert door.data_to_send() == b"\x05\x00"

    def test_the_answer_says_where_the_datagrams_go(self) -> None:
        door = Socks5Door()
        feed(door, b"\x05\x01\x00" + ASSOCIATE)
        door.data_to_send()
        door.accept(HostPort("127.0.0.1", 40000))
        assert door.data_to_send().hex(" ") == "05 00 00 01 7f 00 00 01 9c 40"

    def test_over_ipv6_too(self) -> None:
        door = Socks5Door()
        feed(door, b"\x05\x01\x00" + ASSOCIATE)
        door.data_to_send()
        door.accept(HostPort("fe80::1%eth0", 40000))
        assert door.data_to_send().hex(" ") == "05 00 00 04 fe 80" + " 00" * 13 + " 01 9c 40"

    def test_it_has_one_answer(self) -> None:
        door = Socks5Door()
        feed(door, b"\x05\x01\x00" + ASSOCIATE)
        door.data_to_send()
        door.refuse(Failure(Reason.LIMIT))
        assert door.data_to_send() == b"\x05\x01\x00\x01" + bytes(6)
        with pytest.raises(LocalProtocolError):
            door.accept()

    def test_the_password_opens_it(self) -> None:
        door = Socks5Door(ANN)
        assert feed(door, b"\x05\x01\x02\x01\x03ann\x02pw" + ASSOCIATE) == AssociateRequest(0, local=False)

    @given(st.lists(st.integers(0, 13)))
    def test_pieces_do_not_matter(self, cuts: list[int]) -> None:
        door, whole = Socks5Door(), b"\x05\x01\x00" + ASSOCIATE
        ends = sorted(cuts)
        events = [feed(door, whole[a:b]) for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
        assert [event for event in events if event] == [AssociateRequest(0, local=False)]


REFUSALS = {
    "BIND": (Socks5Door(), b"\x05\x01\x00\x05\x02\x00" + NAME, b"\x05\x00\x05\x07", Reason.UNSUPPORTED),
    "unknown command": (Socks5Door(), b"\x05\x01\x00\x05\x09\x00" + NAME, b"\x05\x00\x05\x07", Reason.UNSUPPORTED),
    "unknown address type": (Socks5Door(), b"\x05\x01\x00\x05\x01\x00\x02\x00", b"\x05\x00\x05\x08", Reason.UNSUPPORTED),
    "empty name": (Socks5Door(), b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00\x05\x01", Reason.BAD_REQUEST),
    "name of 255": (Socks5Door(), b"\x05\x01\x00\x05\x01\x00\x03\xff" + b"a" * 255 + b"\x00\x50", b"\x05\x00\x05\x01", Reason.BAD_REQUEST),
    "port 0": (Socks5Door(), b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", b"\x05\x00\x05\x01", Reason.BAD_REQUEST),
    "garbage after greeting": (Socks5Door(), b"\x05\x01\x00GET /", b"\x05\x00\x05\x01", Reason.BAD_REQUEST),
    "no methods": (Socks5Door(), b"\x05\x00", b"\x05\xff", Reason.UNSUPPORTED),
    "only a password": (Socks5Door(), b"\x05\x01\x02", b"\x05\xff", Reason.UNSUPPORTED),
    "no password offered": (Socks5Door(ANN), b"\x05\x01\x00", b"\x05\xff", Reason.BAD_CREDENTIALS),
    "wrong password": (Socks5Door(ANN), b"\x05\x01\x02\x01\x03ann\x02px" + SOCKS5[3:], b"\x05\x02\x01\x01", Reason.BAD_CREDENTIALS),
    "garbage for a password": (Socks5Door(ANN), b"\x05\x01\x02\x05", b"\x05\x02\x01\x01", Reason.BAD_REQUEST),
    "UDP ASSOCIATE without a password": (Socks5Door(ANN), b"\x05\x01\x00" + ASSOCIATE, b"\x05\xff", Reason.BAD_CREDENTIALS),
    "UDP ASSOCIATE with a wrong one": (
        Socks5Door(ANN),
        b"\x05\x01\x02\x01\x03ann\x02px" + ASSOCIATE,
        b"\x05\x02\x01\x01",
        Reason.BAD_CREDENTIALS,
    ),
    "UDP ASSOCIATE, unknown address type": (Socks5Door(), b"\x05\x01\x00\x05\x03\x00\x02", b"\x05\x00\x05\x08", Reason.UNSUPPORTED),
    "UDP ASSOCIATE over SOCKS4": (Socks4Door(), b"\x04\x03" + SOCKS4A[2:], b"\x00\x5b", Reason.UNSUPPORTED),
    "SOCKS4 BIND": (Socks4Door(), b"\x04\x02" + SOCKS4A[2:], b"\x00\x5b", Reason.UNSUPPORTED),
    "SOCKS4 without end": (Socks4Door(), SOCKS4A[:8] + b"u" * 256, b"\x00\x5b", Reason.BAD_REQUEST),
    "SOCKS4a without name": (Socks4Door(), SOCKS4A[:8] + b"\x00\x00", b"\x00\x5b", Reason.BAD_REQUEST),
    "SOCKS4a where a password is demanded": (Socks4Door(ANN), SOCKS4A, b"\x00\x5b", Reason.BAD_CREDENTIALS),
}


@pytest.mark.parametrize(("door", "data", "answer", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(door: SocksDoor, data: bytes, answer: bytes, reason: Reason) -> None:
    event = feed(door, data)
    assert isinstance(event, Refused)
    assert event.reason is reason
    assert door.data_to_send().startswith(answer)
    with pytest.raises(LocalProtocolError):
        door.accept()


@pytest.mark.parametrize(("door", "data"), [(Socks5Door(), b""), (Socks5Door(), SOCKS5[:-1]), (Socks4Door(), SOCKS4A[:-1])])
def test_an_early_end_breaks_the_protocol(door: SocksDoor, data: bytes) -> None:
    door.receive_data(data)
    door.receive_eof()
    with pytest.raises(RemoteProtocolError):
        door.next_event()


def test_an_end_behind_the_request_is_none_of_its_business() -> None:
    door = Socks5Door()
    door.receive_data(SOCKS5)
    door.receive_eof()
    assert isinstance(door.next_event(), Request)
    assert door.next_event() is None


@given(st.sampled_from([b"\x04", b"\x05"]), st.lists(st.binary(max_size=300), max_size=6))
def test_garbage_ends_in_a_request_or_a_refusal_or_waits(first: bytes, pieces: list[bytes]) -> None:
    door: SocksDoor = Socks5Door() if first == b"\x05" else Socks4Door()
    events = [feed(door, piece) for piece in [first, *pieces]]
    assert len([event for event in events if event is not None]) <= 1
