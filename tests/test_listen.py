"""Listening: on what was asked and nothing else, past dead owners and full tables, with each connection's fate its own."""

import errno
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import anyio
import pytest

from tuunel.address import HostPort
from tuunel.errors import ListenError, RemoteProtocolError
from tuunel.listen import address_of, close_listener, open_listeners, open_unix_listener, serve
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio


async def listen_on(text: str) -> list[socket.socket]:
    return await open_listeners(HostPort.parse(text))


def close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        close_listener(listener)


def addresses(listeners: list[socket.socket]) -> list[str]:
    return [address_of(listener).host for listener in listeners]


class TestAddresses:
    async def test_localhost_is_both_loopbacks_on_one_free_port(self) -> None:
        listeners = await listen_on("localhost:0")
        assert addresses(listeners) == ["127.0.0.1", "::1"]
        assert len({address_of(listener).port for listener in listeners}) == 1
        for listener in listeners:
            socket.create_connection(listener.getsockname()[:2]).close()
        close(listeners)

    async def test_localhost_without_ipv6_is_the_ipv4_loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without_ipv6(monkeypatch)
        listeners = await listen_on("localhost:0")
        assert addresses(listeners) == ["127.0.0.1"]
        close(listeners)

    async def test_a_free_port_that_is_taken_on_the_other_loopback_is_exchanged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refusals = iter([OSError(errno.EADDRINUSE, "Address already in use")])

        class Unlucky(socket.socket):
            def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
                if address[0] == "::1" and (refusal := next(refusals, None)):
                    raise refusal
                super().bind(address)

        monkeypatch.setattr(socket, "socket", Unlucky)
        listeners = await listen_on("localhost:0")
        assert addresses(listeners) == ["127.0.0.1", "::1"]
        close(listeners)

    async def test_a_port_that_somebody_has_on_the_other_loopback_is_an_error(self) -> None:
        """Or whoever took it would get the clients that try ::1 first."""
        while True:  # until a port that nothing on this machine has on the first loopback
            other = socket.create_server(("::1", 0), family=socket.AF_INET6)
            port = other.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port)).close()
                break
            except OSError:
                other.close()
        with other:
            with pytest.raises(ListenError, match="in use"):
                await listen_on(f"localhost:{port}")
            with socket.create_server(("127.0.0.1", port)):
                pass  # and 127.0.0.1 was let go

    async def test_the_ipv6_wildcard_takes_both_versions(self) -> None:
        listeners = await listen_on("[::]:0")
        port = address_of(listeners[0]).port
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()
        close(listeners)

    async def test_the_ipv6_wildcard_without_ipv6_is_the_ipv4_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without_ipv6(monkeypatch)
        listeners = await listen_on("[::]:0")
        assert addresses(listeners) == ["0.0.0.0"]
        close(listeners)

    @pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
    async def test_an_address_is_that_address_alone(self, host: str) -> None:
        listeners = await listen_on(f"{host}:0")
        assert addresses(listeners) == [host.strip("[]")]
        close(listeners)

    async def test_a_name_is_what_it_resolves_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))] * 2

        monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
        listeners = await listen_on("my-machine:0")
        assert addresses(listeners) == ["127.0.0.1"]
        close(listeners)

    async def test_what_cannot_be_listened_on_is_told_with_advice(self) -> None:
        listeners = await listen_on("127.0.0.1:0")
        with pytest.raises(ListenError) as taken:
            await listen_on(str(address_of(listeners[0])))
        assert "another port" in taken.value.advice
        close(listeners)
        with pytest.raises(ListenError) as elsewhere:
            await listen_on("192.0.2.77:0")
        assert "does not have that address" in elsewhere.value.advice

    async def test_a_name_that_nobody_knows_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def getaddrinfo(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
        with pytest.raises(ListenError, match="not known"):
            await listen_on("nobody.invalid:0")


def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyIPv4(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported")
            super().__init__(family, kind, proto, fileno)

    monkeypatch.setattr(socket, "socket", OnlyIPv4)


class TestUnix:
    def test_only_its_user_can_open_it(self, tmp_path: Path) -> None:
        path = tmp_path / "role.sock"
        listener = open_unix_listener(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        close_listener(listener)

    def test_closing_removes_the_path(self, tmp_path: Path) -> None:
        path = tmp_path / "role.sock"
        close_listener(open_unix_listener(path))
        assert not path.exists()

    def test_what_a_dead_owner_left_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "role.sock"
        open_unix_listener(path).close()
        assert path.exists()
        listener = open_unix_listener(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        close_listener(listener)

    def test_a_living_owner_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "role.sock"
        listener = open_unix_listener(path)
        with pytest.raises(ListenError, match="already running"):
            open_unix_listener(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        close_listener(listener)

    def test_of_many_that_start_at_once_over_a_dead_one_exactly_one_wins(self, tmp_path: Path) -> None:
        path = tmp_path / "role.sock"
        open_unix_listener(path).close()
        won: list[socket.socket] = []
        barrier = threading.Barrier(8)

        def start() -> None:
            barrier.wait()
            with suppress(ListenError):
                won.append(open_unix_listener(path))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        close_listener(won[0])

    def test_a_file_in_its_place_is_not_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "role.sock"
        path.write_text("mine")
        with pytest.raises(ListenError, match="not a socket"):
            open_unix_listener(path)
        assert path.read_text() == "mine"

    def test_a_path_that_is_too_long_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ListenError, match="too long"):
            open_unix_listener(tmp_path / ("x" * 120))


class Serving:
    """A listener on loopback with its handler, served while the block runs."""

    def __init__(self, handler: object, *listeners: socket.socket) -> None:
        self.listeners = list(listeners) or [socket.create_server(("127.0.0.1", 0))]
        for listener in self.listeners:
            listener.settimeout(0)
        self._handler = handler

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(serve, self.listeners, self._handler, self._tasks)
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(*error)  # type: ignore[arg-type]

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listeners[0].getsockname())
        client.settimeout(5)
        return client


async def greet(stream: RawStream) -> None:
    await stream.send_all(b"hello")
    await stream.aclose()


class TestServing:
    async def test_each_connection_gets_its_handler(self) -> None:
        async with Serving(greet) as serving:
            for _ in range(3):
                with serving.connect() as client:
                    assert await anyio.to_thread.run_sync(client.recv, 10) == b"hello"

    async def test_a_connection_outlives_the_listening_in_its_task_group(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0)
        stopped, accepted = anyio.Event(), anyio.Event()

        async def handler(stream: RawStream) -> None:
            accepted.set()
            await stopped.wait()
            await greet(stream)

        async with anyio.create_task_group() as connections:
            with socket.socket() as client:
                async with anyio.create_task_group() as listening:
                    listening.start_soon(serve, [listener], handler, connections)
                    client.connect(listener.getsockname())
                    await accepted.wait()
                    listening.cancel_scope.cancel()
                assert listener.fileno() == -1
                stopped.set()
                assert await anyio.to_thread.run_sync(client.recv, 10) == b"hello"

    @pytest.mark.parametrize(
        "error", [ConnectionResetError(), RemoteProtocolError("garbage"), anyio.ClosedResourceError(), ZeroDivisionError()]
    )
    async def test_a_handler_that_fails_ends_only_its_own_connection(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        failed: list[bool] = []

        async def handler(stream: RawStream) -> None:
            if not failed:
                failed.append(True)
                raise error
            await greet(stream)

        async with Serving(handler) as serving:
            with serving.connect() as client, pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(client.recv, 1)
            with serving.connect() as client:
                assert await anyio.to_thread.run_sync(client.recv, 10) == b"hello"
        assert bool(caplog.records) == isinstance(error, ZeroDivisionError)

    async def test_connections_wait_while_descriptors_have_run_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tuunel.listen.EXHAUSTED_PAUSE", 0)
        errors = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN]

        class Exhausted(socket.socket):
            def accept(self) -> tuple[socket.socket, object]:
                if errors:
                    raise OSError(errors.pop(0), "no")
                return super().accept()

        listener = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with Serving(greet, listener) as serving:
            with serving.connect() as client:
                assert await anyio.to_thread.run_sync(client.recv, 10) == b"hello"
        assert not errors

    async def test_a_cancelled_server_resets_its_connections_and_closes_its_listeners(self) -> None:
        async def handler(stream: RawStream) -> None:
            await stream.send_all(b"x")
            await anyio.sleep_forever()

        async with Serving(handler) as serving:
            client = serving.connect()
            assert await anyio.to_thread.run_sync(client.recv, 1) == b"x"
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
        assert serving.listeners[0].fileno() == -1
