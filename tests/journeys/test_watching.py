"""Seeing what runs and acting on it: the live table in a real terminal, `top` from another one, `status` of every combination."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import clean_environment, tuunel_argv, until
from tests.journeys.targets import Target, echo, hold, serving
from tests.journeys.terminal import Terminal, terminal
from tests.journeys.world import LOOPBACK, Machine, Trio, World

pytestmark = pytest.mark.real


def drip(sock: socket.socket, _target: Target) -> None:
    """Answer HTTP without end, some bytes at a time."""
    sock.recv(1 << 16)
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        sock.sendall(bytes(2000))
        time.sleep(0.05)


@pytest.fixture
def laptop(trio: Trio) -> Machine:
    return trio.world.laptop(trio.agent.new_invite())


@contextmanager
def proxy_in_terminal(machine: Machine, columns: int = 100, rows: int = 24) -> Iterator[tuple[Terminal, str]]:
    """`tuunel proxy` with its table, and its address."""
    argv = tuunel_argv("proxy", "--listen", f"{LOOPBACK}:0")
    with terminal(argv, machine.env, columns, rows) as screen:
        address = screen.row("tuunel proxy  ").split()[2]
        screen.shows("online")
        yield screen, address
        screen.types("C-c")
        assert screen.code() == 0


@contextmanager
def curl(address: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [program("curl"), "-s", "-S", "-o", "/dev/null", "--proxy", f"socks5h://{address}", f"http://home.tuunel:{port}/"]
    with subprocess.Popen(argv, env=clean_environment(), stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def netcat(address: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [program("nc"), "-X", "5", "-x", address, "home.tuunel", str(port)]
    with subprocess.Popen(argv, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write(b"hello")
            process.stdin.flush()
            assert process.stdout.read(5) == b"hello"
            yield process
        finally:
            process.kill()


def rows_of(screen: Terminal) -> list[str]:
    return [line for line in screen.lines() if line.startswith("home.tuunel:")]


def test_a_person_sorts_filters_freezes_and_ends_a_connection_at_the_proxys_table(laptop: Machine) -> None:
    with (
        serving(drip) as busy,
        serving(echo) as quiet,
        proxy_in_terminal(laptop) as (screen, address),
        curl(address, busy.port) as downloading,
    ):
        screen.shows(f"home.tuunel:{busy.port} ")
        with netcat(address, quiet.port) as talking:
            screen.shows(f"home.tuunel:{quiet.port} ")
            until(lambda: str(quiet.port) in rows_of(screen)[0], "the newest comes first")
            screen.types("s")
            until(lambda: str(busy.port) in rows_of(screen)[0], "the busiest comes first")

            screen.types("/", str(quiet.port), "Enter")
            screen.shows("1 of 2 pass the filter")
            assert str(quiet.port) in rows_of(screen)[0]
            screen.types("Escape")
            until(lambda: len(rows_of(screen)) == 2, "the filter is dropped")

            screen.types("f")
            screen.shows("FROZEN")
            frozen = rows_of(screen)
            time.sleep(1.2)  # the table goes on twice a second
            assert rows_of(screen) == frozen
            screen.types("f")
            until(lambda: rows_of(screen) != frozen, "the table goes on")

            screen.types("Down", "x")
            screen.shows(f"home.tuunel:{busy.port} for both ends?   y ends it")
            screen.types("n")
            screen.shows("x end it")
            assert downloading.poll() is None
            screen.types("x", "y")
            assert downloading.wait(10) != 0
            assert f":{busy.port} " in screen.row("KILLED: local: a person")
            assert talking.poll() is None, "nobody else's connection"


def test_a_terminal_that_becomes_narrower_and_wider_shows_one_whole_table(laptop: Machine) -> None:
    with serving(hold) as target, proxy_in_terminal(laptop, 110, 30) as (screen, address):
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as one, socket.create_connection((host, int(port))) as two:
            for client in (one, two):
                client.sendall(f"CONNECT home.tuunel:{target.port} HTTP/1.1\r\nHost: home.tuunel:{target.port}\r\n\r\n".encode())
            until(lambda: len(rows_of(screen)) == 2, "both are shown")
            for columns, rows in ((80, 30), (47, 30), (80, 12), (120, 35)):
                screen.resize(columns, rows)
                until(lambda columns=columns: is_whole(screen.lines(), columns), f"one table of {columns} columns")


def is_whole(lines: list[str], columns: int) -> bool:
    """Whether the screen shows one table with two rows, which is as wide as the terminal and ends with the keys."""
    starts = [sum(line.startswith(start) for line in lines) for start in ("tuunel proxy  ", "TARGET", "home.")]
    table = lines[next((place for place, line in enumerate(lines) if line.startswith("tuunel proxy  ")), 0) :]
    return starts == [1, 1, 2] and max(map(len, table)) == columns - 1 and len(table) == 7 and table[-1].startswith("\u2191\u2193 select")


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(laptop: Machine) -> None:
    shell = [program("bash"), "--norc", "--noprofile", "-i"]
    mode = "stty -a | tr ' ' '\\n' | grep -E -- '^-?(icanon|echo)$' | tr '\\n' '+'; echo"
    with terminal(shell, {**laptop.env, "PS1": "$ "}, rows=40) as screen:
        screen.types(" ".join(tuunel_argv("proxy", "--listen", f"{LOOPBACK}:0")), "Enter")
        screen.shows("select")
        screen.types("C-z")
        screen.shows("Stopped")
        screen.types("clear; " + mode, "Enter")
        screen.shows("icanon+echo+")
        screen.types("clear", "Enter", "bg", "Enter", "echo still-a-shell", "Enter")
        screen.shows("\nstill-a-shell")
        time.sleep(1.2)  # in the background it draws nothing, however often it could
        assert "select" not in "\n".join(screen.lines())
        screen.types("fg", "Enter")
        screen.shows("select")
        screen.types("s")
        screen.shows("s rate")
        screen.types("C-c")
        until(lambda: screen.lines()[-1].startswith("$"), "the shell is back")
        screen.types("clear; " + mode, "Enter")
        screen.shows("icanon+echo+")


@pytest.mark.parametrize("role", ["proxy", "agent", "relay"])
def test_top_shows_a_running_role_from_another_terminal_and_ends_a_connection_there(trio: Trio, role: str) -> None:
    machine = {"proxy": trio.laptop, "agent": trio.agent.machine, "relay": trio.relay.machine}[role]
    with serving(echo) as target, netcat(f"{LOOPBACK}:{trio.proxy.port}", target.port) as talking:
        with terminal(tuunel_argv("top", role), machine.env, 120, 30) as screen:
            screen.shows(f"tuunel {role}")
            if role != "relay":  # which knows neither target nor port
                screen.types("/", str(target.port), "Enter")
            else:
                screen.types("s", "s")
            screen.types("Down")
            screen.shows("x end it")
            if role != "relay":
                screen.types("x")
                screen.shows("for both ends?")
                screen.types("y")
                screen.shows("KILLED")
                talking.wait(10)
            screen.types("q")
            assert screen.code() == 0
        listed = machine.tuunel("top", role).stdout.decode()
        assert "KILLED" in listed or role == "relay"


def test_top_at_the_relay_ends_a_tunnel_of_others(own_trio: Trio) -> None:
    with serving(echo) as target, netcat(f"{LOOPBACK}:{own_trio.proxy.port}", target.port) as talking:
        with terminal(tuunel_argv("top"), own_trio.relay.machine.env, 120, 30) as screen:
            screen.shows(own_trio.agent.device_id[:20])
            assert str(target.port) not in "\n".join(screen.lines())
            until(lambda: "home" not in "\n".join(screen.lines()), "names are not the relay's to know")
            screen.types("s", "s", "Down", "x", "y")  # the one that carries most
            screen.shows("KILLED")
            talking.wait(10)
        said = own_trio.proxy.process.told("notice")
        assert "a person at the relay has ended it" in said["text"]


def test_top_ends_with_its_role_and_says_so(laptop: Machine, trio: Trio) -> None:
    proxy = trio.world.proxy(laptop)
    with terminal(tuunel_argv("top"), laptop.env) as screen:
        screen.shows("tuunel proxy  ")
        proxy.process.stop()
        screen.shows("tuunel proxy has ended")
        assert screen.code() == 0


def test_top_writes_lines_for_programs_and_leaves_with_its_reader(trio: Trio) -> None:
    argv = tuunel_argv("top", "proxy", "--json")
    with subprocess.Popen(argv, env=trio.laptop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        ready, *rest = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""
    assert (ready["event"], ready["role"], ready["listen"]) == ("ready", "proxy", f"{LOOPBACK}:{trio.proxy.port}")
    assert {each["event"] for each in rest} == {"connections"}
    assert all(each["status"]["relays"][0]["state"] == "online" for each in rest)


def test_top_says_what_it_cannot_watch(own_world: World, trio: Trio) -> None:
    nothing = own_world.machine().tuunel("top", check=False)
    assert (nothing.returncode, b"no tuunel role runs here" in nothing.stderr) == (61, True)
    wrong = trio.laptop.tuunel("top", "rely", check=False)
    assert (wrong.returncode, b"relay" in wrong.stderr) == (2, True)
    other = trio.laptop.tuunel("top", "agent", check=False)
    assert (other.returncode, b"tuunel agent" in other.stderr) == (61, True)


def test_status_tells_what_runs_what_does_not_and_how_to_start_it(own_trio: Trio) -> None:
    laptop, world = own_trio.laptop, own_trio.world
    with world.forward(laptop, "0:home.tuunel:80") as forward:
        document = laptop.ask("status")
        assert [each["name"] for each in document["running"]] == ["proxy", f"forward-{forward.process.pid}"]
        assert [(each["role"], each["set_up"]) for each in document["not_running"]] == [("relay", False), ("agent", False)]
        said = laptop.tuunel("status").stdout.decode()
        assert f"on {LOOPBACK}:{own_trio.proxy.port}" in said
        assert f"{forward.listens[0]} leads to home.tuunel:80" in said
        assert "start it with:   tuunel relay serve" in said
        several = laptop.tuunel("top", check=False)
        assert (several.returncode, b"say which one" in several.stderr) == (2, True)
    assert "(agent) online" in own_trio.relay.machine.tuunel("status").stdout.decode()
    assert own_trio.agent.machine.ask("status")["running"][0]["relays"][0]["state"] == "online"

    own_trio.proxy.process.signal(signal.SIGSTOP)
    silent = laptop.tuunel("status", "--json", check=False)
    own_trio.proxy.process.signal(signal.SIGCONT)
    assert (silent.returncode, json.loads(silent.stdout)["silent"]) == (1, ["proxy"])

    own_trio.relay.process.kill()
    until(lambda: laptop.tuunel("status", check=False).returncode == 32, "the relay is seen to be offline")
    assert "does not run here; start it with:   tuunel relay serve" in own_trio.relay.machine.tuunel("status", check=False).stdout.decode()

    own_trio.proxy.process.kill()  # its socket stays
    nothing = laptop.tuunel("status", "--json", check=False)
    assert (nothing.returncode, json.loads(nothing.stdout)["running"]) == (61, [])
