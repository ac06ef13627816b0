"""The forward proxy in a whole world: where destinations go, what is noticed, how it stops."""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from ipaddress import IPv4Address
from random import Random

import anyio
import pytest

from tests.streams import receive_all
from tests.world import LOOPBACK, PATIENCE, Trio, World, answer_after_end, connect, connect_through, echo, trio, until, world
from tuunel import outbound, pairing, pool
from tuunel.address import HostPort
from tuunel.control import call
from tuunel.earlybytes import EarlyBytes
from tuunel.errors import Failure, ListenError, PeerMismatch, Reason
from tuunel.events import Alarm, ConnectionChanged, ConnectionClosed, ConnectionOpened, Emit, Notice, Ready, RelayStateChanged
from tuunel.frontdoor import EARLY_LIMIT, Request
from tuunel.links import parse_invite
from tuunel.listeners import known_listeners
from tuunel.proxy import Proxy
from tuunel.rawstream import RawStream
from tuunel.relay.client import HopConnection
from tuunel.relay.dialpool import DialPool
from tuunel.relay.wire import HopError, Open, PairedForward
from tuunel.targetflow import Rule
from tuunel.userguard import UserGuard

pytestmark = pytest.mark.anyio

MEBIBYTE = bytes(range(256)) * 4096


@asynccontextmanager
async def three() -> AsyncIterator[tuple[World, Trio]]:
    async with world() as made:
        yield made, await trio(made)


async def echoes(stream: RawStream, data: bytes = b"hello") -> None:
    with anyio.fail_after(PATIENCE):
        await stream.send_all(data)
        assert await stream.receive_exactly(len(data)) == data


async def test_a_tuunel_name_is_reached_and_told_of() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home)
        stream = await connect_through(proxy, "home.tuunel", port)
        await echoes(stream)
        await stream.aclose()
        closed = await proxy.until(ConnectionClosed)
        opened = proxy.seen(ConnectionOpened)[0]
        assert (opened.id, opened.target, opened.device, opened.path) == (closed.id, f"home.tuunel:{port}", "home", "relay")
        assert [event.state for event in proxy.seen(ConnectionChanged)] == ["open"]
        assert (closed.reason, opened.traffic.up, opened.traffic.down) == ("done", 5, 5)


async def test_an_end_goes_one_way_and_a_mebibyte_comes_the_other() -> None:
    async with three() as (made, roles):
        heard: list[bytes] = []
        port = await made.target(answer_after_end(MEBIBYTE, heard))
        proxy = await made.proxy(roles.home)
        for _ in range(3):  # cold, warm and hot
            stream = await connect_through(proxy, "home.tuunel", port)
            await stream.send_all(b"question")
            await stream.write_eof()
            assert await receive_all(stream) == MEBIBYTE
            stream.close()
        assert heard == [b"question"] * 3


