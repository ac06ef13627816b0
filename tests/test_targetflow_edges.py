"""One UDP flow at the target's end: judged again when something has changed, several addresses, and every datagram counted once."""

from collections.abc import Iterator
from ipaddress import ip_address

import anyio
import pytest

from tests.test_targetflow import Flow, closed_port, next_of, running
from tests.world import PATIENCE, until
from tuunel import targetflow as module
from tuunel.address import HostPort
from tuunel.datagrams import DatagramSocket, bind_datagrams
from tuunel.dial import Address
from tuunel.errors import Failure, Reason, Speaker
from tuunel.targetflow import MAX_TRIED, flush_all

pytestmark = pytest.mark.anyio


@pytest.fixture
def service() -> Iterator[DatagramSocket]:
    service = bind_datagrams("127.0.0.1")
    yield service
    service.close()


@pytest.fixture
def service6() -> Iterator[DatagramSocket]:
    """A service that listens on ::1 alone."""
    service = bind_datagrams("::1")
    yield service
    service.close()


# changed surroundings


async def test_while_nothing_changes_the_rule_is_not_asked_again(service: DatagramSocket) -> None:
    questions: list[list[Address]] = []

    def note(addresses: list[Address]) -> list[Address]:
        questions.append(addresses)
        return addresses

    async with running(Flow(HostPort("127.0.0.1", service.local.port), allow=note)) as flow:
        await until(lambda: flow.bound)
        for _ in range(3):
            assert flow.send(b"x")
        flow.stamp = "changed"
        for _ in range(3):
            assert flow.send(b"x")
        assert questions == [[ip_address("127.0.0.1")]] * 2


async def test_what_the_rule_no_longer_allows_is_not_sent_and_ends_the_flow(service: DatagramSocket) -> None:
    allowed = True

    def judge(addresses: list[Address]) -> list[Address]:
        if not allowed:
            raise Failure(Reason.POLICY_DENIED, Speaker.AGENT, "not any more")
        return addresses

    async with running(Flow(HostPort("127.0.0.1", service.local.port), allow=judge)) as flow:
        await until(lambda: flow.bound)
        allowed, flow.stamp = False, "changed"
        assert not flow.send(b"x")
        await flow.until_over()
        assert flow.failure is not None
        assert (flow.failure.reason, flow.failure.detail) == (Reason.POLICY_DENIED, "not any more")
        assert service.receive_from() is None


async def test_a_change_while_the_rule_is_asked_is_seen_by_the_next_datagram(service: DatagramSocket) -> None:
    asked = 0

    def change(addresses: list[Address]) -> list[Address]:
        nonlocal asked
        asked += 1
        made.stamp = "changed" if asked == 1 else made.stamp
        return addresses

    made = Flow(HostPort("127.0.0.1", service.local.port), allow=change)
    async with running(made) as flow:
        await until(lambda: flow.bound)
        assert flow.send(b"x")
        assert asked == 2


# several addresses


@pytest.mark.parametrize("early", [True, False])
async def test_an_address_that_refuses_gives_way_to_the_next_which_gets_everything_in_order(service6: DatagramSocket, early: bool) -> None:
    flow = Flow(HostPort("", service6.local.port))
    payloads = [b"one", b"", b"three"]
    if early:
        assert all(map(flow.send, payloads))
    async with running(flow):
        await until(lambda: flow.bound)
        if not early:
            assert all(map(flow.send, payloads))
        assert [(await next_of(service6))[0] for _ in payloads] == payloads
        assert flow.send(b"later")
        data, sender = await next_of(service6)
        assert data == b"later"
        service6.send_to(b"answer", sender)
        await until(lambda: flow.delivered == [b"answer"])
        assert len(flow.bound) == 1
        assert not flow.over.is_set()
    assert flow.dropped == []


async def test_the_next_address_is_judged_when_its_turn_comes(service6: DatagramSocket) -> None:
    first = True

    def judge(addresses: list[Address]) -> list[Address]:
        nonlocal first
        if not first:
            raise Failure(Reason.POLICY_DENIED, Speaker.AGENT, "not any more")
        first = False
        return addresses

    async with running(Flow(HostPort("", service6.local.port), allow=judge)) as flow:
        flow.send(b"anybody?")
        await flow.until_over()
        assert flow.failure is not None
        assert flow.failure.reason is Reason.POLICY_DENIED
        assert service6.receive_from() is None


async def test_when_every_address_refuses_that_is_told_once(service: DatagramSocket) -> None:
    async with running(Flow(HostPort("", closed_port()))) as flow:
        assert flow.send(b"anybody?")
        await flow.until_over()
        assert flow.failure is not None
        assert flow.failure.reason is Reason.CONNECTION_REFUSED


async def test_an_address_without_a_way_tells_the_refusal_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = ip_address("fe80::1%4000000000")
    async with running(Flow(HostPort("", closed_port()), allow=lambda _: [ip_address("127.0.0.1"), nowhere])) as flow:
        assert flow.send(b"anybody?")
        await flow.until_over()
        assert flow.failure is not None
        assert flow.failure.reason is Reason.CONNECTION_REFUSED


@pytest.mark.parametrize("settled_by", ["an answer", "many datagrams", "their bytes"])
async def test_an_address_that_has_answered_or_taken_enough_is_the_one(service: DatagramSocket, settled_by: str) -> None:
    async with running(Flow(HostPort("", service.local.port))) as flow:
        assert flow.send(b"x")
        _, sender = await next_of(service)
        match settled_by:
            case "an answer":
                service.send_to(b"answer", sender)
                await until(lambda: flow.delivered)
            case "many datagrams":
                assert all(flow.send(b"x") for _ in range(MAX_TRIED))
            case _:
                assert all(flow.send(bytes(40_000)) for _ in range(2))
        assert (flow.flow._others, flow.flow._tried) == ((), [])


# counting


async def test_what_is_held_for_a_target_that_is_refused_is_lost_and_told() -> None:
    def deny(addresses: list[Address]) -> list[Address]:
        raise Failure(Reason.POLICY_DENIED, Speaker.AGENT)

    flow = Flow(HostPort("127.0.0.1", 9), allow=deny)
    assert all(map(flow.send, (b"one", b"three")))
    async with running(flow):
        await flow.until_over()
    assert flow.dropped == [3, 5]


async def test_what_the_socket_does_not_take_of_it_is_told(service: DatagramSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    send = DatagramSocket.send
    monkeypatch.setattr(DatagramSocket, "send", lambda self, data: data != b"three" and send(self, data))
    flow = Flow(HostPort("127.0.0.1", service.local.port))
    assert all(map(flow.send, (b"one", b"three", b"last")))
    async with running(flow):
        assert [(await next_of(service))[0] for _ in range(2)] == [b"one", b"last"]
    assert flow.dropped == [5]


async def test_flushing_waits_for_what_is_held_and_no_longer_than_that(service: DatagramSocket) -> None:
    flow = Flow(HostPort("127.0.0.1", service.local.port))
    await flush_all([flow.flow])
    flow.send(b"x")
    async with running(flow):
        await flush_all([flow.flow])
        assert service.receive_from() is not None


async def test_and_gives_up_on_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTING", 0.01)
    monkeypatch.setattr(module, "dial_datagram", lambda *_, **__: anyio.sleep_forever())
    flow = Flow(HostPort("slow.example", 53))
    flow.send(b"x")
    async with running(flow):
        with anyio.fail_after(PATIENCE):
            await flush_all([flow.flow])
    assert flow.dropped == [1]
