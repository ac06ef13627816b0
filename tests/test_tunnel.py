"""A tunnel as a Conduit: what it carries, how it ends, when it is lost, and that it gives everything back."""

import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from tests.streams import fill, receive_all, tcp_pair
from tests.world import PATIENCE, open_descriptors, until
from tuunel import tunnel as module
from tuunel.address import HostPort
from tuunel.buffers import BufferPool
from tuunel.e2e.records import MAX_EARLY_BODY, OVERHEAD, RecordOpener, RecordSealer
from tuunel.e2e.wire import FIN_BODY, FIN_RECYCLABLE, FLOW_RECORDS, Command, Connected, Direction, Error, RecordType, Target
from tuunel.errors import Failure, LocalProtocolError, Reason, Speaker
from tuunel.events import Traffic
from tuunel.liveness import watch_tunnels
from tuunel.pump import PumpEnd, copy_both_ways
from tuunel.rawstream import RawStream, receive_chunk, send_bytes
from tuunel.recordstream import DEAD, KEY_LIFETIME, QUIET, RTT_AGE, RecordStream
from tuunel.tunnel import ANSWER_TIMEOUT, EARLY_LIMIT, EARLY_RECORDS, Tunnel, TunnelCut

pytestmark = pytest.mark.anyio

TARGET = Target(Command.TCP, "printer.lan", 631)
BOUND = HostPort("192.168.1.7", 50123)
MEBIBYTE = os.urandom(1 << 20)
FORTH, BACK = Direction.FORWARD_TO_AGENT, Direction.AGENT_TO_FORWARD


def secret(direction: Direction) -> bytes:
    return direction.value.encode() * 11  # any 33 bytes


def make_tunnel(stream: RawStream, sends: Direction, buffers: BufferPool) -> Tunnel:
    receives = BACK if sends is FORTH else FORTH
    sealer, opener = RecordSealer(secret(sends), sends), RecordOpener(secret(receives), receives, buffers)
    return Tunnel(RecordStream(stream, sealer, opener, buffers), "aaaaaaaa")


class Ends:
    """Both ends of one tunnel, over one TCP connection that stands for the relay's pipe."""

    def __init__(self) -> None:
        near, far = tcp_pair()
        self.buffers = BufferPool()
        self.forward = make_tunnel(RawStream(near), FORTH, self.buffers)
        self.agent = make_tunnel(RawStream(far), BACK, self.buffers)

    async def open(self) -> None:
        await self.forward.request(TARGET)
        assert await self.agent.requested() == TARGET
        await self.agent.answer_connected(BOUND)
        assert await self.forward.answer(PATIENCE) == BOUND

    def close(self) -> None:
        self.forward.reset()
        self.agent.reset()


@asynccontextmanager
async def ends(*, opened: bool = True) -> AsyncIterator[Ends]:
    """Both ends; afterwards nothing is left open or borrowed."""
    await anyio.lowlevel.checkpoint()
    before = open_descriptors()
    both = Ends()
    try:
        if opened:
            await both.open()
        yield both
    finally:
        both.close()
        await anyio.wait_all_tasks_blocked()
        assert both.buffers.lent == 0
        assert open_descriptors() == before


class Far:
    """The far end of a tunnel in the test's hands: it may say what no tunnel says. `forward` or `agent` is the end under test."""

    def __init__(self, sends: Direction) -> None:
        near, far = tcp_pair()
        self.buffers = BufferPool()
        self.tunnel = make_tunnel(RawStream(near), BACK if sends is FORTH else FORTH, self.buffers)
        self.stream = RawStream(far)
        self.sealer = RecordSealer(secret(sends), sends)
        self._opener = RecordOpener(secret(FORTH if sends is BACK else BACK), FORTH if sends is BACK else BACK, BufferPool())
        self._chunk = memoryview(bytearray(module.EARLY_LIMIT * 5))

    async def say(self, kind: RecordType, body: bytes = b"") -> None:
        await self.stream.send_all(self.sealer.seal(kind, body))

    async def hear(self, kind: RecordType) -> bytes:
        """The body of the next record, which must be of this type."""
        with anyio.fail_after(PATIENCE):
            while (record := self._opener.open_into(self._chunk)) is None:
                data = await self.stream.receive()
                assert data, "the tunnel was closed"
                self._opener.receive_data(data)
        assert record[0] is kind
        return bytes(self._chunk[1 : 1 + record[1]])

    async def hear_all(self) -> list[RecordType]:
        """The types of all records that are here."""
        kinds = [await self.hear_any()]
        while (record := self._opener.open_into(self._chunk)) is not None:
            kinds.append(record[0])
        return kinds

    async def hear_any(self) -> RecordType:
        """The type of the next record."""
        with anyio.fail_after(PATIENCE):
            while (record := self._opener.open_into(self._chunk)) is None:
                data = await self.stream.receive()
                assert data, "the tunnel was closed"
                self._opener.receive_data(data)
        return record[0]

    async def open(self) -> None:
        """As the agent: connect what the forward side asks for."""
        await self.tunnel.request(TARGET)
        await self.hear(RecordType.CONNECT)
        await self.say(RecordType.PONG, await self.hear(RecordType.PING))
        await self.say(RecordType.CONNECTED, Connected(BOUND).encode())
        await self.tunnel.answer(PATIENCE)


@asynccontextmanager
async def far(sends: Direction = BACK, *, opened: bool = False) -> AsyncIterator[Far]:
    peer = Far(sends)
    try:
        if opened:
            await peer.open()
        yield peer
    finally:
        peer.tunnel.reset()
        peer.stream.close()
        await anyio.wait_all_tasks_blocked()
        assert peer.buffers.lent == 0


async def read(tunnel: Tunnel) -> bytes:
    with anyio.fail_after(PATIENCE):
        return await receive_chunk(tunnel, tunnel.records._buffers)


async def write(tunnel: Tunnel, data: bytes) -> None:
    with anyio.fail_after(PATIENCE):
        await send_bytes(tunnel, tunnel.records._buffers, data)