@pytest.mark.parametrize("door", ["forward", "socks5", "http-connect"])
async def test_what_is_said_while_the_relay_is_asked_goes_with_the_request(monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    """Most apps say their first words just behind what asks for their target, and the first tunnel takes a round trip to the relay."""
    said, took = anyio.Event(), bytearray()
    really_open, really_take = DialPool.open, EarlyBytes.take

    async def open_late(self: DialPool, request: Open) -> tuple[HopConnection, PairedForward | HopError]:
        answer = await really_open(self, request)
        await said.wait()
        return answer

    def note(self: EarlyBytes) -> bytes:
        data = really_take(self)
        took.extend(data)
        return data

    async with three() as (made, roles):
        port = await made.target(echo)
        asks = {
            "forward": b"",
            "socks5": b"\5\1\0\5\1\0\3\x0bhome.tuunel" + port.to_bytes(2),
            "http-connect": b"CONNECT home.tuunel:%d HTTP/1.1\r\nHost: home.tuunel\r\n\r\n" % port,
        }
        role = await (made.forward(roles.home, f"0:home.tuunel:{port}") if door == "forward" else made.proxy(roles.home))
        monkeypatch.setattr(DialPool, "open", open_late)
        monkeypatch.setattr(EarlyBytes, "take", note)
        stream = await connect(HostPort.parse(role.seen(Ready)[0].listen).port)
        await stream.send_all(asks[door])
        await role.until(ConnectionOpened)
        await stream.send_all(b"hello")
        said.set()
        with anyio.fail_after(PATIENCE):
            answer = b""
            while not answer.endswith(b"hello"):
                answer += await stream.receive(1) or pytest.fail("no answer")
        assert bytes(took) == b"hello"
        assert role.seen(ConnectionOpened)[0].traffic.up == 5
        stream.close()


@pytest.mark.parametrize("size", [EARLY_LIMIT - 1, EARLY_LIMIT, EARLY_LIMIT + 1, 1 << 20])
@pytest.mark.parametrize("door", ["forward", "socks5"])
async def test_an_upload_that_begins_while_the_relay_is_asked_is_whole(monkeypatch: pytest.MonkeyPatch, door: str, size: int) -> None:
    """Also where the request takes along all that may be read before, in the moment in which it comes: the rest is no other's end."""
    data = Random(size).randbytes(size)
    monkeypatch.setattr(outbound, "PROMPT", 0)
    really_open = DialPool.open

    async def begin_when_it_answers(self: DialPool, request: Open) -> tuple[HopConnection, PairedForward | HopError]:
        answer = await really_open(self, request)
        await anyio.wait_all_tasks_blocked()  # the client is watched by now
        sent.append(app.send(data))  # and the request leaves in the same turn of the loop
        begun.set()
        return answer

    begun = anyio.Event()
    sent: list[int] = []
    async with three() as (made, roles):
        heard: list[bytes] = []
        port = await made.target(answer_after_end(b"done", heard))
        role = await (made.forward(roles.home, f"0:home.tuunel:{port}") if door == "forward" else made.proxy(roles.home))
        app = socket.socket()
        app.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        app.connect((LOOPBACK.host, HostPort.parse(role.seen(Ready)[0].listen).port))
        stream = RawStream(app)
        if door == "socks5":
            await stream.send_all(b"\5\1\0")
            assert await stream.receive_exactly(2) == b"\5\0"
        monkeypatch.setattr(DialPool, "open", begin_when_it_answers)
        if door == "socks5":
            await stream.send_all(b"\5\1\0\3\x0bhome.tuunel" + port.to_bytes(2))
        await begun.wait()
        monkeypatch.setattr(DialPool, "open", really_open)
        await stream.send_all(data[sent[0] :])
        await stream.write_eof()
        with anyio.fail_after(PATIENCE):
            assert (await receive_all(stream)).endswith(b"done")
        assert heard == [data]
        stream.close()


async def test_an_unknown_name_goes_nowhere_else() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        with pytest.raises(ConnectionRefusedError, match="UNKNOWN_NAME"):
            await connect_through(proxy, "hme.tuunel", 80)


async def test_other_destinations_are_dialled_directly_or_refused() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home)
        await echoes(stream := await connect_through(proxy, LOOPBACK.host, port))
        stream.close()
        assert (await proxy.until(ConnectionOpened)).path == "direct"
        await proxy.kill()
        proxy = await made.proxy(roles.home, other="refuse")
        with pytest.raises(ConnectionRefusedError, match="REFUSED_BY_SETTING"):
            await connect_through(proxy, LOOPBACK.host, port)


async def test_routes_and_via_keep_the_name() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home, other="refuse", routes=["127.0.0.0/8=home"])
        await echoes(stream := await connect_through(proxy, "127.0.0.1", port))
        stream.close()
        assert (await proxy.until(ConnectionOpened)).device == "home"


async def test_a_route_to_an_unknown_name_is_told_at_the_start() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home, other="via:hoem", routes=["*.lab.example=hme", "10.0.0.0/8=home"])
        notices = [await proxy.until(Notice, lambda event, name=name: name in event.text) for name in ("=hme", "via:hoem")]
        assert all("did you mean 'home'?" in notice.text for notice in notices)
        assert not proxy.seen(Notice, lambda event: "=home" in event.text)


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "::"])
async def test_the_proxy_never_dials_itself(listen: str) -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home, listen=HostPort(listen, 0))
        port = proxy.role._addresses[0].port
        for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]", "localhost"):
            with pytest.raises(ConnectionRefusedError, match="REFUSED_BY_SETTING"):
                await connect_through(proxy, host, port)


async def test_a_client_from_elsewhere_does_not_reach_this_machines_loopback() -> None:
    async with three() as (made, roles):
        target = HostPort("127.0.0.1", await made.target(echo))
        proxy = await made.proxy(roles.home)
        outbound = await proxy.role._dial(Request(target, "socks5", local=True), EarlyBytes())
        outbound.reset()
        with pytest.raises(Failure) as caught:
            await proxy.role._dial(Request(target, "socks5", local=False), EarlyBytes())
        assert caught.value.reason is Reason.REFUSED_BY_SETTING


