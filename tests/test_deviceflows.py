"""The forward side's flows to one device: one tunnel for all of them, from the first datagram to a while after the last."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from tests.world import PATIENCE, Trio, World, pool_of, trio, until, world
from tuunel import deviceflows as module
from tuunel.address import HostPort
from tuunel.deviceflows import DeviceFlows
from tuunel.e2e.flows import MAX_FLOWS
from tuunel.errors import Failure, Reason, Speaker
from tuunel.pool import TunnelPool
from tuunel.tunnel import Tunnel

pytestmark = pytest.mark.anyio


@dataclass
class User:
    """Notes what a flow says."""

    tunnels: list[Tunnel] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    ends: list[Failure | None] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)

    def opened(self, tunnel: Tunnel) -> None:
        self.tunnels.append(tunnel)

    def deliver(self, payload: bytes) -> None:
        self.received.append(payload)

    def dropped(self, size: int) -> None:
        self.drops.append(size)

    def ended(self, failure: Failure | None) -> None:
        self.ends.append(failure)


@dataclass
class Setting:
    world: World
    roles: Trio
    pool: TunnelPool
    flows: DeviceFlows


@asynccontextmanager
async def setting() -> AsyncIterator[Setting]:
    async with world() as made:
        roles = await trio(made)
        async with pool_of(roles.home) as pool, anyio.create_task_group() as tasks:
            yield Setting(made, roles, pool, DeviceFlows(pool, roles.device, tasks))
            tasks.cancel_scope.cancel()


async def test_datagrams_that_are_sent_at_once_arrive_once_the_tunnel_is_there() -> None:
    async with setting() as here:
        user, port = User(), here.world.datagram_target()
        flow = here.flows.open(HostPort("", port), user)
        assert all(flow.send(payload) for payload in (b"one", b"", b"three"))
        here.flows.flush()
        await until(lambda: len(user.received) == 3)
        assert user.received == [b"one", b"", b"three"]
        assert len(user.tunnels) == 1
        assert not user.ends


async def test_all_flows_share_one_tunnel_and_each_gets_its_own_answers() -> None:
    async with setting() as here:
        users = [User() for _ in range(20)]
        for number, user in enumerate(users):
            port = here.world.datagram_target(lambda data, number=number: [b"%d " % number + data])
            here.flows.open(HostPort("", port), user).send(b"hello")
            here.flows.flush()
        await until(lambda: all(user.received for user in users))
        assert [user.received for user in users] == [[b"%d hello" % number] for number in range(20)]
        assert len(here.pool._live) == 1
        assert len({id(user.tunnels[0]) for user in users}) == 1


async def test_the_largest_datagram_passes_both_ways_and_a_larger_one_is_lost() -> None:
    async with setting() as here:
        user, port = User(), here.world.datagram_target()
        flow = here.flows.open(HostPort("", port), user)
        assert flow.send(bytes(65_507))
        here.flows.flush()
        assert not flow.send(bytes(65_508))
        await until(lambda: user.received)
        assert user.received == [bytes(65_507)]


async def test_a_flow_that_is_refused_says_why_in_the_agents_name_and_the_others_go_on() -> None:
    async with setting() as here:
        refused, served, port = User(), User(), here.world.datagram_target()
        here.flows.open(HostPort("169.254.1.1", 53), refused)
        flow = here.flows.open(HostPort("", port), served)
        flow.send(b"before")
        here.flows.flush()
        await until(lambda: refused.ends and served.received)
        (end,) = refused.ends
        assert end is not None
        assert (end.reason, end.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)
        flow.send(b"after")
        here.flows.flush()
        await until(lambda: served.received == [b"before", b"after"])


async def test_numbers_are_used_again_and_the_tunnel_lives_on() -> None:
    async with setting() as here:
        first = User()
        here.flows.open(HostPort("", 9), first)  # nobody listens there
        here.flows.open(HostPort("169.254.1.1", 53), first)
        for _ in range(3):
            user = User()
            here.flows.open(HostPort("169.254.1.1", 53), user)
            await until(lambda user=user: user.ends)
        assert len(here.pool._live) == 1


async def test_no_more_flows_than_a_tunnel_has_room_for() -> None:
    async with setting() as here:
        user, port = User(), here.world.datagram_target()
        for _ in range(MAX_FLOWS):
            here.flows.open(HostPort("", port), user)
        with pytest.raises(Failure) as caught:
            here.flows.open(HostPort("", port), User())
        assert caught.value.reason is Reason.LIMIT


async def test_without_flows_the_tunnel_ends_cleanly_and_the_next_flow_gets_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE", 0.0)
    async with setting() as here:
        user, port = User(), here.world.datagram_target()
        here.flows.open(HostPort("169.254.1.1", 53), user)
        await until(lambda: user.ends)
        (tunnel,) = here.pool._live
        await until(lambda: tunnel.closed)
        assert tunnel.cut_reason == ""
        again = User()
        here.flows.open(HostPort("", port), again).send(b"again")
        here.flows.flush()
        await until(lambda: again.received)


async def test_closing_ends_the_flows_and_the_tunnel_cleanly() -> None:
    async with setting() as here:
        user, port = User(), here.world.datagram_target()
        flow = here.flows.open(HostPort("", port), user)
        flow.send(b"x")
        here.flows.flush()
        await until(lambda: user.received)
        with anyio.fail_after(PATIENCE):
            await here.flows.aclose()
        assert user.ends == [None]
        assert user.tunnels[0].cut_reason == ""
        assert not flow.send(b"too late")
        await until(lambda: not here.roles.agent.role._tunnels._clients)


async def test_what_was_sent_leaves_before_the_end_and_is_sent_on_by_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here:
        heard: list[bytes] = []
        port = here.world.datagram_target(lambda data: heard.append(data) or [])  # type: ignore[func-returns-value]
        user = User()
        flow = here.flows.open(HostPort("", port), user)
        payloads = [b"%d" % number for number in range(50)]
        assert all(map(flow.send, payloads))
        with anyio.fail_after(PATIENCE):
            await here.flows.aclose()  # there is no tunnel yet
        await until(lambda: heard == payloads)
        assert (user.ends, user.drops) == ([None], [])


async def test_what_cannot_leave_in_time_is_lost_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL", 0.05)
    async with setting() as here:
        user = User()
        flow = here.flows.open(HostPort("", here.world.datagram_target()), user)
        await until(lambda: user.tunnels)

        with monkeypatch.context() as patch:
            patch.setattr(Tunnel, "send_now", lambda *_: anyio.sleep_forever)
            assert flow.send(b"taken off the queue")
            here.flows.flush()
            await anyio.wait_all_tasks_blocked()
            assert all(map(flow.send, (b"one", b"three")))
            with anyio.fail_after(PATIENCE):
                await here.flows.aclose()
                await until(lambda: user.ends)
        assert sorted(user.drops) == [3, 5]


async def test_without_a_tunnel_everything_is_lost_and_told() -> None:
    async with setting() as here:
        await here.roles.agent.kill()
        user = User()
        flow = here.flows.open(HostPort("", 53), user)
        assert all(map(flow.send, (b"one", b"three")))
        await until(lambda: user.ends)
        assert sorted(user.drops) == [3, 5]


async def test_an_agent_that_is_gone_is_told_to_every_flow_and_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with setting() as here:
        users, port = [User(), User()], here.world.datagram_target()
        for user in users:
            here.flows.open(HostPort("", port), user).send(b"x")
            here.flows.flush()
        await until(lambda: all(user.received for user in users))
        await here.roles.agent.kill()
        await until(lambda: all(user.ends for user in users))
        assert [end and end.reason for user in users for end in user.ends] == [Reason.TUNNEL_LOST] * 2
        with pytest.raises(Failure, match="tunnel was lost"):
            here.flows.open(HostPort("", port), User())
        monkeypatch.setattr(module, "RETRY", 0.0)
        late = User()
        here.flows.open(HostPort("", port), late)
        await until(lambda: late.ends)
        assert late.ends[0] is not None
        assert late.ends[0].reason is Reason.PEER_UNAVAILABLE


async def test_a_host_that_no_name_can_be_is_refused_here() -> None:
    async with setting() as here:
        with pytest.raises(Failure) as caught:
            here.flows.open(HostPort("a b", 53), User())
        assert caught.value.reason is Reason.NAME_NOT_RESOLVED
