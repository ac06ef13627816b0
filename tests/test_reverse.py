"""The agent's tunnels: grants are asked anew each time, a fault or a loss at any moment ends one tunnel and nothing else."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from tests.world import PATIENCE, Handler, Trio, World, echo, pool_of, trio, until, world
from tuunel import reverse as module
from tuunel.address import HostPort
from tuunel.e2e.wire import Command
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, PeerMismatch, Reason, Speaker, StateError
from tuunel.events import Alarm, ConnectionClosed, ConnectionOpened, DeviceSeen
from tuunel.listen import open_unix_listener, serve
from tuunel.rawstream import RawStream, receive_chunk, send_bytes
from tuunel.relay.wire import Open, PairedForward

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


async def hang(*_: object, **__: object) -> RawStream:
    await anyio.sleep_forever()
    raise AssertionError


async def refused(roles: Trio, target: HostPort) -> Failure:
    async with pool_of(roles.home) as pool:
        with pytest.raises(Failure) as caught:
            await pool.connect(roles.device, target)
    return caught.value


async def alive(made: World, roles: Trio) -> None:
    """The agent still serves."""
    port = await made.target(echo)
    async with pool_of(roles.home) as pool:
        tunnel, _ = await pool.connect(roles.device, HostPort("", port), EarlyBytes(b"x"))
        assert await receive_chunk(tunnel, pool._buffers) == b"x"


async def test_pairing_is_told_and_so_is_each_connection() -> None:
    async with three() as (made, roles):
        assert roles.agent.seen(DeviceSeen, lambda event: event.what == "paired")
        await alive(made, roles)
        opened = await roles.agent.until(ConnectionOpened)
        assert opened.target.startswith("localhost:")
        await roles.agent.until(ConnectionClosed, lambda event: event.id == opened.id)


async def test_a_revoke_ends_what_is_live_and_what_waits_and_what_comes() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        async with pool_of(roles.home, warm=2) as pool:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            await until(lambda: len(roles.agent.role._tunnels._idle) >= 2)
            answer = await roles.agent.role._revoke({"who": next(iter(roles.agent.role._grants.grants(0))).name})
            assert answer["cut"] == 1
            with pytest.raises(OSError):
                await receive_chunk(tunnel, pool._buffers)
            await until(lambda: not roles.agent.role._tunnels._clients)
            with pytest.raises(Failure) as caught:
                await pool.connect(roles.device, HostPort("", port))
            assert caught.value.reason in {Reason.POLICY_REVOKED, Reason.DEVICE_UNKNOWN}


async def test_a_tunnel_that_asks_for_nothing_yet_is_refused_to_a_client_without_a_grant() -> None:
    async with three() as (_, roles):
        await to_thread.run_sync(roles.agent.role._grants.revoke, next(iter(roles.agent.role._grants.grants(0))).device, 0)
        async with pool_of(roles.home) as pool:
            with pytest.raises(Failure) as caught:
                await pool.open(roles.device)
        assert (caught.value.reason, caught.value.speaker) == (Reason.POLICY_REVOKED, Speaker.AGENT)


async def test_what_a_client_may_reach_is_asked_anew_at_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        grants = roles.agent.role._grants
        async with pool_of(roles.home) as pool:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            narrow = replace(grants.grants(0)[0], targets=("192.0.2.1",))
            monkeypatch.setattr(grants, "admit", lambda device, now: narrow)
            with pytest.raises(Failure) as caught:
                await pool.connect(roles.device, HostPort("", port))
            tunnel.reset()
        assert caught.value.reason is Reason.POLICY_DENIED


async def test_a_revoke_while_the_target_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):
        with monkeypatch.context() as patch:
            patch.setattr(module, "dial", hang)
            async with pool_of(roles.home) as pool, anyio.create_task_group() as tasks:

                async def ask() -> None:
                    with pytest.raises(Failure):
                        await pool.connect(roles.device, HostPort("", 80))

                tasks.start_soon(ask)
                await until(lambda: roles.agent.seen(ConnectionOpened))
                await roles.agent.role._revoke({"who": next(iter(roles.agent.role._grants.grants(0))).name})
        assert not roles.agent.over.is_set()
        roles.home, roles.device = await made.paired(roles.agent, name="again")
        await alive(made, roles)


async def test_a_grant_that_ends_cuts_its_tunnels(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):
        home, device = await made.paired(roles.agent, **{"for": 3600})
        port = await made.target(echo)
        async with pool_of(home) as pool:
            tunnel, _ = await pool.connect(device, HostPort("", port))
            for served in roles.agent.role._tunnels._expiries:
                roles.agent.role._tunnels._expiries[served] = 0
            with anyio.fail_after(10), pytest.raises(OSError):  # a TimeoutError is an OSError, too
                await receive_chunk(tunnel, pool._buffers)


async def test_a_client_that_gives_up_ends_the_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (_, roles):
        monkeypatch.setattr(module, "dial", hang)
        async with pool_of(roles.home) as pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.connect, roles.device, HostPort("", 80), EarlyBytes(b"early"))
                opened = await roles.agent.until(ConnectionOpened)
                tasks.cancel_scope.cancel()
            await roles.agent.until(ConnectionClosed, lambda event: event.id == opened.id)


@pytest.mark.parametrize("error", [StateError("the file is damaged", "mend it"), OSError(24, "Too many open files")], ids=["state", "os"])
async def test_a_fault_of_the_agents_machine_is_told_there_and_ends_one_tunnel(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async with three() as (made, roles):

        def fail() -> None:
            raise error

        tunnels = roles.agent.role._tunnels
        with monkeypatch.context() as patch:
            patch.setattr(tunnels, "_surroundings", fail)
            failure = await refused(roles, HostPort("", 80))
        assert (failure.reason, failure.speaker) == (Reason.INTERNAL, Speaker.AGENT)
        assert roles.agent.seen(Alarm)
        await alive(made, roles)


async def test_a_fault_of_ours_ends_one_tunnel_and_not_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):

        async def fail(*_: object, **__: object) -> RawStream:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(module, "dial", fail)
            failure = await refused(roles, HostPort("", 80))
        assert failure.reason is Reason.TUNNEL_LOST
        assert [event for event in roles.agent.seen(Alarm) if "can't start new thread" in event.text]
        await alive(made, roles)


async def test_alarms_that_a_client_can_cause_at_will_are_told_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (_, roles):

        async def mismatch(stream: RawStream, *_: object, **__: object) -> None:
            stream.reset()
            raise PeerMismatch("not the one that the relay named")

        monkeypatch.setattr(module, "respond", mismatch)
        monkeypatch.setattr(module, "ALARM_INTERVAL", 3600)
        for _ in range(3):
            assert (await refused(roles, HostPort("", 80))).reason is Reason.TUNNEL_LOST
        assert len(roles.agent.seen(Alarm)) == 1
        monkeypatch.setattr(module, "ALARM_INTERVAL", 0)
        await refused(roles, HostPort("", 80))
        assert len(roles.agent.seen(Alarm)) > 1


async def test_a_damaged_book_lets_nobody_in_and_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        async with pool_of(roles.home) as pool:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            path = roles.agent.home.grants_file
            whole = path.read_bytes()
            path.write_bytes(b"nonsense")
            with anyio.fail_after(10), pytest.raises(OSError):  # a TimeoutError is an OSError, too
                await receive_chunk(tunnel, pool._buffers)
            with pytest.raises(Failure) as caught:
                await pool.connect(roles.device, HostPort("", port))
            assert caught.value.reason is Reason.INTERNAL
            path.write_bytes(whole)
        await alive(made, roles)


@asynccontextmanager
async def unix_service(handler: Handler) -> AsyncIterator[str]:
    """A unix socket of the agent's machine: its path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory) / "service.sock"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, [open_unix_listener(path)], handler, tasks)
            yield str(path)
            tasks.cancel_scope.cancel()


