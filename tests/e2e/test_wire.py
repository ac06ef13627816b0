"""Every layout reads what it writes, refuses everything else, and keeps its ceilings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuunel.address import HostPort
from tuunel.e2e.params import LABEL_CEILING, PARAMS_CEILING, Parameters
from tuunel.e2e.service import Measure, RelayRtt, Taken
from tuunel.e2e.wire import (
    ANNOUNCED,
    DETAIL_CEILING,
    HOST_CEILING,
    PAD_BLOCK,
    PADDED_CEILING,
    REASON_CODES,
    UNIX_PATH_CEILING,
    Accept,
    Command,
    Connected,
    Error,
    Init,
    InviteProof,
    Offer,
    Purpose,
    RecordType,
    Reset,
    Target,
)
from tuunel.errors import Failure, Reason, RemoteProtocolError

AGENT_FAMILY = {
    Reason.NOT_PAIRED,
    Reason.INVITE_INVALID,
    Reason.POLICY_DENIED,
    Reason.POLICY_REVOKED,
    Reason.CONNECTION_REFUSED,
    Reason.HOST_UNREACHABLE,
    Reason.NET_UNREACHABLE,
    Reason.NAME_NOT_RESOLVED,
    Reason.CONNECT_TIMEOUT,
    Reason.UNSUPPORTED,
    Reason.LIMIT,
    Reason.SHUTDOWN,
    Reason.INTERNAL,
    Reason.KILLED,
}
LAYOUTS = (Offer, Init, Accept, Target, Connected, Error, Reset, Measure, RelayRtt, Taken)
Layout = Offer | Init | Accept | Target | Connected | Error | Reset | Measure | RelayRtt | Taken
EXAMPLES = [
    Offer(1, bytes(65), bytes(1184), 2**64 - 1, bytes(32), bytes(65), bytes(64)),
    Init(bytes(65), bytes(64), None, Purpose.STANDBY, Parameters()),
    Init(bytes(65), bytes(64), InviteProof(bytes(8), bytes(32)), Purpose.CONNECT, Parameters("Anna's laptop")),
    Accept(None, bytes(64), Parameters("häuschen", frozenset({4, 200}))),
    Accept(Reason.NOT_PAIRED, bytes(64), Parameters()),
    Target(Command.TCP, "", 0),
    Target(Command.TCP, "fd00::1", 65535),
    Target(Command.UDP, "", 0),
    Target(Command.UNIX, "/run/docker.sock", 0),
    Target(Command.SERVICE, "relay-rtt", 0),
    Connected(HostPort("fd00::1", 53)),
    Error(Reason.LIMIT, "too many"),
    Reset(None),
    Reset(Reason.SHUTDOWN),
    Measure(2**32 - 1),
    RelayRtt(1),
    Taken(2**64 - 1, 1),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_what_is_written_is_read(example: Layout) -> None:
    assert type(example).decode(example.encode()) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_cut_or_an_addition_is_refused(example: Layout) -> None:
    encoded = example.encode()
    for bad in (encoded[:-1], encoded + b"\0", b"", encoded + bytes(PAD_BLOCK)):
        with pytest.raises(RemoteProtocolError):
            type(example).decode(bad)


@given(garbage=st.binary(max_size=1500))
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    for layout in LAYOUTS:
        try:
            layout.decode(garbage)
        except RemoteProtocolError:
            continue


def test_an_offer_has_a_fixed_length() -> None:
    assert len(EXAMPLES[0].encode()) == Offer.LENGTH == 1419


def test_padding_hides_the_length_of_a_name() -> None:
    assert {len(Target(Command.TCP, "x" * n, 1).encode()) for n in range(253)} == {PAD_BLOCK}
    assert len(Target(Command.TCP, "x" * HOST_CEILING, 1).encode()) == PADDED_CEILING


def test_padding_is_zeros() -> None:
    body = bytearray(Target(Command.TCP, "home", 80).encode())
    body[-1] = 1
    with pytest.raises(RemoteProtocolError):
        Target.decode(bytes(body))


@pytest.mark.parametrize("host", ["x" * (HOST_CEILING + 1), "a b", "a\nb", "a\0b", "häuschen", "a\x7fb"])
def test_a_host_that_no_name_can_be_is_not_sent(host: str) -> None:
    with pytest.raises(Failure) as failure:
        Target(Command.TCP, host, 80).encode()
    assert failure.value.reason is Reason.NAME_NOT_RESOLVED


@pytest.mark.parametrize("host", [b"a b", b"a\nb", b"a\0b", "häuschen".encode(), b"\xff", b"\x7f"])
def test_a_host_that_no_name_can_be_is_not_read(host: bytes) -> None:
    body = bytes([Command.TCP, len(host)]) + host + b"\0\x50"
    with pytest.raises(RemoteProtocolError):
        Target.decode(body.ljust(PAD_BLOCK, b"\0"))


NOT_MEANT = [
    (Command.UDP, "home", 0),
    (Command.UDP, "", 53),
    (Command.UNIX, "", 0),
    (Command.UNIX, "run/docker.sock", 0),
    (Command.UNIX, "/run/docker.sock", 80),
    (Command.UNIX, "/" + "x" * UNIX_PATH_CEILING, 0),
    (Command.SERVICE, "", 0),
    (Command.SERVICE, "sink", 80),
]


@pytest.mark.parametrize(("command", "host", "port"), NOT_MEANT)
def test_a_request_that_its_command_gives_no_meaning_is_neither_sent_nor_read(command: Command, host: str, port: int) -> None:
    with pytest.raises(Failure) as failure:
        Target(command, host, port).encode()
    assert failure.value.reason is Reason.NAME_NOT_RESOLVED
    body = bytes([command, len(host)]) + host.encode() + port.to_bytes(2, "big")
    with pytest.raises(RemoteProtocolError):
        Target.decode(body.ljust(PAD_BLOCK, b"\0"))


def test_the_longest_path_of_a_unix_socket_fits() -> None:
    target = Target(Command.UNIX, "/" + "x" * (UNIX_PATH_CEILING - 1), 0)
    assert Target.decode(target.encode()) == target


@pytest.mark.parametrize("command", [0, 5, 255])
def test_an_unknown_command_is_refused(command: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Target.decode((bytes([command]) + b"\x04home\0\x50").ljust(PAD_BLOCK, b"\0"))


def init_with(*, flags: int = 0, invite: bytes = b"", purpose: int = 1, params: bytes = b"") -> bytes:
    body = bytes(129) + bytes([flags]) + invite + bytes([purpose]) + len(params).to_bytes(2, "big") + params
    return body + bytes(-len(body) % PAD_BLOCK)


@pytest.mark.parametrize("flags", [2, 3, 128])
@pytest.mark.parametrize("invite", [b"", bytes(40)])
def test_unknown_flags_of_init_are_refused(flags: int, invite: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Init.decode(init_with(flags=flags, invite=invite))


@pytest.mark.parametrize("purpose", [0, 3])
def test_an_unknown_purpose_is_refused(purpose: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Init.decode(init_with(purpose=purpose))


def test_unknown_parameters_are_skipped_so_that_later_versions_can_say_more() -> None:
    assert Init.decode(init_with(params=b"\x09\x03abc\x01\x02me\x0a\x00")).params == Parameters("me")


def test_an_agent_announces_the_commands_that_an_older_one_would_take_for_a_breach() -> None:
    assert {Command.TCP, Command.UDP, Command.UNIX} | ANNOUNCED == set(Command)
    announced = Accept(None, bytes(64), Parameters("", frozenset(ANNOUNCED))).encode()
    assert announced[65:].startswith(b"\x00\x05" + b"\x01\x00" + b"\x02\x01\x04")
    assert Accept.decode(announced).params.commands == ANNOUNCED


def test_an_answer_has_one_length() -> None:
    assert [len(each) for each in (Measure(1).encode(), RelayRtt(1).encode(), Taken(1, 1).encode())] == [
        Measure.LENGTH,
        RelayRtt.LENGTH,
        Taken.LENGTH,
    ]


@pytest.mark.parametrize(
    "params",
    [
        b"\x01",
        b"\x01\x05abc",
        b"\x01\x01a\x01\x01b",
        b"\x09\x00\x09\x00",
        b"\x01\x01\xff",
        b"\x02\x02\x04",
        b"\x02\x01\x04\x02\x01\x05",
        b"\x01" + bytes([LABEL_CEILING + 1]) + b"x" * (LABEL_CEILING + 1),
        b"\x09\xff" + bytes(255) + b"\x0a\xfe" + bytes(254),  # PARAMS_CEILING + 1
    ],
)
def test_malformed_parameters_are_refused(params: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Init.decode(init_with(params=params))


def test_parameters_at_their_ceiling_are_read() -> None:
    params = b"\x09\xff" + bytes(255) + b"\x0a\xfd" + bytes(253)
    assert len(params) == PARAMS_CEILING
    assert Init.decode(init_with(params=params)).params == Parameters()


def test_long_texts_are_cut_between_characters() -> None:
    init = Init(bytes(65), bytes(64), None, Purpose.CONNECT, Parameters("ä" * 100))
    assert Init.decode(init.encode()).params.label == "ä" * (LABEL_CEILING // 2)
    assert Error.decode(Error(Reason.INTERNAL, "x" + "€" * 100).encode()).detail == "x" + "€" * 66
    assert len(("x" + "€" * 66).encode()) <= DETAIL_CEILING


def test_a_detail_above_its_ceiling_is_refused() -> None:
    body = bytes([REASON_CODES[Reason.LIMIT], DETAIL_CEILING + 1]) + b"x" * (DETAIL_CEILING + 1)
    with pytest.raises(RemoteProtocolError):
        Error.decode(body.ljust(PAD_BLOCK, b"\0"))


def test_everything_that_an_agent_says_has_one_code() -> None:
    assert set(REASON_CODES) == AGENT_FAMILY
    assert len(set(REASON_CODES.values())) == len(REASON_CODES)
    assert 0 not in REASON_CODES.values()


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_arrives_as_itself_or_as_internal(reason: Reason) -> None:
    arrived = reason if reason in AGENT_FAMILY else Reason.INTERNAL
    assert Error.decode(Error(reason, "").encode()).reason is arrived
    assert Reset.decode(Reset(reason).encode()).reason is arrived


@pytest.mark.parametrize("code", sorted(set(range(1, 256)) - set(REASON_CODES.values())))
def test_an_unknown_reason_code_is_refused(code: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Reset.decode(bytes([code]))
    with pytest.raises(RemoteProtocolError):
        Error.decode(bytes([code]).ljust(PAD_BLOCK, b"\0"))


def test_error_has_no_code_for_no_reason() -> None:
    with pytest.raises(RemoteProtocolError):
        Error.decode(bytes(PAD_BLOCK))


def test_no_record_type_is_zero() -> None:
    assert min(RecordType) > 0
