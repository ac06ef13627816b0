"""Those who watch a role: what it tells of itself and of its connections, and how a person ends one of them, for both ends."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from tests.journeys.targets import full_backlog
from tests.streams import assert_reset, receive_all
from tests.world import PATIENCE, Running, Trio, World, connect, connect_through, echo, trio, until, world
from tuunel.control import call
from tuunel.datagrams import bind_datagrams
from tuunel.errors import Reason, TuunelError, UsageError
from tuunel.events import ConnectionClosed, ConnectionOpened, Notice
from tuunel.forward import Forward
from tuunel.proxy import Proxy
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio

STATUS = {"role", "pid", "started", "device_id", "listen", "relays", "devices", "connections"}
SUMMARY = {"open", "paths", "ended", "failed", "up", "down", "lost"}


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


async def ask(role: Running[Any], name: str, command: str, **arguments: Any) -> dict[str, Any]:
    return await anyio.to_thread.run_sync(partial(call, role.home.socket(name), command, **arguments))


async def echoes(stream: RawStream) -> RawStream:
    with anyio.fail_after(PATIENCE):
        await stream.send_all(b"hello")
        assert await stream.receive_exactly(5) == b"hello"
    return stream


def reasons(role: Running[Any]) -> list[str]:
    return [event.reason for event in role.seen(ConnectionClosed)]


# --- what is told -------------------------------------------------------------------------------------------------------------


async def test_every_role_tells_of_itself_in_one_shape() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}")
        stream = await echoes(await connect_through(proxy, "home.tuunel", await made.target(echo)))
        names = ((roles.relay, "relay"), (roles.agent, "agent"), (proxy, "proxy"), (forward, f"forward-{os.getpid()}"))
        told = {name.partition("-")[0]: await ask(role, name, "status") for role, name in names}
        for role, status in told.items():
            assert status.keys() >= STATUS
            assert (status["role"], status["pid"]) == (role, os.getpid())
            assert status["connections"].keys() == SUMMARY
            assert all(device.keys() >= {"name", "device_id", "tunnels"} for device in status["devices"])
            assert all((relay["state"], relay["detail"]) == ("online", "") for relay in status["relays"])
        assert {role: len(status["relays"]) for role, status in told.items()} == {"relay": 0, "agent": 1, "proxy": 1, "forward": 1}
        assert {role: len(status["listen"]) for role, status in told.items()} == {"relay": 1, "agent": 0, "proxy": 1, "forward": 1}
        assert told["proxy"]["connections"] | {"up": 0, "down": 0} == {
            "open": 1, "paths": {"relay": 1, "direct": 0}, "ended": 0, "failed": 0, "up": 0, "down": 0, "lost": 0,
        }  # fmt: skip
        assert [device["name"] for device in told["proxy"]["devices"]] == ["home"]
        assert told["agent"]["devices"][0]["device_id"] == told["proxy"]["device_id"]
        assert {device["agent"] for device in told["relay"]["devices"]} == {True, False}
        stream.close()


async def test_connections_show_who_where_and_how_much_and_the_ends_of_those_that_are_over() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        port = await made.target(echo)
        stream = await echoes(await connect_through(proxy, "home.tuunel", port))
        with pytest.raises(ConnectionRefusedError):
            await connect_through(proxy, "nowhere.tuunel", 80)
        shown = await ask(proxy, "proxy", "connections")
        ended, live = shown["connections"]
        assert (live["target"], live["device"], live["door"], live["path"]) == (f"home.tuunel:{port}", "home", "http-connect", "relay")
        assert (live["state"], live["up"], live["down"]) == ("open", 5, 5)
        assert live["tunnel"]
        assert (ended["state"], ended["reason"], ended["target"]) == ("ended", "UNKNOWN_NAME", "nowhere.tuunel:80")
        assert 0 <= ended["ended"] <= ended["age"] <= PATIENCE
        assert (shown["status"]["connections"]["open"], shown["status"]["connections"]["failed"]) == (1, 1)
        stream.close()


# --- an end that a person wants -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["proxy", "agent", "relay"])
async def test_a_connection_that_a_person_ends_is_reset_at_both_ends_and_both_hear_why(where: str) -> None:
    ends: list[str] = []

    async def watch(stream: RawStream) -> None:
        try:
            while data := await stream.receive():
                await stream.send_all(data)
            ends.append("end")
        except ConnectionError:
            ends.append("reset")
        stream.close()

    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        port = await made.target(watch)
        kept = await echoes(await connect_through(proxy, "home.tuunel", await made.target(echo)))
        stream = await echoes(await connect_through(proxy, "home.tuunel", port))
        role = {"proxy": proxy, "agent": roles.agent, "relay": roles.relay}[where]
        tunnel = (await ask(proxy, "proxy", "connections"))["connections"][-1]["tunnel"].partition(".")[0]
        shown = (await ask(role, where, "connections"))["connections"]
        (number,) = [each["id"] for each in shown if each["tunnel"].partition(".")[0] == tunnel and each["state"] == "open"]
        assert await ask(role, where, "kill", connection=number) == {"killed": number}
        await assert_reset(stream)
        stream.close()
        await until(lambda: ends == ["reset"])
        assert [event.reason for event in role.seen(ConnectionClosed, lambda event: event.id == number)] == ["KILLED"]
        for end in (proxy, roles.agent):
            await until(lambda end=end: end.seen(ConnectionClosed))
            if where == "relay":  # only afterwards can the relay say why
                await end.until(Notice, lambda notice: "a person at the relay has ended it" in notice.text)
                told = await ask(end, "proxy" if end is proxy else "agent", "connections")
                assert [each["reason"] for each in told["connections"] if each["state"] == "ended"] == ["KILLED"]
            else:
                assert reasons(end) == ["KILLED"]
        await echoes(kept)  # nobody else's
        kept.close()


async def test_a_dial_that_a_person_ends_is_answered_with_the_reason() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        with full_backlog() as (port, _):
            for role in (proxy, roles.agent):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_is_refused, proxy, port)
                    await until(lambda role=role: len(role.seen(ConnectionOpened)) > len(role.seen(ConnectionClosed)))
                    role.role.kill(role.seen(ConnectionOpened)[-1].id)
        assert reasons(proxy) == ["KILLED", "KILLED"]


async def _is_refused(proxy: Running[Proxy], port: int) -> None:
    with pytest.raises(ConnectionRefusedError, match="KILLED"):
        await connect_through(proxy, "home.tuunel", port)


async def test_a_request_that_a_person_ends_gets_the_page_that_says_so_and_is_not_repeated() -> None:
    asked: list[bytes] = []

    async def answer_once(stream: RawStream) -> None:
        while data := await stream.receive():
            asked.append(data)
            if len(asked) == 1:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        port = await made.target(answer_once)
        client = await connect(proxy.role._addresses[0].port)
        request = f"GET http://home.tuunel:{port}/ HTTP/1.1\r\nHost: home.tuunel:{port}\r\n\r\n".encode()
        await client.send_all(request)
        with anyio.fail_after(PATIENCE):
            assert (await client.receive()).startswith(b"HTTP/1.1 200 ")
        await client.send_all(request)
        await until(lambda: len(asked) == 2)
        proxy.role.kill(proxy.seen(ConnectionOpened)[-1].id)
        with anyio.fail_after(PATIENCE):
            page = await receive_all(client)
        client.close()
        assert page.startswith(b"HTTP/1.1 503 ")
        assert b"KILLED" in page
        assert len(proxy.seen(ConnectionOpened)) == 1


async def test_a_direct_connection_can_be_ended_too() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        stream = await echoes(await connect_through(proxy, "127.0.0.1", await made.target(echo)))
        proxy.role.kill(proxy.seen(ConnectionOpened)[-1].id)
        await assert_reset(stream)
        stream.close()
        assert reasons(proxy) == ["KILLED"]


@pytest.mark.parametrize("where", ["forward", "agent"])
async def test_a_udp_flow_can_be_ended_and_a_later_datagram_begins_another(where: str) -> None:
    async with three() as (made, roles):
        port = made.datagram_target()
        forward = await made.forward(roles.home, f"0:home.tuunel:{port}/udp", f"0:home.tuunel:{port}/udp")
        client = bind_datagrams("127.0.0.1")
        try:
            to = ("127.0.0.1", int(forward.role._places[0]["listen"].rpartition(":")[2]))
            await _answered(client, to)
            role: Running[Any] = forward if where == "forward" else roles.agent
            role.role.kill(role.seen(ConnectionOpened)[-1].id)
            for end in (forward, roles.agent):
                await end.until(ConnectionClosed)
                assert reasons(end) == ["KILLED"]
            client.drop_queued()  # what the first flow still answered
            await _answered(client, to)
            assert len(roles.agent.seen(ConnectionOpened)) == 2
        finally:
            client.close()


async def _answered(client: Any, to: tuple[str, int]) -> None:
    with anyio.fail_after(PATIENCE):
        while client.receive_from() is None:
            client.send_to(b"ping", to)
            with anyio.move_on_after(0.2):
                await client.wait_readable()


async def test_what_is_not_open_cannot_be_ended() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        for wrong in ({"connection": 7}, {"connection": "x"}, {}):
            with pytest.raises(TuunelError) as caught:
                await ask(proxy, "proxy", "kill", **wrong)
            assert caught.value.exit_code == UsageError.exit_code


async def test_a_forward_has_its_own_way_to_end_a_connection() -> None:
    async with three() as (made, roles):
        forward: Running[Forward] = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}")
        stream = await echoes(await connect(int(forward.role._places[0]["listen"].rpartition(":")[2])))
        forward.role.kill(forward.seen(ConnectionOpened)[-1].id)
        await assert_reset(stream)
        stream.close()
        assert reasons(forward) == [Reason.KILLED]