async def test_a_unix_socket_is_reached_by_the_client_whose_grant_names_it() -> None:
    async with three() as (made, roles), unix_service(echo) as path:
        home, device = await made.paired(roles.agent, targets=[f"unix:{path}"])
        async with pool_of(home) as pool:
            tunnel, bound = await pool.connect(device, HostPort(path, 0), EarlyBytes(b"hello"), Command.UNIX)
            assert bound == HostPort("0.0.0.0", 0)
            assert await receive_chunk(tunnel, pool._buffers) == b"hello"
            await tunnel.write_eof()
            assert await receive_chunk(tunnel, pool._buffers) == b""
            await tunnel.aclose()
        opened = await roles.agent.until(ConnectionOpened)
        assert opened.target == f"unix:{path}"
        closed = await roles.agent.until(ConnectionClosed)
        assert closed.reason == "done"


async def test_a_unix_socket_that_no_grant_names_is_refused() -> None:
    async with three() as (made, roles), unix_service(echo) as path:
        home, device = await made.paired(roles.agent, targets=["*", "internet", f"unix:{path}2"])
        async with pool_of(home) as pool:
            for asked in (path, f"{path}/", path.replace("/", "//")):
                with pytest.raises(Failure, match="a unix socket only where a target names it") as caught:
                    await pool.connect(device, HostPort(asked, 0), command=Command.UNIX)
                assert (caught.value.reason, caught.value.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)
            with pytest.raises(Failure) as caught:
                await pool.connect(device, HostPort(f"{path}2", 0), command=Command.UNIX)
            assert (caught.value.reason, caught.value.speaker) == (Reason.CONNECTION_REFUSED, Speaker.AGENT)