async def test_datagrams_from_elsewhere_do_not_reach_this_machines_loopback() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        target, addresses = HostPort("127.0.0.1", 53), [IPv4Address("127.0.0.1")]
        for local in (True, False):
            rule = proxy.role._associate(door="socks5", local=local, deliver=lambda header, payload: True)._route(target)
            assert isinstance(rule, Rule)
            if local:
                assert rule.allow(addresses) == addresses
            else:
                with pytest.raises(Failure) as caught:
                    rule.allow(addresses)
                assert caught.value.reason is Reason.REFUSED_BY_SETTING


async def test_a_proxy_with_a_password_asks_for_it() -> None:
    async with three() as (made, roles):

        def make(emit: Emit) -> Proxy:
            return Proxy(roles.home, listen=LOOPBACK, other="direct", routes=(), credentials=("ann", "secret"), emit=emit)

        proxy = made.start(roles.home, make)
        await proxy.until(Ready)
        stream = await connect(proxy.role._addresses[0].port)
        await stream.send_all(b"\x05\x01\x00")  # SOCKS5, and no password to offer
        with anyio.fail_after(PATIENCE):
            assert await receive_all(stream) == b"\x05\xff"
        stream.close()


async def test_requests_that_a_client_sends_at_once_and_ends_are_all_answered() -> None:
    """The origin server hears of the client's end behind the first one, and takes no other on that connection."""
    requests: list[bytes] = []

    async def answer(stream: RawStream) -> None:
        request = b""
        while data := await stream.receive():
            request += data
            if request.endswith(b"\r\n\r\n"):
                requests.append(request)
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                request = b""
        await stream.aclose()

    async with world() as made:
        roles = await trio(made)
        proxy = await made.proxy(roles.home)
        host = f"home.tuunel:{await made.target(answer)}"
        with closing(await connect(proxy.role._addresses[0].port)) as client:
            await client.send_all(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 2)
            await client.write_eof()
            with anyio.fail_after(PATIENCE):
                assert (await receive_all(client)).count(b"\r\n\r\nhi") == 2
        assert len(requests) == 2


async def test_a_program_of_another_user_is_refused_in_its_own_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)
        monkeypatch.setattr(UserGuard, "admits", lambda guard, stream: False)
        with pytest.raises(ConnectionRefusedError, match="FORBIDDEN_USER"):
            await connect_through(proxy, "home.tuunel", await made.target(echo))


async def test_a_guest_of_the_agent_cannot_enter_the_proxy_beside_it() -> None:
    async with three() as (made, roles):
        beside = await made.proxy(roles.agent.home)  # the agent's machine is a forward side too
        proxy = await made.proxy(roles.home)
        with pytest.raises(ConnectionRefusedError, match="POLICY_DENIED"):
            await connect_through(proxy, "127.0.0.1.home.tuunel", beside.role._addresses[0].port)


async def test_a_guest_of_the_agent_cannot_enter_a_udp_association_of_the_proxy_beside_it() -> None:
    async with three() as (made, roles):
        beside = await made.proxy(roles.agent.home)
        client = await connect(beside.role._addresses[0].port)
        await client.send_all(bytes.fromhex("05 01 00 05 03 00 01 00000000 0000"))
        assert (await client.receive_exactly(6)).hex() == "050005000001"
        port = int.from_bytes((await client.receive_exactly(6))[4:])
        status = await anyio.to_thread.run_sync(lambda: call(roles.agent.home.socket("proxy"), "status"))
        assert (status["associations"], status["dropped"]) == (1, 0)
        proxy = await made.proxy(roles.home)
        with pytest.raises(ConnectionRefusedError, match="POLICY_DENIED"):
            await connect_through(proxy, "127.0.0.1.home.tuunel", port)
        beside.role.stop()  # the association goes on, and so does its guard
        await until(lambda: len(known_listeners(roles.agent.home.run_dir)) == 1)
        with pytest.raises(ConnectionRefusedError, match="POLICY_DENIED"):
            await connect_through(proxy, "127.0.0.1.home.tuunel", port)
        await client.aclose()
        await until(lambda: known_listeners(roles.agent.home.run_dir) == ())


async def test_a_second_proxy_of_the_same_home_does_not_start_and_leaves_the_first_announced() -> None:
    async with three() as (made, roles):
        first = await made.proxy(roles.home)
        known = known_listeners(roles.home.run_dir)
        assert known
        second = made.start(
            roles.home, lambda emit: Proxy(roles.home, listen=LOOPBACK, other="direct", routes=(), credentials=None, emit=emit)
        )
        await second.over.wait()
        assert isinstance(second.error, ExceptionGroup)
        assert second.error.subgroup(ListenError)
        assert not second.seen(Ready)
        assert known_listeners(roles.home.run_dir) == known
        assert not first.over.is_set()