@asynccontextmanager
async def carried(both: Ends) -> AsyncIterator[tuple[RawStream, RawStream, list[PumpEnd]]]:
    """An app and a target whose bytes go through the tunnel."""
    app, a = tcp_pair()
    target, b = tcp_pair()
    outcomes: list[PumpEnd] = []
    streams = [RawStream(sock) for sock in (app, a, target, b)]

    async def pump(one: RawStream | Tunnel, other: RawStream | Tunnel) -> None:
        outcomes.append(end := await copy_both_ways(one, other, Traffic(), both.buffers))
        if end is PumpEnd.DONE:
            await one.aclose()
            await other.aclose()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pump, streams[1], both.forward)
            tasks.start_soon(pump, both.agent, streams[3])
            yield streams[0], streams[2], outcomes
            tasks.cancel_scope.cancel()
    finally:
        for stream in streams:
            stream.close()


# what it carries


async def test_bytes_go_both_ways() -> None:
    async with ends() as both:
        await write(both.forward, b"question")
        assert await read(both.agent) == b"question"
        await write(both.agent, b"answer")
        assert await read(both.forward) == b"answer"


async def test_an_end_goes_one_way_and_a_mebibyte_comes_the_other() -> None:
    async with ends() as both, carried(both) as (app, target, outcomes):
        with anyio.fail_after(PATIENCE):
            await app.send_all(b"question")
            await app.write_eof()
            assert await receive_all(target) == b"question"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(target.send_all, MEBIBYTE)
                received = await app.receive_exactly(len(MEBIBYTE))
            assert received == MEBIBYTE
            await target.write_eof()
            assert await app.receive() == b""
            await until(lambda: outcomes == [PumpEnd.DONE, PumpEnd.DONE])


async def test_records_are_small_at_first_then_grow_and_are_small_again_after_a_second_of_silence() -> None:
    async with ends() as both:
        assert both.forward.chunk_limit == 16384
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, both.forward, bytes(200_000))
            received = 0
            while received < 200_000:
                received += len(await read(both.agent))
        grown = both.forward.chunk_limit
        assert grown > 16384
        both.forward.records.tick(both.forward.records._writer.written + 0.9)
        assert both.forward.chunk_limit == grown
        both.forward.records.tick(both.forward.records._writer.written + 1.1)
        assert both.forward.chunk_limit == 16384


# how it ends


async def test_a_connection_that_ends_without_fin_is_cut_and_never_an_end() -> None:
    async with far(opened=True) as peer:
        await peer.say(RecordType.DATA, b"all but the last ")
        await peer.stream.write_eof()
        assert await read(peer.tunnel) == b"all but the last "
        with pytest.raises(TunnelCut, match="without an end"):
            await read(peer.tunnel)


async def test_the_app_behind_a_tunnel_that_is_cut_off_sees_a_reset() -> None:
    async with ends() as both, carried(both) as (app, target, _):
        await app.send_all(b"x")
        assert await target.receive() == b"x"
        both.agent.stream.close()  # FIN on the wire, and no FIN record
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionResetError):
            await receive_all(app)


@pytest.mark.parametrize("how", ["aclose", "reset"])
async def test_reset_reaches_the_other_end_as_one(how: str) -> None:
    async with ends() as both:
        await both.forward.write_eof()
        assert await read(both.agent) == b""
        if how == "reset":
            both.forward.reset(Reason.POLICY_REVOKED)
        else:
            await both.forward.aclose()  # only one direction has ended
        with pytest.raises(OSError):
            await write(both.agent, bytes(10_000_000))


async def test_reset_says_why_where_it_can() -> None:
    async with ends() as both:
        both.agent.reset(Reason.POLICY_REVOKED)
        with pytest.raises(TunnelCut, match="POLICY_REVOKED"):
            await read(both.forward)


async def test_a_clean_close_after_both_ends() -> None:
    async with ends() as both:
        await both.forward.write_eof()
        await both.agent.write_eof()
        assert await read(both.agent) == await read(both.forward) == b""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.forward.aclose)
            tasks.start_soon(both.agent.aclose)
        assert both.forward.closed
        assert not both.forward.cut_reason
        with pytest.raises(anyio.ClosedResourceError):
            await write(both.forward, b"late")


def flipped(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


SPOILT: list[tuple[str, Callable[[Far], bytes]]] = [
    ("garbage", lambda _: bytes(100)),
    ("a length above the ceiling", lambda _: b"\xff\xff\xff"),
    ("a broken tag", lambda peer: flipped(peer.sealer.seal(RecordType.DATA, b"x"))),
    ("the second record without the first", lambda peer: (peer.sealer.seal(RecordType.PAD), peer.sealer.seal(RecordType.DATA, b"x"))[1]),
    ("a record twice", lambda peer: peer.sealer.seal(RecordType.PAD) * 2),
    ("a flow in a tunnel of bytes", lambda peer: peer.sealer.seal(RecordType.FLOW_OPEN, bytes(256))),
    ("a reset for no known reason", lambda peer: peer.sealer.seal(RecordType.RESET, b"\xee")),
]


@pytest.mark.parametrize("spoil", [each for _, each in SPOILT], ids=[name for name, _ in SPOILT])
async def test_what_breaks_the_rules_cuts_the_tunnel(spoil: Callable[[Far], bytes]) -> None:
    async with far(opened=True) as peer:
        await peer.stream.send_all(spoil(peer))
        with pytest.raises(TunnelCut):
            await read(peer.tunnel)
        with pytest.raises(TunnelCut):
            await write(peer.tunnel, b"x")
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionResetError):
            await receive_all(peer.stream)


async def test_bytes_in_a_tunnel_of_flows_cut_it() -> None:
    async with far(opened=True) as peer:
        await peer.say(RecordType.DATA, b"x")
        with anyio.fail_after(PATIENCE), pytest.raises(TunnelCut):
            await peer.tunnel.on_records(lambda: peer.tunnel.take(*FLOW_RECORDS, RecordType.FIN))
        assert peer.tunnel.closed


@pytest.mark.parametrize(
    ("kind", "body"),
    [(RecordType.CONNECTED, Connected(BOUND).encode()), (RecordType.ERROR, Error(Reason.LIMIT, "").encode()), (RecordType.RESET, b"\xee")],
    ids=lambda value: value.name if isinstance(value, RecordType) else "",
)
async def test_a_standby_that_answers_what_was_not_asked_is_of_no_use(kind: RecordType, body: bytes) -> None:
    async with far() as peer:
        await peer.say(kind, body)
        with anyio.fail_after(PATIENCE), pytest.raises(TunnelCut):
            await peer.tunnel.rest()


# opening


