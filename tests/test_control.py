"""The control socket: what a role answers is what a command gets, errors with all that belongs to them; and nothing else is let in."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tuunel import control
from tuunel.control import MAX_REQUEST, call
from tuunel.errors import Failure, ListenError, NotRunning, Reason, Speaker, TuunelError, UsageError
from tuunel.rawstream import RawStream

pytestmark = pytest.mark.anyio


async def echo(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"heard": dict(request)}


async def ask(path: Path, command: str, /, **arguments: Any) -> dict[str, Any]:
    return await anyio.to_thread.run_sync(partial(call, path, command, **arguments))


def raising(error: Exception) -> control.Handler:
    async def handler(request: Mapping[str, Any]) -> dict[str, Any]:
        raise error

    return handler


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@asynccontextmanager
async def serving(path: Path, **handlers: control.Handler) -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(control.serve, path, handlers)
        yield tasks
        tasks.cancel_scope.cancel()


class RawClient:
    """A client that writes its own lines."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        self._socket.connect(os.fspath(path))
        self._lines = self._socket.makefile("rb")

    async def send(self, data: bytes) -> None:
        await anyio.to_thread.run_sync(self._socket.sendall, data)

    async def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await anyio.to_thread.run_sync(self._lines.readline))
        return answer

    async def at_end(self) -> bool:
        return not await anyio.to_thread.run_sync(self._lines.readline)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class TestAnswers:
    async def test_a_command_gets_its_answer(self, path: Path) -> None:
        async with serving(path, echo=echo):
            answer = await ask(path, "echo", **{"uses": 2, "for": "8h"})
        assert answer == {"heard": {"command": "echo", "uses": 2, "for": "8h"}}

    async def test_a_long_answer_arrives(self, path: Path) -> None:
        async def devices(request: Mapping[str, Any]) -> dict[str, Any]:
            return {"devices": ["mrupz-3btpu"] * 50_000}

        async with serving(path, devices=devices):
            assert len((await ask(path, "devices"))["devices"]) == 50_000

    async def test_one_connection_asks_several_times_in_any_pieces(self, path: Path) -> None:
        async with serving(path, echo=echo):
            client = RawClient(path)
            for byte in b'{"command":"echo","n":1}\n':
                await client.send(bytes([byte]))
            await client.send(b'{"command":"echo","n":2}\n{"command":"echo","n":3}\n')
            assert [(await client.answer())["heard"]["n"] for _ in range(3)] == [1, 2, 3]
            client.close()