async def test_one_client_cannot_take_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PER_CLIENT", 2)
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        for _ in range(2):
            await pool.connect(roles.device, HostPort("", port))
        with pytest.raises(Failure) as caught:
            await pool.connect(roles.device, HostPort("", port))
        assert caught.value.reason is Reason.LIMIT


async def test_connections_that_show_nothing_are_bounded_for_each_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ARRIVING", 2)
    async with three() as (made, roles), pool_of(roles.home) as pool:
        dials = pool.dial_pool(roles.device.relays[0])

        async def pair_and_be_silent() -> RawStream:
            initiator = pool._initiator(roles.device, roles.device.relays[0])
            connection, answer = await dials.open(Open(initiator.open_message()))
            assert isinstance(answer, PairedForward)
            return connection.stream

        silent = [await pair_and_be_silent() for _ in range(2)]
        tunnels = roles.agent.role._tunnels
        await until(lambda: tunnels._arriving.total() == 2)
        third = await pair_and_be_silent()
        with pytest.raises(ConnectionResetError), anyio.fail_after(PATIENCE):
            await third.receive()
        for stream in (*silent, third):
            stream.reset()
        await until(lambda: not tunnels._arriving)
        await alive(made, roles)


async def test_a_target_that_resets_is_a_reset_and_the_ledger_says_so() -> None:
    async with three() as (made, roles):

        async def reset(stream: RawStream) -> None:
            await stream.receive()
            stream.reset()

        port = await made.target(reset)
        async with pool_of(roles.home) as pool:
            tunnel, _ = await pool.connect(roles.device, HostPort("", port))
            await send_bytes(tunnel, pool._buffers, b"x")
            with pytest.raises(OSError):
                await receive_chunk(tunnel, pool._buffers)
        assert (await roles.agent.until(ConnectionClosed)).reason == "reset"


@pytest.mark.parametrize("steps", range(0, 40, 3))
async def test_killing_the_agent_at_any_moment_of_a_dial_leaves_nothing_open(steps: int) -> None:
    async with three() as (made, roles), pool_of(roles.home) as pool:
        port = await made.target(echo)
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                with suppress(Failure):
                    await pool.connect(roles.device, HostPort("", port), EarlyBytes(b"early"))

            tasks.start_soon(ask)
            await until(lambda: roles.agent.seen(ConnectionOpened))
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            await roles.agent.kill()
            tasks.cancel_scope.cancel()
