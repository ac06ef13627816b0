"""The end-to-end handshake over a connection: both sides, with what comes before, behind and instead of it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from tests.e2e.tunnels import FORWARD, Handshake
from tests.streams import receive_all, tcp_pair
from tests.world import PATIENCE, open_descriptors
from tuunel import establish as module
from tuunel.e2e.handshake import InitReceived
from tuunel.e2e.wire import Command, Purpose, Target
from tuunel.errors import Failure, Reason, RemoteProtocolError, Speaker, TuunelError
from tuunel.establish import initiate, respond
from tuunel.rawstream import RawStream, receive_chunk
from tuunel.tunnel import Tunnel

pytestmark = pytest.mark.anyio

TARGET = Target(Command.TCP, "printer.lan", 631)


class Sides:
    """Both ends of a connection, and what each needs to shake hands."""

    def __init__(self) -> None:
        near, far = tcp_pair()
        self.near, self.far = RawStream(near), RawStream(far)
        self.hands = Handshake()
        self.buffers = self.hands.buffers
        self.hands.initiator.receive_offer(self.hands.offer)
        self.tunnels: list[Tunnel] = []
        self.received: list[InitReceived] = []

    async def initiate(self, target: Target | None = None, early: bytes = b"", within: float = PATIENCE) -> Tunnel:
        tunnel = await initiate(self.near, self.hands.initiator, self.buffers, target=target, early=early, answer_within=within)
        self.tunnels.append(tunnel)
        return tunnel

    async def respond(self, admit: Callable[[InitReceived], Awaitable[None]] | None = None, first: bytes = b"") -> Tunnel:
        async def everybody(_: InitReceived) -> None:
            return

        tunnel, received = await respond(self.far, first, self.hands.responder(), self.buffers, admit=admit or everybody, label="home")
        self.tunnels.append(tunnel)
        self.received.append(received)
        return tunnel


@asynccontextmanager
async def sides() -> AsyncIterator[Sides]:
    await anyio.lowlevel.checkpoint()
    before = open_descriptors()
    both = Sides()
    yield both
    for tunnel in both.tunnels:
        tunnel.reset()
    both.near.close()
    both.far.close()
    assert both.buffers.lent == 0
    assert open_descriptors() == before


async def test_both_sides_agree() -> None:
    async with sides() as both:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.respond)
            forward = await both.initiate()
        assert both.received[0].device == FORWARD.device_id
        assert both.received[0].purpose is Purpose.STANDBY
        assert forward.peer_label == "home"
        assert len({tunnel.id for tunnel in both.tunnels}) == 1
        assert forward.rtt is not None


async def test_the_request_and_early_bytes_go_in_the_first_flight() -> None:
    early = bytes(range(256)) * 150  # several records
    async with sides() as both:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.initiate, TARGET, early)
            agent = await both.respond()
        assert both.received[0].purpose is Purpose.CONNECT
        assert await agent.requested() == TARGET
        received = b""
        while len(received) < len(early):
            received += await receive_chunk(agent, both.buffers)
        assert received == early


async def test_what_was_read_before_the_handshake_belongs_to_it() -> None:
    async with sides() as both:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.initiate, TARGET, b"early")
            first = await both.far.receive_exactly(1500)
            agent = await both.respond(first=first)
        assert await agent.requested() == TARGET
        assert await receive_chunk(agent, both.buffers) == b"early"


async def test_a_refusal_reaches_the_forward_side_and_ends_both() -> None:
    async with sides() as both:
        caught: list[Failure] = []

        async def refuse(_: InitReceived) -> None:
            raise Failure(Reason.NOT_PAIRED, Speaker.AGENT)

        async def ask() -> None:
            with pytest.raises(Failure) as refused:
                await both.initiate(TARGET, b"early")
            caught.append(refused.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with pytest.raises(Failure):
                await both.respond(refuse)
        assert (caught[0].reason, caught[0].speaker) == (Reason.NOT_PAIRED, Speaker.AGENT)
        assert both.near.fileno() == both.far.fileno() == -1


@pytest.mark.parametrize("answer", ["nothing", "the end", "a reset", "garbage"])
async def test_an_answer_that_is_none_is_a_lost_tunnel(answer: str) -> None:
    async with sides() as both:
        if answer == "the end":
            await both.far.write_eof()
        elif answer == "a reset":
            both.far.reset()
        elif answer == "garbage":
            await both.far.send_all(b"\x01\x00" + bytes(256))
        with pytest.raises(Failure) as caught:
            await both.initiate(within=0.1 if answer == "nothing" else PATIENCE)
        assert caught.value.reason is Reason.TUNNEL_LOST
        assert both.near.fileno() == -1


async def test_a_host_that_no_name_can_be_closes_the_connection() -> None:
    async with sides() as both:
        with pytest.raises(Failure) as caught:
            await both.initiate(Target(Command.TCP, "no name", 80))
        assert caught.value.reason is Reason.NAME_NOT_RESOLVED
        assert both.near.fileno() == -1


@pytest.mark.parametrize("said", ["nothing", "the end", "garbage", "an impossible length"])
async def test_whoever_proves_nothing_gets_no_answer(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides() as both:
        if said == "nothing":
            monkeypatch.setattr(module, "INIT_TIMEOUT", 0.05)
        elif said == "the end":
            await both.near.send_all(b"some")
            await both.near.write_eof()
        elif said == "garbage":
            await both.near.send_all(bytes(1088) + b"\x01\x00" + bytes(256))
        else:
            await both.near.send_all(bytes(1088) + b"\xff\xff" + bytes(1000))
        asked: list[InitReceived] = []

        async def admit(received: InitReceived) -> None:
            asked.append(received)

        with pytest.raises((RemoteProtocolError, TuunelError, TimeoutError, anyio.IncompleteRead)):
            await both.respond(admit)
        assert not asked
        assert both.far.fileno() == -1
        with suppress(ConnectionResetError):
            assert await receive_all(both.near) == b""


@pytest.mark.parametrize("side", ["initiate", "respond"])
async def test_cancelling_closes(side: str) -> None:
    async with sides() as both:
        with anyio.move_on_after(0.05):
            await (both.initiate() if side == "initiate" else both.respond())
        assert (both.near if side == "initiate" else both.far).fileno() == -1
