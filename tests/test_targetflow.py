"""One UDP flow at the target's end: what is sent early is not lost, idleness ends it, and a refusal is told whoever meets it."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from tests.world import PATIENCE, unchanged_descriptors, until
from tuunel import targetflow as module
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket
from tuunel.dial import Address
from tuunel.errors import Failure, Reason, Speaker
from tuunel.targetflow import MAX_HELD, MAX_HELD_BYTES, Rule, TargetFlow, idle_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def service() -> Iterator[DatagramSocket]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    service = DatagramSocket(sock)
    yield service
    service.close()


async def next_of(service: DatagramSocket) -> tuple[bytes, tuple[str, int]]:
    with anyio.fail_after(PATIENCE):
        while (got := service.receive_from()) is None:
            await service.wait_readable()
    return got[0], (got[1][0], got[1][1])


class Flow:
    """A flow and what came of it."""

    def __init__(self, target: HostPort, *, allow: Callable[[list[Address]], list[Address]] = lambda addresses: addresses) -> None:
        self.delivered: list[bytes] = []
        self.dropped: list[int] = []
        self.stamp: object = 0
        self.bound: list[HostPort] = []
        self.failure: Failure | None = None
        self.over = anyio.Event()
        self.flow = TargetFlow(
            target, rule=Rule(allow, lambda: self.stamp), speaker=Speaker.AGENT, deliver=self.delivered.extend, dropped=self.dropped.append
        )
        self.send = self.flow.send

    async def run(self) -> None:
        try:
            await self.flow.run(self.bound.append)
        except Failure as failure:
            self.failure = failure
        finally:
            self.over.set()

    async def until_over(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self.over.wait()


@asynccontextmanager
async def running(flow: Flow) -> AsyncIterator[Flow]:
    with unchanged_descriptors():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flow.run)
            yield flow
            tasks.cancel_scope.cancel()
    assert not flow.send(b"over")
    assert not flow.flow._held


async def test_datagrams_pass_both_ways_in_order(service: DatagramSocket) -> None:
    async with running(Flow(HostPort("", service.local.port))) as flow:
        await until(lambda: flow.bound)
        payloads = [b"%d" % number for number in range(100)] + [b"", bytes(65507)]
        for payload in payloads:
            assert flow.send(payload)
            data, sender = await next_of(service)
            assert (data, HostPort(*sender)) == (payload, flow.bound[0])
            assert service.send_to(data, sender)
        await until(lambda: flow.delivered == payloads)


async def test_what_is_sent_early_waits_for_the_socket_and_no_more_than_that_is_held(
    service: DatagramSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = anyio.Event()

    async def look_up(target: HostPort, **rest: object) -> tuple[DatagramSocket, Sequence[Address]]:
        await found.wait()
        return await dial(HostPort("127.0.0.1", target.port), **rest)  # type: ignore[arg-type]

    dial = module.dial_datagram
    monkeypatch.setattr(module, "dial_datagram", look_up)
    async with running(Flow(HostPort("slow.example", service.local.port))) as flow:
        payloads = [b"%d" % number for number in range(MAX_HELD)]
        assert all(map(flow.send, payloads))
        assert not flow.send(b"one too many")
        found.set()
        assert [(await next_of(service))[0] for _ in payloads] == payloads
        assert flow.send(b"later")
        assert (await next_of(service))[0] == b"later"


async def test_the_bytes_that_are_held_are_bounded_and_the_largest_datagram_fits() -> None:
    flow = Flow(HostPort("slow.example", 9))
    assert flow.send(bytes(65507))
    assert flow.send(bytes(MAX_HELD_BYTES - 65507))
    assert flow.send(b"")
    assert not flow.send(b"x")


async def test_silence_ends_a_flow_and_that_is_no_failure(service: DatagramSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_TIME", 0)
    async with running(Flow(HostPort("", service.local.port))) as flow:
        await flow.until_over()
        assert flow.failure is None
        assert flow.bound
        assert not flow.send(b"too late")


async def test_a_flow_to_a_name_server_ends_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (idle_time(53), idle_time(5353), idle_time(443)) == (10, 60, 60)
    monkeypatch.setattr(module, "DNS_IDLE_TIME", 0)
    async with running(Flow(HostPort("127.0.0.1", 53))) as flow:
        await flow.until_over()
        assert flow.failure is None


@pytest.mark.parametrize("who", ["app", "target"])
async def test_a_datagram_either_way_keeps_a_flow(service: DatagramSocket, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    now = 1000.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    monkeypatch.setattr(anyio, "move_on_at", lambda _: anyio.CancelScope())  # time passes only here
    async with running(Flow(HostPort("", service.local.port))) as flow:
        flow.send(b"hello")
        _, sender = await next_of(service)
        for _ in range(5):
            now += 59
            await anyio.wait_all_tasks_blocked()
            flow.flow._wait.cancel()  # the clock's part
            await anyio.wait_all_tasks_blocked()
            assert not flow.over.is_set()
            if who == "app":
                assert flow.send(b"still here")
            else:
                seen = len(flow.delivered)
                service.send_to(b"answer", sender)
                await until(lambda seen=seen: len(flow.delivered) > seen)  # type: ignore[misc]
        now += 60
        await anyio.wait_all_tasks_blocked()
        flow.flow._wait.cancel()
        await flow.until_over()


async def test_a_refusal_ends_the_flow_when_the_receiver_hears_it() -> None:
    async with running(Flow(HostPort("127.0.0.1", closed_port()))) as flow:
        await until(lambda: flow.bound)
        flow.send(b"anybody?")
        await flow.until_over()
        assert flow.failure is not None
        assert (flow.failure.reason, flow.failure.speaker) == (Reason.CONNECTION_REFUSED, Speaker.AGENT)


async def test_and_when_the_sender_hears_it() -> None:
    async with running(Flow(HostPort("127.0.0.1", closed_port()))) as flow:
        await until(lambda: flow.bound)
        await anyio.wait_all_tasks_blocked()
        assert flow.send(b"anybody?")
        assert not flow.send(b"anybody?")  # the kernel tells it here, and tells it once
        assert not flow.send(b"anybody?")
        await flow.until_over()
        assert flow.failure is not None
        assert flow.failure.reason is Reason.CONNECTION_REFUSED


async def test_and_when_an_early_datagram_meets_it() -> None:
    flow = Flow(HostPort("127.0.0.1", closed_port()))
    assert all(flow.send(b"early") for _ in range(5))
    async with running(flow):
        await flow.until_over()
        assert flow.failure is not None
        assert flow.failure.reason is Reason.CONNECTION_REFUSED


def closed_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_the_rule_decides_and_its_refusal_is_told() -> None:
    def deny(addresses: list[Address]) -> list[Address]:
        raise Failure(Reason.POLICY_DENIED, Speaker.AGENT, "not that")

    async with running(Flow(HostPort("127.0.0.1", 9), allow=deny)) as flow:
        await flow.until_over()
        assert flow.failure is not None
        assert flow.failure.detail == "not that"
        assert not flow.bound


async def test_a_target_that_floods_leaves_the_loop_to_others(service: DatagramSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is refilled, the socket is left after a burst."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with running(Flow(HostPort("", service.local.port))) as flow, anyio.create_task_group() as tasks:
        await until(lambda: flow.bound)
        monkeypatch.setattr(DatagramSocket, "receive", lambda self: None if len(flow.delivered) == 100 * module.BURST else b"flood")
        tasks.start_soon(count_turns)
        flow.send(b"begin")
        _, sender = await next_of(service)
        service.send_to(b"wake up", sender)
        await until(lambda: len(flow.delivered) == 100 * module.BURST)
        assert turns > 90
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("steps", range(6))
async def test_cancelled_at_any_moment_it_leaves_nothing_open(service: DatagramSocket, steps: int) -> None:
    async with running(Flow(HostPort("", service.local.port))) as flow:
        flow.send(b"early")
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