async def test_a_request_its_ping_and_the_early_bytes_go_out_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    early = MEBIBYTE[: 2 * MAX_EARLY_BODY + 1]
    async with far() as peer:
        sent = noted_writes(monkeypatch)
        assert peer.tunnel.request_now(TARGET, early) is None
        assert len(sent) == 1
        assert Target.decode(await peer.hear(RecordType.CONNECT)) == TARGET
        assert len(await peer.hear(RecordType.PING)) == 8
        assert b"".join([await peer.hear(RecordType.DATA) for _ in range(3)]) == early


@pytest.mark.parametrize(("age", "pings"), [(0.0, False), (RTT_AGE + 1, True)])
async def test_a_request_asks_for_the_round_trip_where_it_was_not_measured_lately(age: float, pings: bool) -> None:
    async with far() as peer:
        peer.tunnel.records.note_rtt(0.01)
        peer.tunnel.records._measured -= age
        await peer.tunnel.request(TARGET)
        assert await peer.hear_all() == [RecordType.CONNECT, RecordType.PING][: 1 + pings]


async def test_an_agent_whose_dial_must_wait_says_so_at_once() -> None:
    async with far(FORTH) as peer:
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        peer.tunnel.show_life()
        async with anyio.create_task_group() as dialling:
            dialling.start_soon(peer.tunnel.collect_early)
            await peer.hear(RecordType.PAD)
            dialling.cancel_scope.cancel()
        await peer.tunnel.answer_connected(BOUND)
        await peer.hear(RecordType.CONNECTED)


async def test_a_request_that_the_connection_does_not_take_at_once_has_a_rest() -> None:
    async with far() as peer:
        size = fill(peer.tunnel.stream)
        rest = peer.tunnel.request_now(TARGET, b"early")
        assert rest is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rest)
            with anyio.fail_after(PATIENCE):
                await peer.stream.receive_exactly(size)
        await peer.hear(RecordType.CONNECT)
        await peer.hear(RecordType.PING)
        assert await peer.hear(RecordType.DATA) == b"early"


async def test_the_answer_takes_the_pong_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ends(opened=False) as both:
        await both.forward.request(TARGET)
        assert await both.agent.requested() == TARGET
        sent = noted_writes(monkeypatch)
        both.agent.take_early()
        await both.agent.answer_connected(BOUND)
        assert len(sent) == 1
        assert await both.forward.answer(PATIENCE) == BOUND
        assert both.forward.rtt is not None


async def test_what_came_with_a_request_is_taken_and_held() -> None:
    async with far(FORTH) as peer:
        data = (RecordType.DATA, b"early "), (RecordType.DATA, b"bird")
        records = (RecordType.CONNECT, TARGET.encode()), (RecordType.PING, bytes(8)), *data
        await peer.stream.send_all(b"".join(peer.sealer.seal(*record) for record in records))
        assert await peer.tunnel.requested() == TARGET
        peer.tunnel.take_early()
        await peer.tunnel.answer_connected(BOUND)
        assert await peer.hear(RecordType.PONG) == bytes(8)
        await peer.hear(RecordType.CONNECTED)
        assert await read(peer.tunnel) == b"early bird"


async def test_who_sends_no_end_of_records_with_a_request_holds_nobody_up() -> None:
    async with far(FORTH) as peer:
        connect = peer.sealer.seal(RecordType.CONNECT, TARGET.encode())
        pings = b"".join(peer.sealer.seal(RecordType.PING, bytes(8)) for _ in range(10 * EARLY_RECORDS * 64))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.stream.send_all, connect + pings)
            await anyio.wait_all_tasks_blocked()
            assert await peer.tunnel.requested() == TARGET
            before = peer.tunnel.records._opener._cipher.records  # type: ignore[union-attr]
            peer.tunnel.take_early()
            taken = peer.tunnel.records._opener._cipher.records - before  # type: ignore[union-attr]
            tasks.cancel_scope.cancel()
        assert 0 < taken <= EARLY_RECORDS * 64


async def test_what_may_not_come_behind_a_request_cuts_the_tunnel() -> None:
    async with far(FORTH) as peer:
        connect = peer.sealer.seal(RecordType.CONNECT, TARGET.encode())
        await peer.stream.send_all(connect + bytes(OVERHEAD))
        assert await peer.tunnel.requested() == TARGET
        with pytest.raises(TunnelCut):
            peer.tunnel.take_early()