class TestErrors:
    async def test_a_failure_keeps_its_reason_speaker_and_detail(self, path: Path) -> None:
        async with serving(path, invite=raising(Failure(Reason.QUOTA, Speaker.RELAY, "20 invites are open"))):
            with pytest.raises(Failure) as caught:
                await ask(path, "invite")
        assert (caught.value.reason, caught.value.speaker, caught.value.detail) == (Reason.QUOTA, Speaker.RELAY, "20 invites are open")
        assert caught.value.exit_code == Failure(Reason.QUOTA).exit_code

    async def test_any_other_error_keeps_message_advice_and_exit_code(self, path: Path) -> None:
        async with serving(path, revoke=raising(UsageError("nobody is called bob", "see 'tuunel clients'"))):
            with pytest.raises(TuunelError) as caught:
                await ask(path, "revoke", who="bob")
        assert (str(caught.value), caught.value.advice, caught.value.exit_code) == ("nobody is called bob", "see 'tuunel clients'", 2)

    async def test_an_unknown_command_is_answered_with_the_known_ones(self, path: Path) -> None:
        async with serving(path, clients=echo, invite=echo):
            with pytest.raises(TuunelError, match="unknown command 'fly'") as caught:
                await ask(path, "fly")
        assert "clients, invite" in caught.value.advice

    async def test_arguments_that_cannot_be_meant_are_the_askers_fault(self, path: Path) -> None:
        async with serving(path, invite=raising(ValueError("invalid literal for int()"))):
            with pytest.raises(TuunelError) as caught:
                await ask(path, "invite", uses="many")
        assert caught.value.exit_code == 2

    async def test_a_bug_is_answered_logged_and_survived(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        async with serving(path, invite=raising(ZeroDivisionError()), echo=echo):
            with pytest.raises(Failure) as caught:
                await ask(path, "invite")
            assert caught.value.reason == Reason.INTERNAL
            assert await ask(path, "echo")
        assert caplog.records

    @pytest.mark.parametrize("line", [b"garbage", b"[]", b"{}", b'{"command":1}', b"[" * 50_000, b"\xff\xfe", b""])
    async def test_what_is_no_request_is_told_so(self, path: Path, line: bytes) -> None:
        async with serving(path, echo=echo):
            client = RawClient(path)
            await client.send(line + b"\n")
            answer = await client.answer()
            assert (answer["ok"], answer["error"]["exit"]) == (False, 2)
            await client.send(b'{"command":"echo"}\n')
            assert (await client.answer())["ok"]
            client.close()

    async def test_a_line_above_the_limit_is_told_so_and_ends_the_connection(self, path: Path) -> None:
        async with serving(path, echo=echo):
            client = RawClient(path)
            await client.send(b"x" * (MAX_REQUEST + 1))
            assert (await client.answer())["error"]["exit"] == 2
            assert await client.at_end()
            client.close()

    async def test_a_line_of_exactly_the_limit_is_read(self, path: Path) -> None:
        async with serving(path, echo=echo):
            client = RawClient(path)
            await client.send(b'{"command":"echo"}'.ljust(MAX_REQUEST) + b"\n")
            assert (await client.answer())["ok"]
            client.close()


class TestPresence:
    def test_nobody_there_is_not_running(self, path: Path) -> None:
        with pytest.raises(NotRunning, match="agent"):
            call(path, "clients")

    def test_what_a_dead_role_left_is_not_running(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
        with pytest.raises(NotRunning):
            call(path, "clients")

    async def test_a_role_that_goes_away_before_it_answers_is_not_running(self, path: Path) -> None:
        async def stuck(request: Mapping[str, Any]) -> dict[str, Any]:
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()
            return {}

        raised: list[BaseException] = []

        async def try_to_ask() -> None:
            with pytest.raises(NotRunning) as caught:
                await ask(path, "stuck")
            raised.append(caught.value)

        async with anyio.create_task_group() as asking, serving(path, stuck=stuck) as tasks:
            asking.start_soon(try_to_ask)
            await anyio.sleep_forever()
        assert raised

    def test_a_role_that_does_not_answer_is_told(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "CALL_TIMEOUT", 0.01)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(os.fspath(path))
            silent.listen()
            with pytest.raises(TuunelError, match="does not answer"):
                call(path, "clients")

    async def test_a_second_role_of_the_same_home_is_refused(self, path: Path) -> None:
        async with serving(path, echo=echo):
            with pytest.raises(ListenError, match="already running"):
                await control.serve(path, {})
            assert await ask(path, "echo")

    async def test_the_socket_is_gone_with_its_role(self, path: Path) -> None:
        async with serving(path, echo=echo):
            assert path.stat().st_mode & 0o777 == 0o600
        assert not path.exists()

    def test_asking_needs_no_event_loop(self) -> None:
        """A command that only asks must not wait for large imports."""
        check = "import sys, tuunel.control; sys.exit(any(name in sys.modules for name in ('anyio', 'asyncio', 'cryptography', 'typer')))"
        assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


class TestOthers:
    async def test_what_does_not_begin_like_a_request_is_handed_on_whole(self, path: Path) -> None:
        async def shout(stream: RawStream) -> None:
            await stream.send_all((await stream.receive()).upper() + b"\n")
            await stream.aclose()

        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(control.serve, path, {"echo": echo}, other=shout))
            client = RawClient(path)
            await client.send(b"connect")
            assert await anyio.to_thread.run_sync(client._lines.readline) == b"CONNECT\n"
            client.close()
            assert await ask(path, "echo")
            tasks.cancel_scope.cancel()
