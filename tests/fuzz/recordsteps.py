"""What flows in a tunnel: records under the real keys, and raw bytes in their place."""

from typing import Final

from tests.fuzz.harness import Choices, harness, pieces
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.flows import FlowOpen
from tuunel.e2e.records import BUFFER_SIZE, RecordOpener, RecordSealer, _Cipher
from tuunel.e2e.wire import (
    BODY_LENGTHS,
    MAX_BODY,
    MAX_EARLY_BODY,
    TRANSITIONS,
    Command,
    Connected,
    Direction,
    Error,
    Phase,
    RecordType,
    Reset,
    Target,
    fits,
)
from tuunel.errors import Failure, LocalProtocolError, Reason, RemoteProtocolError

_SECRET: Final = b"s" * 32
_POOL: Final = BufferPool()
_CHUNK: Final = memoryview(bytearray(BUFFER_SIZE))
_RECORD, _LARGE, _SKIP, _REPEAT, _SPOIL, _RAW, _TRUST, _END = range(8)  # the steps of a conversation
_MOST_LARGE: Final = 2  #: of one conversation: more teach nothing, and cost as much as a thousand small ones


def _step(kind: int, body: bytes) -> bytes:
    return bytes([_RECORD, kind]) + len(body).to_bytes(2, "big") + body


_TARGET: Final = Target(Command.TCP, "host", 80).encode()
_BOUND: Final = Connected(HostPort("192.0.2.1", 9)).encode()
_FIN_BODY: Final = b"\1"


class _Stream:
    """One direction's opener, and what its peer has sealed; the order of records is judged anew, from the table in the text."""

    def __init__(self, direction: Direction, size: int, *, early: bool) -> None:
        self._opener = RecordOpener(_SECRET, direction, _POOL, early=early)
        self._cipher = _Cipher(_SECRET)
        self._table = TRANSITIONS[direction]
        self._ceiling = MAX_EARLY_BODY if early else MAX_BODY
        self._phase = Phase.STANDBY
        self._size = size
        self._last = b""
        self.genuine = True  #: no byte of the stream is an attacker's
        self.over = False

    def trust(self) -> None:
        self._opener.peer_authenticated()
        self._ceiling = MAX_BODY

    def record(self, code: int, body: bytes) -> None:
        header = (len(body) + 17).to_bytes(3, "big")
        self._last = header + self._cipher.aead.encrypt(self._cipher.next_nonce(), bytes([code]) + body, header)
        kind = next((kind for kind in BODY_LENGTHS if kind == code), None)
        after = kind and self._table.get((self._phase, kind))
        good = self.genuine and kind and after and fits(kind, len(body)) and len(body) <= self._ceiling
        opened = self.feed(self._last)
        if not good or not kind or not after:
            assert not opened
            assert self.over or not self.genuine, "a record that breaks the rules was waited for"
            return
        assert opened == [(kind, body)]
        self._phase = after
        assert self._opener.phase is after
        if kind is RecordType.KEY_UPDATE:
            self._cipher.update()

    def skip(self) -> None:
        self._cipher.next_nonce()
        self.genuine = False

    def repeat(self) -> None:
        self.genuine = self.genuine and not self._last
        assert not self.feed(self._last)

    def spoil(self, at: int) -> None:
        if self._last:
            spoilt = bytearray(self._last)
            spoilt[at % len(spoilt)] ^= 1 << at % 8
            self.genuine = False
            assert not self.feed(bytes(spoilt))

    def raw(self, data: bytes) -> None:
        self.genuine = self.genuine and not data
        assert not self.feed(data)

    def feed(self, data: bytes) -> list[tuple[RecordType, bytes]]:
        """Records that come of these bytes. Where it must break, it lets go of everything."""
        opened = []
        size = self._size if len(data) < 4096 else 0
        for piece in pieces(data, size):
            self._opener.receive_data(piece)
            try:
                while (record := self._opener.open_into(_CHUNK)) is not None:
                    opened.append((record[0], bytes(_CHUNK[1 : 1 + record[1]])))
            except RemoteProtocolError:
                self.over = True
                assert _POOL.lent == 0
                _check_closed(self._opener)
                return opened
            assert _POOL.lent <= 1
            assert len(self._opener._backlog) == 0, "what does not fit one buffer was a breach"
        return opened

    def end(self) -> None:
        ended = self._phase in (Phase.FINISHED, Phase.REFUSED, Phase.ABORTED)
        try:
            self._opener.receive_eof()
        except Failure:
            assert not (ended and self.genuine), "a clean end was taken for a cut"
        else:
            assert ended
        self.over = True

    def close(self) -> None:
        self._opener.close()
        assert _POOL.lent == 0