def noted_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each write takes from here on."""
    sent: list[int] = []

    def note(self: RawStream, data: bytes, **how: bool) -> int:
        sent.append(send_now(self, data, **how))
        return sent[-1]

    send_now = RawStream.send_now
    monkeypatch.setattr(RawStream, "send_now", note)
    return sent


async def test_an_answer_may_take_longer_than_the_sign_of_life() -> None:
    async with far() as peer:
        await peer.tunnel.request(TARGET)
        await peer.hear(RecordType.CONNECT)
        nonce = await peer.hear(RecordType.PING)
        await peer.say(RecordType.PONG, nonce)
        answers: list[HostPort] = []

        async def ask() -> None:
            answers.append(await peer.tunnel.answer(0.02))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with anyio.move_on_after(0.1):  # longer than the patience
                await anyio.sleep_forever()
            await peer.say(RecordType.CONNECTED, Connected(BOUND).encode())
        assert answers == [BOUND]


async def test_a_tunnel_that_was_just_accepted_has_shown_its_life() -> None:
    async with far() as peer:
        await peer.tunnel.records.send(RecordType.CONNECT, TARGET.encode())  # as behind INIT: no PING goes with it

        async def answer_late() -> None:
            with anyio.move_on_after(0.1):
                await anyio.sleep_forever()
            await peer.say(RecordType.CONNECTED, Connected(BOUND).encode())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer_late)
            assert await peer.tunnel.answer(0.02) == BOUND


async def test_a_standby_without_a_sign_of_life_is_lost_soon() -> None:
    async with far() as peer:
        await peer.tunnel.request(TARGET)
        with anyio.fail_after(ANSWER_TIMEOUT / 2), pytest.raises(Failure) as caught:
            await peer.tunnel.answer(0.02)
        assert caught.value.reason is Reason.TUNNEL_LOST


async def test_an_agent_that_lives_and_never_answers_is_lost_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.05)
    async with far() as peer:
        await peer.tunnel.request(TARGET)
        await peer.say(RecordType.PAD)
        with pytest.raises(Failure) as caught:
            await peer.tunnel.answer(0.02)
        assert caught.value.reason is Reason.TUNNEL_LOST


async def test_the_agents_error_is_told_in_its_name() -> None:
    async with ends(opened=False) as both:
        await both.forward.request(TARGET)
        await both.agent.requested()
        await both.agent.answer_error(Reason.HOST_UNREACHABLE, "no route")
        with pytest.raises(Failure) as caught:
            await both.forward.answer(PATIENCE)
        assert (caught.value.reason, caught.value.speaker, caught.value.detail) == (Reason.HOST_UNREACHABLE, Speaker.AGENT, "no route")


@pytest.mark.parametrize("kind", [RecordType.CONNECTED, RecordType.ERROR])
async def test_an_answer_that_means_nothing_is_a_lost_tunnel(kind: RecordType) -> None:
    async with far() as peer:
        await peer.tunnel.request(TARGET)
        await peer.say(kind, b"\xff" * 256)
        with pytest.raises(Failure) as caught:
            await peer.tunnel.answer(PATIENCE)
        assert caught.value.reason is Reason.TUNNEL_LOST


async def test_a_request_that_means_nothing_cuts_the_tunnel() -> None:
    async with far(FORTH) as peer:
        await peer.say(RecordType.CONNECT, b"\xff" * 256)
        with anyio.fail_after(PATIENCE), pytest.raises(TunnelCut):
            await peer.tunnel.requested()


async def test_a_host_that_no_name_can_be_is_refused_before_anything_is_sent() -> None:
    async with far() as peer:
        with pytest.raises(Failure) as caught:
            await peer.tunnel.request(Target(Command.TCP, "no name", 80))
        assert caught.value.reason is Reason.NAME_NOT_RESOLVED
        await peer.open()  # still of use


async def test_early_bytes_are_held_while_the_agent_dials_and_come_first_afterwards() -> None:
    async with far(FORTH) as peer:
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.say(RecordType.PING, b"12345678")
        await peer.say(RecordType.DATA, b"early ")
        assert await peer.tunnel.requested() == TARGET
        async with anyio.create_task_group() as dialling:
            dialling.start_soon(peer.tunnel.collect_early)
            assert await peer.hear(RecordType.PONG) == b"12345678"
            await peer.say(RecordType.DATA, b"birds")
            await peer.say(RecordType.FIN, FIN_BODY)
            await until(lambda: peer.tunnel.records._opener.fin_received)
            dialling.cancel_scope.cancel()
        await peer.tunnel.answer_connected(BOUND)
        assert await read(peer.tunnel) == b"early birds"
        assert await read(peer.tunnel) == b""


async def test_a_forward_proxy_that_gives_up_ends_the_wait_for_the_target() -> None:
    async with far(FORTH) as peer:
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        await peer.say(RecordType.DATA, b"early")
        await peer.say(RecordType.RESET, b"\x00")
        with anyio.fail_after(PATIENCE), pytest.raises(TunnelCut):
            await peer.tunnel.collect_early()


async def test_the_agent_stops_reading_when_it_holds_enough() -> None:
    async with far(FORTH) as peer:
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        for _ in range(6):
            await peer.say(RecordType.DATA, bytes(16384))
        with anyio.move_on_after(0.05):
            await peer.tunnel.collect_early()
        assert len(peer.tunnel._early) == EARLY_LIMIT


# liveness


async def test_pings_are_answered_with_their_nonce() -> None:
    async with far(opened=True) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(read, peer.tunnel)
        await peer.say(RecordType.PING, b"abcdefgh")
        assert await peer.hear(RecordType.PONG) == b"abcdefgh"
        tasks.cancel_scope.cancel()


async def test_a_quiet_tunnel_is_pinged_and_a_dead_one_is_cut() -> None:
    async with far(opened=True) as peer:
        failures: list[BaseException] = []

        async def wait() -> None:
            try:
                await read(peer.tunnel)
            except (OSError, anyio.ClosedResourceError) as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await until(lambda: peer.tunnel.records._reading_since is not None)
            started = peer.tunnel.records._reading_since
            assert started is not None
            assert not peer.tunnel.records.tick(started + QUIET - 0.1)
            assert peer.tunnel.records.tick(started + QUIET + 0.1)
            await peer.tunnel.records.flush()
            await peer.hear(RecordType.PING)
            assert not peer.tunnel.records.tick(started + DEAD - 0.1)  # one PING is enough
            assert not failures
            peer.tunnel.records.tick(started + DEAD + 0.1)
        assert failures
        assert "nothing was heard" in peer.tunnel.cut_reason


async def test_a_pong_tells_the_round_trip_and_that_the_peer_lives() -> None:
    async with far(opened=True) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(read, peer.tunnel)
        await until(lambda: peer.tunnel.records._reading_since is not None)
        assert peer.tunnel.records.tick(peer.tunnel.records.heard + QUIET + 1)
        await peer.tunnel.records.flush()
        await peer.say(RecordType.PONG, await peer.hear(RecordType.PING))
        await until(lambda: peer.tunnel.records._pinged is None)
        assert peer.tunnel.rtt is not None
        tasks.cancel_scope.cancel()


async def test_a_reader_that_pauses_for_ten_minutes_loses_nothing() -> None:
    async with ends() as both:
        await write(both.agent, b"before the pause")
        now = both.forward.records.heard
        spoke = 0
        for seconds in range(600):
            if both.forward.records.tick(now + seconds):  # nobody reads, and the peer hears that this end lives
                await both.forward.records.flush()
                spoke += 1
            assert not both.forward.closed
        assert spoke
        assert await read(both.forward) == b"before the pause"
        assert not both.forward.closed


async def test_a_writer_that_is_blocked_for_ten_minutes_loses_nothing() -> None:
    async with far(opened=True) as peer, anyio.create_task_group() as tasks:
        fill(peer.tunnel.stream)
        tasks.start_soon(write, peer.tunnel, b"blocked")
        tasks.start_soon(read, peer.tunnel)
        await until(lambda: peer.tunnel.records._writer._sending.locked() and peer.tunnel.records._reading_since)
        now = peer.tunnel.records.heard
        for seconds in range(600):
            assert not peer.tunnel.records.tick(now + seconds)
        assert not peer.tunnel.closed
        tasks.cancel_scope.cancel()


async def test_a_flood_of_pings_to_a_blocked_end_holds_one_answer() -> None:
    async with far(opened=True) as peer, anyio.create_task_group() as tasks:
        fill(peer.tunnel.stream)
        tasks.start_soon(write, peer.tunnel, b"blocked")
        await until(peer.tunnel.records._writer._sending.locked)
        tasks.start_soon(read, peer.tunnel)
        for number in range(1000):
            await peer.say(RecordType.PING, number.to_bytes(8, "big"))
        await until(lambda: peer.tunnel.records._writer.queue.get(RecordType.PONG) == (999).to_bytes(8, "big"))
        assert len(peer.tunnel.records._writer.queue) == 1
        tasks.cancel_scope.cancel()


async def test_a_half_closed_tunnel_still_answers_and_is_still_watched() -> None:
    async with far(opened=True) as peer:
        await peer.say(RecordType.FIN, FIN_BODY)
        assert await read(peer.tunnel) == b""
        await peer.say(RecordType.PING, b"halfopen")
        assert not peer.tunnel.broken()
        await peer.tunnel.records.flush()
        assert await peer.hear(RecordType.PONG) == b"halfopen"
        heard = peer.tunnel.records.heard
        assert peer.tunnel.records.tick(heard + QUIET + 0.1)
        peer.tunnel.records.tick(heard + DEAD + 0.1)
        assert peer.tunnel.closed


@pytest.mark.parametrize("how", ["RESET", "a TCP reset", "the connection's end"])
async def test_a_half_closed_tunnel_that_is_cut_is_broken(how: str) -> None:
    async with far(opened=True) as peer:
        await peer.say(RecordType.FIN, FIN_BODY)
        assert await read(peer.tunnel) == b""
        if how == "RESET":
            await peer.say(RecordType.RESET, b"\x00")
        elif how == "a TCP reset":
            peer.stream.reset()
        else:
            await peer.stream.write_eof()
        await until(peer.tunnel.broken)


async def test_the_watch_survives_a_tunnel_that_breaks_under_its_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.liveness.TICK", 0)
    async with far(opened=True) as peer:
        peer.stream.reset()
        peer.tunnel.records._writer.queue[RecordType.PING] = b"12345678"
        live = {peer.tunnel.records}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_tunnels, live, tasks)
            await until(lambda: not peer.tunnel.records._writer.queue)
            peer.tunnel.reset()
            await until(lambda: not live)
            tasks.cancel_scope.cancel()


async def test_what_was_queued_before_a_reset_is_not_sent_behind_it() -> None:
    async with ends() as both:
        both.forward.records._writer.queue[RecordType.PING] = b"12345678"
        both.forward.reset()
        await both.forward.records.flush()
        assert not both.forward.records._writer.queue


# keys


async def test_old_keys_are_replaced_and_nothing_is_lost() -> None:
    async with ends() as both:
        await write(both.forward, b"one")
        assert both.forward.records.tick(both.forward.records._keyed + KEY_LIFETIME + 1)
        await both.forward.records.flush()
        await write(both.forward, b"two")
        assert await read(both.agent) + await read(both.agent) == b"onetwo"
        assert both.forward.records._writer._sealer._cipher is not None
        assert both.forward.records._writer._sealer._cipher.records == 1


async def test_a_key_is_replaced_behind_the_record_that_is_being_written() -> None:
    async with ends() as both:
        async with anyio.create_task_group() as tasks:
            filler = bytes(8 << 20)
            tasks.start_soon(write, both.forward, filler)
            await until(both.forward.records._writer._sending.locked)
            assert both.forward.records.tick(both.forward.records._keyed + KEY_LIFETIME + 1)
            await both.forward.records.flush()  # leaves it to the writer
            received = 0
            while received < len(filler):
                received += len(await read(both.agent))
        assert not both.forward.records._writer.queue
        await write(both.forward, b"behind it")
        assert await read(both.agent) == b"behind it"


async def test_a_key_that_has_done_its_share_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.e2e.records.KEY_UPDATE_RECORDS", 3)
    async with ends() as both:
        for number in range(10):
            await write(both.forward, bytes([number]))
            assert await read(both.agent) == bytes([number])
        assert both.forward.records._writer._sealer._cipher is not None
        assert both.forward.records._writer._sealer._cipher.records <= 3


async def test_a_key_that_only_answers_pings_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuunel.e2e.records.KEY_UPDATE_RECORDS", 3)
    monkeypatch.setattr("tuunel.e2e.records.MAX_KEY_RECORDS", 6)
    async with far() as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.tunnel.rest)
        for number in range(20):
            await peer.stream.send_all(peer.sealer.key_update() + peer.sealer.seal(RecordType.PING, number.to_bytes(8, "big")))
            while await peer.hear_any() is not RecordType.PONG:
                pass
        tasks.cancel_scope.cancel()


# cancellation, and giving back


async def test_reset_wakes_a_blocked_writer() -> None:
    async with ends() as both:
        errors: list[BaseException] = []

        async def write_on() -> None:
            try:
                await write(both.forward, bytes(64 << 20))
            except (OSError, anyio.ClosedResourceError) as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_on)
            await until(both.forward.records._writer._sending.locked)
            both.forward.reset()
        assert errors
        with anyio.fail_after(PATIENCE), pytest.raises(OSError):
            while await read(both.agent):
                pass


async def test_a_write_that_was_cut_short_ends_all_writing() -> None:
    async with ends() as both:
        with anyio.move_on_after(0.05):
            await write(both.forward, bytes(64 << 20))
        with pytest.raises(TunnelCut, match="whole"):
            await write(both.forward, b"in the middle of a record")
        with pytest.raises(TunnelCut, match="whole"):
            await both.forward.write_eof()
        both.forward.reset()
        with anyio.fail_after(PATIENCE), pytest.raises(OSError):
            while await read(both.agent):
                pass


@pytest.mark.parametrize(
    "call", [lambda t: t.rest(), lambda t: t.requested(), lambda t: t.collect_early(), lambda t: t.on_readable(lambda: None)]
)
async def test_cancelling_a_wait_takes_nothing(call: Callable[[Tunnel], Awaitable[object]]) -> None:
    async with far(FORTH) as peer:
        for _ in range(3):
            with anyio.move_on_after(0.01):
                await call(peer.tunnel)
            assert peer.buffers.lent == 0
        record = peer.sealer.seal(RecordType.CONNECT, TARGET.encode())
        await peer.stream.send_all(record[:7])
        with anyio.move_on_after(0.01):
            await call(peer.tunnel)
        await peer.stream.send_all(record[7:])
        assert await peer.tunnel.requested() == TARGET


async def test_reset_is_idempotent_and_hands_back_half_a_record() -> None:
    async with far(opened=True) as peer:
        await peer.stream.send_all(peer.sealer.seal(RecordType.DATA, bytes(1000))[:500])
        with anyio.move_on_after(0.05):
            await read(peer.tunnel)
        assert peer.buffers.lent == 1
        peer.tunnel.reset()
        peer.tunnel.reset()
        assert peer.buffers.lent == 0


async def test_a_clean_close_hands_back_what_came_behind_fin() -> None:
    async with far(opened=True) as peer:
        await peer.say(RecordType.FIN, FIN_BODY)
        assert await read(peer.tunnel) == b""
        await peer.stream.send_all(peer.sealer.seal(RecordType.PING, bytes(8))[:10])
        await until(lambda: not peer.tunnel.broken() and peer.buffers.lent == 1)
        await peer.tunnel.write_eof()
        await peer.stream.write_eof()
        await peer.tunnel.aclose()
        assert peer.buffers.lent == 0


# recycling: docs/spec/tunnel.md section 9


@asynccontextmanager
async def kept(*, forward: bool = True, agent: bool = True) -> AsyncIterator[tuple[Ends, list[Tunnel], list[Tunnel]]]:
    """Both ends, opened, and whom they give their next uses to."""
    async with ends() as both:
        nexts: tuple[list[Tunnel], list[Tunnel]] = ([], [])
        if forward:
            both.forward.keep = nexts[0].append
        if agent:
            both.agent.keep = nexts[1].append
        yield both, *nexts
        for tunnel in (*nexts[0], *nexts[1]):
            tunnel.reset()


async def finish(both: Ends) -> None:
    await both.forward.write_eof()
    assert await read(both.agent) == b""
    await both.agent.write_eof()
    assert await read(both.forward) == b""


async def test_a_tunnel_that_both_ends_keep_is_used_again_under_other_keys() -> None:
    async with kept() as (both, forwards, agents):
        before = both.forward.records._writer._sealer._cipher._secret  # type: ignore[union-attr]
        await write(both.forward, b"first use")
        assert await read(both.agent) == b"first use"
        await finish(both)
        await both.agent.aclose()
        await both.forward.aclose()
        (forward,), (agent,) = forwards, agents
        assert (both.forward.id, forward.id, agent.id) == ("aaaaaaaa", "aaaaaaaa.1", "aaaaaaaa.1")
        await forward.request(TARGET)
        assert forward.records._writer._sealer._cipher._secret != before  # type: ignore[union-attr]
        assert await agent.requested() == TARGET
        await agent.answer_connected(BOUND)
        assert await forward.answer(PATIENCE) == BOUND
        await write(forward, b"second use")
        assert await read(agent) == b"second use"


async def test_a_short_answer_and_its_end_are_one_write() -> None:
    """Relay and peer wake up once for both."""
    near, target = tcp_pair()
    stream = RawStream(near)
    async with connected() as peer, anyio.create_task_group() as pumping:
        with target:
            target.sendall(b"answer")
            target.shutdown(socket.SHUT_WR)
            pumping.start_soon(copy_both_ways, peer.tunnel, stream, Traffic(), peer.buffers)
            assert await peer.hear_all() == [RecordType.DATA, RecordType.FIN]
            await peer.say(RecordType.FIN, FIN_BODY)
            assert await anyio.to_thread.run_sync(target.recv, 1) == b""
    stream.close()


@pytest.mark.parametrize("recyclable", [False, True])
async def test_an_end_that_cannot_go_with_the_last_bytes_goes_behind_them(recyclable: bool) -> None:
    async with connected() as peer:
        if recyclable:
            peer.tunnel.keep = lambda _: pytest.fail("kept")
        writer = peer.tunnel.records._writer
        await writer._sending.acquire()
        buffer = peer.buffers.borrow()
        buffer[1:7] = b"answer"
        rest = peer.tunnel.write_now(buffer, 6, last=True)
        writer._sending.release()
        assert rest
        await rest()
        peer.buffers.give_back(buffer)
        await peer.tunnel.write_eof()
        assert await peer.hear(RecordType.DATA) == b"answer"
        assert await peer.hear(RecordType.FIN) == (FIN_RECYCLABLE if recyclable else FIN_BODY)


@pytest.mark.parametrize("recyclable", [False, True])
async def test_an_end_that_goes_with_the_last_bytes_is_sent_once_and_offers_the_same(recyclable: bool) -> None:
    async with connected() as peer:
        if recyclable:
            peer.tunnel.keep = lambda _: pytest.fail("kept")
        buffer = peer.buffers.borrow()
        assert peer.tunnel.write_now(buffer, 6, last=True) is None
        peer.buffers.give_back(buffer)
        await peer.tunnel.write_eof()
        assert peer.tunnel.records._recyclable is recyclable
        await peer.hear(RecordType.DATA)
        assert await peer.hear(RecordType.FIN) == (FIN_RECYCLABLE if recyclable else FIN_BODY)
        await peer.say(RecordType.FIN, FIN_BODY)
        assert await read(peer.tunnel) == b""
        assert peer.tunnel.records.finished


@asynccontextmanager
async def connected() -> AsyncIterator[Far]:
    """The agent's end of a tunnel whose target is connected."""
    async with far(FORTH) as peer:
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        await peer.tunnel.answer_connected(BOUND)
        await peer.hear(RecordType.CONNECTED)
        yield peer