async def test_a_port_that_is_taken_is_a_listen_error() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = made.start(
            roles.home,
            lambda emit: Proxy(roles.home, listen=HostPort("127.0.0.1", port), other="direct", routes=(), credentials=None, emit=emit),
        )
        await proxy.over.wait()
        assert isinstance(proxy.error, ExceptionGroup)
        assert proxy.error.subgroup(ListenError)


async def test_a_device_paired_later_is_noticed_with_its_relay() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        home = made.home()
        proxy = await made.proxy(home)
        with pytest.raises(ConnectionRefusedError):
            await connect_through(proxy, "late.tuunel", port)
        answer = await roles.agent.role._make_invite({})
        await pairing.pair(home, parse_invite(answer["invite"]), "late")
        await echoes(stream := await connect_through(proxy, "late.tuunel", port))
        stream.close()
        await proxy.until(RelayStateChanged, lambda event: event.state == "online")


async def test_stop_takes_nobody_in_and_lets_those_inside_finish() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home)
        address = proxy.role._addresses[0].port
        by_port = await connect_through(proxy, "home.tuunel", port)
        await echoes(by_port)
        proxy.role.stop()
        await until(lambda: known_listeners(roles.home.run_dir) == ())
        with pytest.raises(ConnectionRefusedError):
            await connect(address)
        await echoes(by_port, b"still here")
        assert not proxy.over.is_set()
        await by_port.aclose()
        with anyio.fail_after(PATIENCE):
            await proxy.over.wait()
        assert proxy.error is None


async def test_nc_finishes_after_a_stop_and_learns_how_its_connection_ended() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home)
        path = roles.home.socket("proxy")
        door = await anyio.connect_unix(path)
        await door.send(f"CONNECT home.tuunel:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await door.receive()
        number = int(head.lower().partition(b"tuunel-connection:")[2].split()[0])
        proxy.role.stop()
        await until(lambda: known_listeners(roles.home.run_dir) == ())
        await door.send(b"last words")
        assert await door.receive() == b"last words"
        await door.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await door.receive()
        await door.aclose()
        assert await anyio.to_thread.run_sync(lambda: call(path, "outcome", connection=number)) == {"reason": "done"}
        await proxy.over.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a unix socket does not tell whether it was read")
async def test_nc_that_comes_after_a_stop_learns_that_its_words_were_not_read() -> None:
    """So it may say them again, on a tunnel of its own."""
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home)
        stays = await connect_through(proxy, "home.tuunel", port)
        proxy.role.stop()
        await until(lambda: known_listeners(roles.home.run_dir) == ())
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(roles.home.socket("proxy")))
            late = RawStream(sock)
            await late.send_all(f"CONNECT home.tuunel:{port} HTTP/1.1\r\nHost: x\r\n\r\nwords".encode())
            with pytest.raises(ConnectionResetError), anyio.fail_after(PATIENCE):
                await late.receive()
        await stays.aclose()
        await proxy.over.wait()


async def test_a_wrong_peer_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home)

        def refuse(*_: object) -> None:
            raise PeerMismatch("another key")

        monkeypatch.setattr(pool.Initiator, "receive_offer", refuse)
        with pytest.raises(ConnectionRefusedError, match="PEER_MISMATCH"):
            await connect_through(proxy, "home.tuunel", 80)
        assert len(proxy.seen(Alarm)) == 1


async def test_the_relay_comes_back_and_so_does_everything() -> None:
    async with three() as (made, roles):
        port = await made.target(echo)
        proxy = await made.proxy(roles.home)
        await echoes(stream := await connect_through(proxy, "home.tuunel", port))
        relay_port = (await roles.relay.until(Ready)).listen
        assert relay_port
        await roles.relay.kill()
        with pytest.raises(OSError):
            await receive_all(stream)
        stream.close()
        await made.relay(roles.relay.home, HostPort.parse(relay_port))
        with anyio.fail_after(3 * PATIENCE):
            while True:
                try:
                    stream = await connect_through(proxy, "home.tuunel", port)
                    break
                except ConnectionRefusedError:
                    await anyio.sleep(0.1)
        await echoes(stream)
        stream.close()


async def test_status_and_the_browsers_file() -> None:
    async with three() as (made, roles):
        proxy = await made.proxy(roles.home, listen=HostPort("::", 0), routes=["*.lab.example.com=home"])
        status = await anyio.to_thread.run_sync(lambda: call(roles.home.socket("proxy"), "status"))
        assert (status["role"], status["connections"]["open"]) == ("proxy", 0)
        assert status["device_id"] == str(proxy.role._reach.identity.device_id)
        script = proxy.role._pac()
        port = proxy.role._addresses[0].port
        assert f"[::]:{port}" not in script
        assert ".lab.example.com" in script
