"""`tuunel nc`: byte-exact, half-close both ways, and an exit code that tells the reason; with a running proxy and by itself."""

import os
import socket
import subprocess

import pytest

from tests.journeys.peers import program
from tests.journeys.processes import clean_environment, run, tuunel_argv
from tests.journeys.targets import Target, answer_after_end, closed_port, echo, end_then_listen, note_how_it_ends, pour, reset, serving
from tests.journeys.world import Machine, Trio
from tuunel.errors import ANSWERS, Reason

pytestmark = pytest.mark.real

MEBIBYTE = os.urandom(1 << 20)


@pytest.fixture(params=["through the running proxy", "by itself"])
def machine(trio: Trio, request: pytest.FixtureRequest) -> Machine:
    return trio.laptop if request.param == "through the running proxy" else trio.walker


def start_nc(machine: Machine, port: int) -> "subprocess.Popen[bytes]":
    """Start `tuunel nc home PORT` with pipes to hold."""
    argv = tuunel_argv("nc", "home", str(port))
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=machine.env)


def test_bytes_are_exact_both_ways(machine: Machine) -> None:
    sent = bytes(range(256)) * 40_000
    with serving(echo) as target:
        done = machine.nc("home.tuunel", target.port, stdin=sent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == sent


def test_end_of_input_goes_one_way_and_a_mebibyte_comes_the_other(machine: Machine) -> None:
    with serving(answer_after_end(MEBIBYTE)) as target:
        done = machine.nc("home.tuunel", target.port, stdin=b"question")
        assert target.noted() == [b"question"]
    assert (done.returncode, done.stdout == MEBIBYTE) == (0, True), done.stderr


def test_the_target_ends_first_and_a_mebibyte_still_goes_to_it(machine: Machine) -> None:
    with serving(end_then_listen(b"greeting")) as target:
        nc = start_nc(machine, target.port)
        assert nc.stdin
        assert nc.stdout
        assert nc.stdout.read() == b"greeting"  # stdout has ended before anything is sent
        out, err = nc.communicate(MEBIBYTE, timeout=30)
        assert (nc.returncode, out) == (0, b""), err
        assert target.noted() == [MEBIBYTE]


def test_empty_input_is_an_end_too(machine: Machine) -> None:
    with serving(answer_after_end(b"said nothing")) as target:
        assert machine.nc("home.tuunel", target.port).stdout == b"said nothing"


@pytest.mark.parametrize("arguments", [["home", "PORT"], ["home:PORT"], ["home.tuunel:PORT"], ["127.0.0.1.home.tuunel", "PORT"]])
def test_each_way_to_name_the_target(trio: Trio, arguments: list[str]) -> None:
    with serving(echo) as target:
        given = [argument.replace("PORT", str(target.port)) for argument in arguments]
        assert trio.laptop.tuunel("nc", *given, stdin=b"hello").stdout == b"hello"


@pytest.mark.parametrize(
    "arguments",
    [["example.org", "80"], ["127.0.0.1", "80"], ["::1", "80"], ["home"], ["home", "0"], ["home", "65536"], ["home", "http"], []],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_what_cannot_be_meant_is_a_usage_error_and_never_goes_direct(machine: Machine, arguments: list[str]) -> None:
    done = machine.tuunel("nc", *arguments, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr


def test_a_failure_says_who_spoke_what_happened_and_what_to_do(machine: Machine) -> None:
    done = machine.nc("home.tuunel", closed_port())
    answer = ANSWERS[Reason.CONNECTION_REFUSED]
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (answer.exit, b"")
    assert answer.message in said
    assert answer.advice in said


def test_a_target_that_resets_ends_nc_with_an_error(machine: Machine) -> None:
    with serving(lambda sock, _target: reset(sock) if sock.recv(100) else None) as target:
        nc = start_nc(machine, target.port)
        out, err = nc.communicate(b"reset me", timeout=30)
    assert nc.returncode not in (0, 2), err
    assert out == b""


@pytest.mark.parametrize("when", ["at once", "in the midst"])
def test_a_killed_nc_reaches_the_target_as_a_reset(machine: Machine, when: str) -> None:
    with serving(greet_and_note_how_it_ends) as target:
        nc = start_nc(machine, target.port)
        try:
            assert nc.stdin
            assert nc.stdout
            nc.stdin.write(b"x")
            nc.stdin.flush()
            target.accepted()
            if when == "in the midst":
                assert nc.stdout.read(5) == b"hello"
        finally:
            nc.kill()
            nc.communicate(timeout=10)
        assert target.noted() == ["reset"]


def greet_and_note_how_it_ends(sock: socket.socket, target: Target) -> None:
    sock.sendall(b"hello")
    note_how_it_ends(sock, target)


def test_a_reader_that_leaves_ends_nc(machine: Machine) -> None:
    with serving(pour) as target:
        nc = start_nc(machine, target.port)
        assert nc.stdout
        assert nc.stdin
        assert len(nc.stdout.read(100_000)) == 100_000
        nc.stdout.close()
        try:
            nc.wait(10)
        finally:
            nc.kill()
            nc.stdin.close()
            assert nc.stderr
            nc.stderr.close()


def test_the_running_proxy_also_serves_nc_of_openbsd(trio: Trio) -> None:
    netcat = program("nc.openbsd", "nc")
    with serving(answer_after_end(MEBIBYTE)) as target:
        argv = [netcat, "-N", "-X", "5", "-x", f"127.0.0.1:{trio.proxy.port}", "home.tuunel", str(target.port)]
        done = run(argv, clean_environment(), stdin=b"question")
        assert target.noted() == [b"question"]
    assert done.stdout == MEBIBYTE