async def test_what_begins_the_next_use_goes_with_its_first_word() -> None:
    """Relay and peer wake up once for both."""
    async with both_ended() as (peer, tunnel):
        await peer.hear(RecordType.FIN)
        await peer.say(RecordType.KEY_UPDATE)
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await tunnel.requested()
        with pytest.raises(BlockingIOError):
            peer.stream._sock.recv(1, socket.MSG_PEEK)
        await tunnel.answer_connected(BOUND)
        assert await peer.hear_all() == [RecordType.KEY_UPDATE, RecordType.CONNECTED]


@pytest.mark.parametrize("busy", [False, True], ids=["", "behind a record that is sent in part"])
async def test_whatever_is_said_first_what_begins_the_next_use_goes_before(busy: bool) -> None:
    async with both_ended() as (peer, tunnel):
        writer = tunnel.records._writer
        writer.queue[RecordType.PONG] = bytes(8)
        async with anyio.create_task_group() as sending:
            if busy:
                await writer._sending.acquire()
                sending.start_soon(tunnel.answer_connected, BOUND)
                await anyio.wait_all_tasks_blocked()
                writer._sending.release()
            else:
                await tunnel.answer_connected(BOUND)
        expected = [RecordType.FIN, RecordType.KEY_UPDATE, RecordType.PONG, RecordType.CONNECTED]
        heard = await peer.hear_all()
        assert heard[:2] == expected[:2]
        assert set(heard) == set(expected)


