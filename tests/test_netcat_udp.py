"""`tuunel nc -u` between its two threads' socket and a target behind an agent. Standard input and output are tested as journeys."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from tests.test_forward import three
from tests.world import PATIENCE, World
from tuunel import netcat_udp
from tuunel.datagrams import DatagramSocket
from tuunel.errors import Failure, Reason
from tuunel.forwarding import Destination
from tuunel.netcat_udp import _exchange
from tuunel.settings import Home

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcat_udp, "QUIET", 0.3)


@contextmanager
def between_threads() -> Iterator[tuple[DatagramSocket, DatagramSocket]]:
    ours, theirs = (DatagramSocket(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


async def receive(inner: DatagramSocket) -> bytes:
    with anyio.fail_after(PATIENCE):
        while True:
            await inner.wait_readable()
            if (datagram := inner.receive()) is not None:
                return datagram


async def failure_of(made: World, home: Home, to: Destination) -> Reason:
    with between_threads() as (ours, theirs):
        ours.send(b"anybody?")
        with anyio.fail_after(PATIENCE), pytest.raises(Failure) as raised:
            await _exchange(home, to, theirs)
    return raised.value.reason


async def test_each_datagram_goes_and_comes_as_one_and_quiet_ends_it() -> None:
    async with three() as (made, roles):
        to = Destination("home.tuunel", made.datagram_target(lambda data: [data.upper()]), udp=True)
        with between_threads() as (ours, theirs):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_exchange, roles.home, to, theirs)
                for question in (b"one", b"two", bytes(65507)):
                    ours.send(question)
                    assert await receive(ours) == question.upper()
                ours.send(b"last")
                ours.send(b"")
                assert await receive(ours) == b"LAST"
            assert ours.receive() is None


async def test_answers_are_waited_for_as_long_as_they_come() -> None:
    async with three() as (made, roles):
        to = Destination("home.tuunel", made.datagram_target(lambda data: [data] * 100), udp=True)
        with between_threads() as (ours, theirs):
            ours.send(b"all of it")
            ours.send(b"")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_exchange, roles.home, to, theirs)
                for _ in range(100):
                    assert await receive(ours) == b"all of it"


async def test_an_empty_answer_is_not_taken_for_the_end() -> None:
    async with three() as (made, roles):
        to = Destination("home.tuunel", made.datagram_target(lambda data: [b"", data]), udp=True)
        with between_threads() as (ours, theirs):
            ours.send(b"question")
            ours.send(b"")
            await _exchange(roles.home, to, theirs)
            assert ours.receive() == b"question"


async def test_a_flow_that_is_not_open_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcat_udp, "QUIET", 0)
    async with three() as (_, roles):
        with between_threads() as (ours, theirs):
            ours.send(b"out?")
            ours.send(b"")
            with anyio.fail_after(PATIENCE), pytest.raises(Failure, match="does not allow"):
                await _exchange(roles.home, Destination("203.0.113.1.home.tuunel", 53, udp=True), theirs)


async def test_without_input_nothing_is_opened() -> None:
    async with three() as (_, roles):
        await roles.relay.kill()
        with between_threads() as (ours, theirs), anyio.fail_after(PATIENCE):
            ours.send(b"")
            await _exchange(roles.home, Destination("home.tuunel", 53, udp=True), theirs)


async def test_every_refusal_is_told() -> None:
    async with three() as (made, roles):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        assert await failure_of(made, roles.home, Destination("home.tuunel", port, udp=True)) is Reason.CONNECTION_REFUSED
        assert await failure_of(made, roles.home, Destination("203.0.113.1.home.tuunel", 53, udp=True)) is Reason.POLICY_DENIED
        assert await failure_of(made, roles.home, Destination("hme.tuunel", 53, udp=True)) is Reason.UNKNOWN_NAME
        await roles.agent.kill()
        assert await failure_of(made, roles.home, Destination("home.tuunel", 53, udp=True)) is Reason.PEER_UNAVAILABLE