def _check_closed(opener: RecordOpener) -> None:
    try:
        opener.open_into(_CHUNK)
    except LocalProtocolError:
        return
    raise AssertionError("a dead opener goes on")


@harness(
    max_length=1000,
    seeds=[
        b"\0\0" + _step(0x10, _TARGET) + _step(1, b"hello") + _step(0x21, bytes(8)) + _step(2, b"\0") + bytes([_END]),
        b"\1\3" + _step(0x11, _BOUND) + _step(1, b"x") + _step(0x20, b"") + _step(1, b"y") + _step(3, Reset(None).encode()) + bytes([_END]),
        b"\2\0" + _step(0x10, _TARGET) + bytes([_LARGE, 1, 0x04, 0x01]) + bytes([_TRUST, _LARGE, 1, 0x04, 0x01]),
        b"\0\1" + _step(0x10, Target(Command.UDP, "", 0).encode()) + _step(0x31, FlowOpen(0, "h", 53).encode()) + _step(0x30, b"\0\0q"),
        b"\1\0" + _step(0x12, Error(Reason.POLICY_DENIED, "no").encode()) + bytes([_END]),
        b"\0\0" + _step(0x10, _TARGET) + _step(2, _FIN_BODY) + _step(0x20, b"") + _step(0x10, _TARGET) + _step(0x23, b"pad"),
        b"\0\0" + _step(0x10, _TARGET) + bytes([_SKIP]) + _step(1, b"x"),
        b"\0\0" + _step(0x10, _TARGET) + bytes([_REPEAT]),
        b"\0\0" + _step(0x10, _TARGET) + bytes([_SPOIL, 0, 40]),
        b"\0\0" + _step(0x10, _TARGET) + bytes([_RAW, 0, 20]) + bytes(20),
    ],
)
def records(data: bytes) -> None:
    """Records under the real keys, in any order and pieces, open exactly where the table allows; they hold one buffer, a breach none."""
    choices = Choices(data)
    options, size = choices.byte(), choices.byte()
    stream, large = _Stream(list(Direction)[options & 1], size, early=bool(options & 2)), _MOST_LARGE
    while choices and not stream.over:
        match choices.byte() % 8:
            case step if step == _RECORD:
                stream.record(choices.byte(), choices.take(choices.number(2)))
            case step if step == _LARGE:
                code, size = choices.byte(), min(choices.number(2) * 16, MAX_BODY + 16)
                if large:
                    large -= 1
                    stream.record(code, bytes(size))
            case step if step == _SKIP:
                stream.skip()
            case step if step == _REPEAT:
                stream.repeat()
            case step if step == _SPOIL:
                stream.spoil(choices.number(2))
            case step if step == _RAW:
                stream.raw(choices.take(choices.number(2)))
            case step if step == _TRUST:
                stream.trust()
            case _:
                stream.end()
    stream.close()


@harness(
    max_length=3000,
    seeds=[
        b"\0\0" + RecordSealer(b"o" * 32, Direction.FORWARD_TO_AGENT).seal(RecordType.CONNECT, _TARGET),
        b"\1\2\0\0\x11" + bytes(17),
        b"\2\0\4\0\x11",
    ],
)
def raw_records(data: bytes) -> None:
    """Bytes of whoever does not hold the key are never a record: at most one buffer is held while they come, and none when they end."""
    choices = Choices(data)
    options, size = choices.byte(), choices.byte()
    stream = _Stream(list(Direction)[options & 1], size, early=bool(options & 2))
    stream.raw(choices.rest())
    if not stream.over:
        stream.genuine = False
        stream.end()
    stream.close()