async def test_what_begins_the_next_use_does_not_wait_for_long() -> None:
    async with both_ended() as (peer, tunnel):
        await peer.hear(RecordType.FIN)
        assert tunnel.records.tick(time.monotonic())
        await tunnel.records.flush()
        await peer.hear(RecordType.KEY_UPDATE)
        assert not tunnel.records.tick(time.monotonic())


async def test_a_last_end_that_may_wait_goes_with_the_next_request() -> None:
    """Nobody at the other end has use for it, and relay and agent wake up once for both."""
    async with answered() as (peer, nexts):
        await peer.tunnel.write_eof()
        await peer.tunnel.aclose()
        with pytest.raises(BlockingIOError):
            peer.stream._sock.recv(1, socket.MSG_PEEK)
        await nexts[0].request(TARGET)
        assert await peer.hear_all() == [RecordType.FIN, RecordType.KEY_UPDATE, RecordType.CONNECT]


@pytest.mark.parametrize("how", ["who looks after it begins", "a second is over"])
async def test_a_last_end_does_not_wait_for_long(how: str) -> None:
    async with answered() as (peer, nexts), anyio.create_task_group() as tasks:
        await peer.tunnel.write_eof()
        await peer.tunnel.aclose()
        if how == "who looks after it begins":
            tasks.start_soon(nexts[0].rest)
        else:
            assert nexts[0].records.tick(time.monotonic())
            await nexts[0].records.flush()
        assert await peer.hear_all() == [RecordType.FIN, RecordType.KEY_UPDATE]
        tasks.cancel_scope.cancel()


