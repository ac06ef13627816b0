"""Static forwards in a whole world: what is led where, what is told, what a web page cannot do, and how it all ends."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tests.streams import assert_reset, receive_all, reset_socket
from tests.world import PATIENCE, Running, Trio, World, answer_after_end, connect, connect_through, echo, trio, until, world
from tuunel import guardedstream
from tuunel.control import call
from tuunel.devices import Devices
from tuunel.errors import Failure, ListenError, Reason
from tuunel.events import ConnectionClosed, ConnectionOpened, Ready
from tuunel.forward import Forward
from tuunel.forwarding import parse_forwardings
from tuunel.listen import open_unix_listener, serve
from tuunel.listeners import known_listeners
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio

MEBIBYTE = bytes(range(256)) * 4096
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
FOREIGN = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


def places(forward: Running[Forward]) -> list[str]:
    (ready,) = forward.seen(Ready)
    assert ready.forwards
    assert ready.listen == ready.forwards[0]["listen"]
    return [place["listen"] for place in ready.forwards]


def ports(forward: Running[Forward]) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in places(forward) if not place.startswith("/")]


async def echoes(stream: RawStream, data: bytes = b"hello") -> None:
    with anyio.fail_after(PATIENCE):
        await stream.send_all(data)
        assert await stream.receive_exactly(len(data)) == data


async def reset_by(target: RawStream) -> None:
    await target.receive()
    target.reset()


async def test_a_port_leads_to_a_target_and_is_told_of() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        forward = await made.forward(roles.home, f"0:home.tuunel:{port}")
        assert places(forward)[0].startswith("127.0.0.1:")
        stream = await connect(ports(forward)[0])
        await echoes(stream)
        await stream.aclose()
        closed = await forward.until(ConnectionClosed)
        opened = forward.seen(ConnectionOpened)[0]
        assert (opened.target, opened.device, opened.door, opened.path) == (f"home.tuunel:{port}", "home", "forward", "relay")
        assert (closed.reason, opened.traffic.up, opened.traffic.down) == ("done", 5, 5)


async def test_who_speaks_first_does_not_matter() -> None:
    async def greet(stream: RawStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await echo(stream)

    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(greet)}")
        stream = await connect(ports(forward)[0])
        with anyio.fail_after(PATIENCE):
            assert await stream.receive_exactly(11) == b"220 ready\r\n"
        await echoes(stream)
        stream.close()


async def test_an_end_goes_one_way_and_a_mebibyte_comes_the_other() -> None:
    async with three() as (made, roles):
        heard: list[bytes] = []
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(answer_after_end(MEBIBYTE, heard))}")
        for _ in range(3):  # cold, warm and hot
            stream = await connect(ports(forward)[0])
            await stream.send_all(b"question")
            await stream.write_eof()
            assert await receive_all(stream) == MEBIBYTE
            stream.close()
        assert heard == [b"question"] * 3


async def test_a_reset_stays_one_in_both_directions() -> None:
    async with three() as (made, roles):
        seen: list[str] = []

        async def watch(stream: RawStream) -> None:
            try:
                await receive_all(stream)
                seen.append("end")
            except ConnectionError:
                seen.append("reset")
            stream.close()

        resetting, watching = await made.target(reset_by), await made.target(watch)
        forward = await made.forward(roles.home, f"0:home.tuunel:{resetting}", f"0:home.tuunel:{watching}")
        there, here = ports(forward)
        stream = await connect(there)
        await stream.send_all(b"x")
        await assert_reset(stream)
        stream.close()
        sock = socket.create_connection(("127.0.0.1", here))
        sock.send(b"x")
        await until(lambda: any(opened.traffic.up for opened in forward.seen(ConnectionOpened)[1:]))
        reset_socket(sock)
        await until(lambda: seen)
        assert seen == ["reset"]


async def test_a_target_that_cannot_be_reached_resets_the_client_and_says_why() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, "0:home.tuunel:1")
        stream = await connect(ports(forward)[0])
        await assert_reset(stream)
        stream.close()
        assert (await forward.until(ConnectionClosed)).reason == Reason.CONNECTION_REFUSED


async def test_a_client_that_leaves_ends_the_dial() -> None:
    async with three() as (made, roles):
        with socket.socket() as full, socket.socket() as first:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            first.connect(full.getsockname())  # its queue is full now: the kernel answers no further connection
            with socket.socket() as second:
                second.settimeout(0)
                second.connect_ex(full.getsockname())
                forward = await made.forward(roles.home, f"0:home.tuunel:{full.getsockname()[1]}")
                sock = socket.create_connection(("127.0.0.1", ports(forward)[0]))
                await forward.until(ConnectionOpened)
                reset_socket(sock)
                assert (await forward.until(ConnectionClosed)).reason == "reset"


async def test_unix_sockets_on_either_side() -> None:
    async with three() as (made, roles):
        there, here = roles.agent.home.root / "service.sock", roles.home.root / "here.sock"
        made.tasks.start_soon(serve, [open_unix_listener(there)], echo, made.tasks)
        home, _ = await made.paired(roles.agent, "home", targets=[f"unix:{there}"])
        forward = await made.forward(home, f"{here}:home.tuunel:unix:{there}", f"0:home.tuunel:unix:{there}")
        assert places(forward)[0] == str(here)
        assert here.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(here))
            await echoes(RawStream(sock))
        await echoes(stream := await connect(ports(forward)[0]))
        stream.close()
        assert forward.seen(ConnectionOpened)[0].target == f"home.tuunel:unix:{there}"
        await forward.kill()
        assert not here.exists()


async def test_an_unknown_name_does_not_start() -> None:
    async with three() as (made, roles):
        with pytest.raises(Failure) as raised:
            await made.forward(roles.home, "0:hme.tuunel:80")
        assert raised.value.reason is Reason.UNKNOWN_NAME


async def test_a_device_that_is_offline_at_the_start_is_told_at_use_and_reached_when_it_is_back() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        await roles.agent.kill()
        forward = await made.forward(roles.home, f"0:home.tuunel:{port}")
        stream = await connect(ports(forward)[0])
        await assert_reset(stream)
        stream.close()
        assert (await forward.until(ConnectionClosed)).reason == Reason.PEER_UNAVAILABLE
        await made.agent(None, roles.agent.home)
        await echoes(stream := await connect(ports(forward)[0]))
        stream.close()


async def test_a_device_is_looked_up_at_each_use() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}")
        Devices(roles.home.devices_file).rename("home", "house")
        stream = await connect(ports(forward)[0])
        await assert_reset(stream)
        stream.close()
        assert (await forward.until(ConnectionClosed)).reason == Reason.UNKNOWN_NAME


async def test_a_place_that_is_taken_is_a_listen_error_and_leaves_nothing() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        wanted = parse_forwardings([f"{roles.home.root / 'x'}:home.tuunel:80", "0:home.tuunel:53/udp", f"{port}:home.tuunel:80"])
        forward = made.start(roles.home, lambda emit: Forward(roles.home, forwardings=wanted, http_hosts=frozenset(), emit=emit))
        await forward.over.wait()
        assert isinstance(forward.error, ExceptionGroup)
        assert forward.error.subgroup(ListenError)
        assert not forward.seen(Ready)
        assert known_listeners(roles.home.run_dir) == ()
        assert not (roles.home.root / "x").exists()


async def test_its_ports_are_tuunels_own_and_no_guest_of_the_agent_gets_in() -> None:
    async with three() as (made, roles):
        beside = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}", "0:home.tuunel:53/udp")
        assert {port for _, port in known_listeners(roles.home.run_dir)} == set(ports(beside))
        back, _ = await made.paired(await made.agent((await roles.relay.until(Ready)).link, roles.home, enrolled=True), "laptop")
        proxy = await made.proxy(back)
        with pytest.raises(ConnectionRefusedError, match="POLICY_DENIED"):
            await connect_through(proxy, "127.0.0.1.laptop.tuunel", ports(beside)[0])


async def test_stop_takes_nobody_in_and_lets_those_inside_finish() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}", "0:home.tuunel:53/udp")
        stream = await connect(ports(forward)[0])
        await echoes(stream)
        forward.role.stop()
        await until(lambda: forward.role._streams[0][0][0].fileno() < 0)
        with pytest.raises(ConnectionRefusedError):
            await connect(ports(forward)[0])
        await echoes(stream, b"still here")
        assert not forward.over.is_set()
        await stream.aclose()
        with anyio.fail_after(PATIENCE):
            await forward.over.wait()
        assert forward.error is None
        assert known_listeners(roles.home.run_dir) == ()


async def test_its_control_socket_answers_and_goes_with_what_crashed_forwards_have_left() -> None:
    async with three() as (made, roles):
        run = roles.home.run_dir
        for left in ("forward-1.sock", "forward-1.sock.lock"):
            (run / left).touch()
        forward = await made.forward(roles.home, "0:home.tuunel:80")
        path = roles.home.socket(f"forward-{os.getpid()}")
        assert sorted(run.glob("forward-*.sock")) == [path]
        status = await anyio.to_thread.run_sync(lambda: call(path, "status"))
        assert (status["role"], status["connections"]["open"]) == ("forward", 0)
        assert status["forwards"] == [{"listen": places(forward)[0], "target": "home.tuunel:80"}]
        await forward.kill()
        assert not list(run.glob("forward-*"))


# --- --http-hosts -------------------------------------------------------------------------------------------------------------


async def answer(stream: RawStream) -> bytes:
    with anyio.fail_after(PATIENCE):
        return await receive_all(stream)


async def test_a_listed_host_passes_and_another_gets_403_before_anything_is_dialled() -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}", http_hosts=["localhost"])
        stream = await connect(ports(forward)[0])
        await stream.send_all(FOREIGN)
        assert (await answer(stream)).startswith(b"HTTP/1.1 403 ")
        stream.close()
        (closed,) = forward.seen(ConnectionClosed)
        assert (closed.reason, "evil.example" in closed.detail) == (Reason.FORBIDDEN_HOST, True)
        await echoes(stream := await connect(ports(forward)[0]), REQUEST)
        await echoes(stream, REQUEST + REQUEST)
        await stream.aclose()
        assert [opened.device for opened in forward.seen(ConnectionOpened)] == ["", "home"]


async def test_a_later_request_for_another_host_never_arrives() -> None:
    heard = bytearray()

    async def hear(stream: RawStream) -> None:
        while data := await stream.receive():
            heard.extend(data)

    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(hear)}", http_hosts=["localhost"])
        stream = await connect(ports(forward)[0])
        await stream.send_all(REQUEST)
        await until(lambda: bytes(heard) == REQUEST)
        await stream.send_all(FOREIGN)
        await assert_reset(stream)
        stream.close()
        assert (await forward.until(ConnectionClosed)).reason == Reason.FORBIDDEN_HOST
        assert bytes(heard) == REQUEST


@pytest.mark.parametrize(("second", "passes"), [(REQUEST, True), (FOREIGN, False)], ids=["listed", "foreign"])
async def test_what_comes_while_the_target_is_dialled_is_judged_too(second: bytes, passes: bool) -> None:
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}", http_hosts=["localhost"])
        stream = await connect(ports(forward)[0])
        await stream.send_all(REQUEST)
        await forward.until(ConnectionOpened)
        await stream.send_all(second)
        if passes:
            with anyio.fail_after(PATIENCE):
                assert await stream.receive_exactly(2 * len(REQUEST)) == REQUEST * 2
        else:
            await assert_reset(stream)
            assert (await forward.until(ConnectionClosed)).reason == Reason.FORBIDDEN_HOST
        stream.close()


async def test_the_end_behind_a_request_is_passed_on() -> None:
    async with three() as (made, roles):
        heard: list[bytes] = []
        target = await made.target(answer_after_end(b"HTTP/1.1 204 No Content\r\n\r\n", heard))
        forward = await made.forward(roles.home, f"0:home.tuunel:{target}", http_hosts=["localhost"])
        stream = await connect(ports(forward)[0])
        await stream.send_all(REQUEST)
        await stream.write_eof()
        assert (await answer(stream)).startswith(b"HTTP/1.1 204")
        stream.close()
        assert heard == [REQUEST]


async def test_a_large_body_passes_whole() -> None:
    async with three() as (made, roles):
        heard: list[bytes] = []
        forward = await made.forward(
            roles.home, f"0:home.tuunel:{await made.target(answer_after_end(b'done', heard))}", http_hosts=["localhost"]
        )
        request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(MEBIBYTE) + MEBIBYTE
        stream = await connect(ports(forward)[0])
        await stream.send_all(request)
        await stream.write_eof()
        assert await answer(stream) == b"done"
        stream.close()
        assert heard == [request]


async def test_who_sends_half_a_head_is_answered_in_time_and_who_sends_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardedstream, "HEADER_DEADLINE", 0.2)
    async with three() as (made, roles):
        forward = await made.forward(roles.home, f"0:home.tuunel:{await made.target(echo)}", http_hosts=["localhost"])
        silent = await connect(ports(forward)[0])
        assert await answer(silent) == b""
        silent.close()
        slow = await connect(ports(forward)[0])
        await slow.send_all(REQUEST[:-1])
        assert (await answer(slow)).startswith(b"HTTP/1.1 403 ")
        slow.close()
        assert [closed.reason for closed in forward.seen(ConnectionClosed)] == [Reason.FORBIDDEN_HOST]


async def test_a_guarded_unix_socket() -> None:
    async with three() as (made, roles):
        here = Path(roles.home.root / "here.sock")
        await made.forward(roles.home, f"{here}:home.tuunel:{await made.target(echo)}", http_hosts=["docker"])
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(here))
            await echoes(RawStream(sock), REQUEST.replace(b"localhost", b"docker"))