async def test_a_last_end_that_waits_is_told_before_the_tunnel_is_cut() -> None:
    async with answered() as (peer, nexts):
        await peer.tunnel.write_eof()
        await peer.tunnel.aclose()
        nexts[0].reset()
        assert await peer.hear_all() == [RecordType.FIN, RecordType.KEY_UPDATE, RecordType.RESET]


async def test_a_last_end_that_waits_is_told_before_a_tunnel_closes_that_is_not_wanted_any_more() -> None:
    async with answered() as (peer, nexts):
        peer.tunnel.wanted = lambda: False
        await peer.tunnel.write_eof()
        async with anyio.create_task_group() as closing:
            closing.start_soon(peer.tunnel.aclose)
            await peer.hear(RecordType.FIN)
            assert await peer.stream.receive() == b""
            await peer.stream.write_eof()
        assert not nexts


async def test_an_agent_that_begins_the_next_use_before_it_has_heard_of_the_end_is_cut_off() -> None:
    async with answered() as (peer, nexts):
        await peer.tunnel.write_eof()
        await peer.tunnel.aclose()
        await peer.say(RecordType.KEY_UPDATE)
        await until(nexts[0].broken)
        assert "before this end had ended" in nexts[0].cut_reason


async def test_nothing_goes_out_in_front_of_an_end_that_waits() -> None:
    async with answered() as (peer, _):
        await peer.tunnel.write_eof()
        with pytest.raises(LocalProtocolError):
            await write(peer.tunnel, b"behind the end")
        assert await peer.hear_all() == [RecordType.FIN]


async def test_an_end_does_not_wait_behind_a_record_that_is_being_sent() -> None:
    async with answered() as (peer, _):
        writer = peer.tunnel.records._writer
        async with anyio.create_task_group() as tasks:
            await writer._sending.acquire()
            tasks.start_soon(peer.tunnel.write_eof)
            await anyio.wait_all_tasks_blocked()
            writer._sending.release()
        await peer.hear(RecordType.FIN)


@pytest.mark.parametrize("why", ["the agent has not ended", "the agent would not go on", "this end would not", "this side does not begin"])
async def test_an_end_that_somebody_waits_for_is_told_at_once(why: str) -> None:
    async with far(opened=True) as peer:
        peer.tunnel.may_end_late = why != "this side does not begin"
        if why != "this end would not":
            peer.tunnel.keep = lambda _: pytest.fail("kept")
        if why != "the agent has not ended":
            await peer.say(RecordType.FIN, FIN_BODY if why == "the agent would not go on" else FIN_RECYCLABLE)
            assert await read(peer.tunnel) == b""
        await peer.tunnel.write_eof()
        await peer.hear(RecordType.FIN)


@asynccontextmanager
async def answered() -> AsyncIterator[tuple[Far, list[Tunnel]]]:
    """The forward end of a tunnel whose agent has ended, and would go on, and who gets its next use. Its own end may wait."""
    nexts: list[Tunnel] = []
    async with far(opened=True) as peer:
        peer.tunnel.keep, peer.tunnel.may_end_late = nexts.append, True
        await peer.say(RecordType.FIN, FIN_RECYCLABLE)
        assert await read(peer.tunnel) == b""
        yield peer, nexts
        for tunnel in nexts:
            tunnel.reset()


@asynccontextmanager
async def both_ended() -> AsyncIterator[tuple[Far, Tunnel]]:
    """The agent's end of a tunnel that both sides have ended, and its next use."""
    async with half_ended() as (peer, nexts):
        await peer.tunnel.write_eof()
        await peer.tunnel.aclose()
        yield peer, nexts[0]


@asynccontextmanager
async def half_ended() -> AsyncIterator[tuple[Far, list[Tunnel]]]:
    """The agent's end of a tunnel whose forward side has ended, and would use it again, and who gets its next use."""
    nexts: list[Tunnel] = []
    async with connected() as peer:
        peer.tunnel.keep = nexts.append
        await peer.say(RecordType.FIN, FIN_RECYCLABLE)
        assert await read(peer.tunnel) == b""
        yield peer, nexts
        for tunnel in nexts:
            tunnel.reset()


@pytest.mark.parametrize(("forward", "agent"), [(False, True), (True, False), (False, False)])
async def test_a_tunnel_that_one_end_would_not_keep_is_closed_cleanly(forward: bool, agent: bool) -> None:
    async with kept(forward=forward, agent=agent) as (both, *nexts):
        await finish(both)
        await both.forward.aclose()
        await both.agent.aclose()
        assert nexts == [[], []]
        assert both.forward.closed
        assert both.forward.cut_reason == ""


async def test_the_next_request_may_come_before_the_agent_is_done_with_the_last() -> None:
    async with kept() as (both, forwards, agents):
        await finish(both)
        await both.forward.aclose()
        (forward,) = forwards
        await forward.request(TARGET)
        for _ in range(3):
            assert not both.agent.broken()  # looks, and takes nothing of the next use
        await both.agent.aclose()
        assert await agents[0].requested() == TARGET


async def test_a_standby_whose_agent_is_not_done_yet_waits_without_spinning() -> None:
    async with kept() as (both, forwards, _):
        await finish(both)
        await both.forward.aclose()
        async with anyio.create_task_group() as resting:
            resting.start_soon(forwards[0].rest)
            await anyio.wait_all_tasks_blocked()
            assert forwards[0].records._reading_since is not None
            await both.agent.aclose()
            await anyio.wait_all_tasks_blocked()
            assert not forwards[0].closed
            resting.cancel_scope.cancel()


async def test_a_reset_after_both_ends_ends_the_tunnel_for_good() -> None:
    async with kept() as (both, forwards, _):
        await finish(both)
        await both.forward.aclose()
        both.agent.reset()
        with pytest.raises(TunnelCut):
            await forwards[0].rest()


@pytest.mark.parametrize("flags", [b"\x00", b"\x02", b"\xfe"])
async def test_a_peer_that_did_not_offer_it_cannot_begin_another_use(flags: bytes) -> None:
    async with far(FORTH) as peer:
        peer.tunnel.keep = lambda _: pytest.fail("kept")
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        await peer.tunnel.answer_connected(BOUND)
        await peer.say(RecordType.FIN, flags)
        assert await read(peer.tunnel) == b""
        await peer.tunnel.write_eof()
        assert not peer.tunnel.records.may_be_renewed
        await peer.tunnel.aclose()
        assert peer.tunnel.closed


@pytest.mark.parametrize(("theirs", "ours"), [(b"\x00", True), (b"\x01", False)])
async def test_a_next_use_that_one_end_did_not_offer_cuts_the_tunnel(theirs: bytes, ours: bool) -> None:
    async with far(FORTH) as peer:
        if ours:
            peer.tunnel.keep = lambda _: pytest.fail("kept")
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        await peer.tunnel.answer_connected(BOUND)
        await peer.say(RecordType.FIN, theirs)
        assert await read(peer.tunnel) == b""
        await peer.tunnel.write_eof()
        await peer.say(RecordType.KEY_UPDATE)
        with anyio.fail_after(5), pytest.raises(TunnelCut, match="before this one had ended"):
            await peer.tunnel.records.receive()


async def test_a_use_that_is_over_reaches_nothing_of_the_next() -> None:
    async with kept() as (both, forwards, agents):
        await finish(both)
        await both.agent.aclose()
        await both.forward.aclose()
        for over in (both.forward, both.agent):
            with pytest.raises(anyio.ClosedResourceError):
                await write(over, b"late")
            with pytest.raises(anyio.ClosedResourceError):
                await read(over)
            with pytest.raises(anyio.ClosedResourceError):
                await over.write_eof()
            over.reset()
        assert not forwards[0].closed
        assert not agents[0].closed


async def test_a_next_use_that_is_begun_before_this_one_has_ended_cuts_the_tunnel() -> None:
    async with far(FORTH) as peer:
        peer.tunnel.keep = lambda _: pytest.fail("kept")
        await peer.say(RecordType.CONNECT, TARGET.encode())
        await peer.tunnel.requested()
        await peer.tunnel.answer_connected(BOUND)
        await peer.say(RecordType.FIN, b"\x01")
        assert await read(peer.tunnel) == b""
        await peer.say(RecordType.KEY_UPDATE)
        await until(peer.tunnel.broken)
        assert "before this one had ended" in peer.tunnel.cut_reason


async def test_uses_and_age_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept() as (both, forwards, _):
        monkeypatch.setattr(module, "MAX_USES", 1)
        await finish(both)
        await both.forward.aclose()
        assert not forwards
    async with kept() as (both, forwards, _):
        monkeypatch.setattr(module, "MAX_USES", 1000)
        monkeypatch.setattr(module, "MAX_AGE", 0.0)
        await finish(both)
        await both.forward.aclose()
        assert not forwards


async def test_no_key_is_replaced_behind_an_end_for_that_would_begin_the_next_use() -> None:
    async with kept() as (both, forwards, agents):
        records = both.forward.records
        assert records.tick(records._keyed + KEY_LIFETIME + 1)
        await finish(both)  # takes what was queued off again
        later = records.heard = records._keyed + KEY_LIFETIME + 1
        assert not records.tick(later)
        await both.agent.aclose()
        await both.forward.aclose()
        await forwards[0].request(TARGET)
        assert await agents[0].requested() == TARGET


async def test_a_pause_of_the_reader_is_no_sign_of_life_of_the_peer() -> None:
    """Else a tunnel that was put back after a long silence would be entrusted with early bytes, which are not repeated."""
    async with far() as peer:
        records = peer.tunnel.records
        records.heard -= 2
        heard = records.heard
        records.tick(time.monotonic())
        assert records.heard == heard


async def test_who_writes_while_another_record_waits_has_its_turn_behind_it() -> None:
    async with connected() as peer, anyio.create_task_group() as sending:
        size = fill(peer.tunnel.stream)
        peer.tunnel.records._writer.queue[RecordType.PONG] = bytes(8)
        sending.start_soon(peer.tunnel.records.flush)
        await anyio.wait_all_tasks_blocked()
        buffer = peer.buffers.borrow()
        buffer[1:7] = b"behind"
        rest = peer.tunnel.write_now(buffer, 6)
        assert rest is not None
        sending.start_soon(rest)
        with anyio.fail_after(PATIENCE):
            await peer.stream.receive_exactly(size)
        assert await peer.hear(RecordType.PONG) == bytes(8)
        assert await peer.hear(RecordType.DATA) == b"behind"
        await anyio.wait_all_tasks_blocked()
        peer.buffers.give_back(buffer)
