"""What nobody should send over UDP: malformed headers, strangers' datagrams, floods, flows without end, names that never resolve.

Each is dropped or bounded, and what is beside it goes on.
"""

import contextlib
import ipaddress
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.datagrams import (
    Association,
    DatagramTarget,
    answering,
    ask,
    associated,
    bound,
    connected,
    echo_datagrams,
    shout,
    udp_header,
)
from tests.journeys.house import ECHO_PORT, LAN_HOST, House
from tests.journeys.processes import Running, clean_environment, until
from tests.journeys.sockets import flows_to
from tests.journeys.world import LOOPBACK, Trio, World
from tuunel.errors import Reason

pytestmark = pytest.mark.real

MAX_FLOWS = 1024  # docs/spec/records.md
MEMORY = 64 << 20  # what a flood may cost: the bounds of docs/spec, and what an allocator keeps


@pytest.fixture
def association(trio: Trio) -> Iterator[Association]:
    with associated(trio.proxy.address) as made:
        yield made


@pytest.fixture
def target() -> Iterator[DatagramTarget]:
    with answering(shout) as made:
        yield made


def memory_of(process: Running) -> int:
    """Its resident memory in bytes."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


def malformed(port: int) -> dict[str, bytes]:
    good = udp_header("home.tuunel", port) + b"payload"
    return {
        "nothing": b"",
        "one byte": good[:1],
        "no address": good[:4],
        "half a name": good[:9],
        "no port": good[: good.index(b"tuunel") + 7],
        "reserved bytes": b"\x01" + good[1:],
        "a fragment": udp_header("home.tuunel", port, fragment=1) + b"payload",
        "the last fragment": udp_header("home.tuunel", port, fragment=0x81) + b"payload",
        "an unknown address type": good[:3] + b"\x02" + good[4:],
        "an empty name": b"\x00\x00\x00\x03\x00" + good[-9:],
        "a name that is none": udp_header("home..tuunel", port) + b"payload",
        "a name with a zero": udp_header("homer.tuunel", port).replace(b"r", b"\x00", 1) + b"payload",
        "port 0": udp_header("home.tuunel", 0) + b"payload",
        "an unknown device": udp_header("nobody.tuunel", port) + b"payload",
        "half an IPv6 address": b"\x00\x00\x00\x04" + bytes(9),
    }


def test_malformed_headers_and_fragments_are_dropped_and_only_they(association: Association, target: DatagramTarget) -> None:
    assert association.ask("home.tuunel", target.port, b"before") == b"BEFORE"
    for what, data in malformed(target.port).items():
        association.sock.sendto(data, association.relay)
        assert association.ask("home.tuunel", target.port, what.encode()) == what.upper().encode()
    assert target.received == 1 + len(malformed(target.port))


def test_a_strangers_answer_does_not_come_through(association: Association, target: DatagramTarget) -> None:
    """Only the address that a flow leads to can answer through it: the agent's kernel takes datagrams from nobody else."""
    assert association.ask("home.tuunel", target.port, b"hello") == b"HELLO"
    agents_end = target.callers[0]
    with contextlib.closing(bound()) as stranger, contextlib.closing(bound("127.0.0.2")) as elsewhere:
        for sock in (stranger, elsewhere):
            sock.sendto(b"I am the target", agents_end)
        assert association.ask("home.tuunel", target.port, b"still") == b"STILL"


_FLOOD = """
import contextlib, sys, time
from tests.journeys.datagrams import associated, udp_header
with associated(("127.0.0.1", int(sys.argv[1]))) as association:
    datagram = udp_header("home.tuunel", int(sys.argv[2])) + bytes(1200)
    association.sock.connect(association.relay)
    association.sock.setblocking(False)
    print("flooding", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            association.sock.send(datagram)
"""  # a process of its own: it sends as fast as it can, whatever becomes of it


def latencies(association: Association, port: int, count: int) -> list[float]:
    """How long each of `count` answers took; one that did not come within 2 seconds counts as lost, and that is told as 2."""
    took = []
    association.sock.settimeout(2.0)
    for number in range(count):
        question = b"quiet %d" % number
        began = time.monotonic()
        association.send("home.tuunel", port, question)
        with contextlib.suppress(TimeoutError):
            while association.receive()[2] != question:
                pass
        took.append(time.monotonic() - began)
    return took


def test_a_quiet_association_beside_a_flood_keeps_its_latency(trio: Trio) -> None:
    parties = [trio.proxy.process, trio.agent.process]
    with answering(lambda _: None) as sink, answering(echo_datagrams) as target, associated(trio.proxy.address) as quiet:
        before = latencies(quiet, target.port, 50)
        memory = [memory_of(process) for process in parties]
        command = [sys.executable, "-c", _FLOOD, str(trio.proxy.port), str(sink.port)]
        with Running(command, clean_environment()) as flood:
            assert flood.line() == "flooding"
            sink.took(100)
            during = latencies(quiet, target.port, 40)
            assert flood.alive(), flood.errors()
        after = latencies(quiet, target.port, 10)
        grown = [memory_of(process) - was for process, was in zip(parties, memory, strict=True)]
    assert max(before) < 2.0
    assert sum(each >= 2.0 for each in during) <= 4  # UDP may lose, and the machine is crowded now
    assert statistics.median(during) < statistics.median(before) + 0.5
    assert statistics.median(after) < statistics.median(before) + 0.1
    assert max(grown) < MEMORY


def test_ten_thousand_flows_of_one_client_stay_bounded_and_the_first_goes_on(trio: Trio) -> None:
    """Each to a target of its own: one that listens and never answers, at ten thousand addresses of loopback."""
    first_address = ipaddress.IPv4Address("127.16.0.1")
    parties = [trio.proxy.process, trio.agent.process]
    with (
        answering(lambda _: None, host="0.0.0.0") as sink,
        answering(shout) as target,
        associated(trio.proxy.address) as greedy,
        associated(trio.proxy.address) as other,
    ):
        assert greedy.ask("home.tuunel", target.port, b"first") == b"FIRST"
        memory = [memory_of(process) for process in parties]
        for number in range(10_000):
            greedy.send(f"{first_address + number}.home.tuunel", sink.port, b"one more")
            if number % 100 == 99:
                assert greedy.ask("home.tuunel", target.port, b"still here") == b"STILL HERE"
        assert MAX_FLOWS // 2 < flows_to(sink.port) <= MAX_FLOWS
        assert len(sink.callers) <= MAX_FLOWS
        assert max(memory_of(process) - was for process, was in zip(parties, memory, strict=True)) < MEMORY
        while trio.proxy.process.told("closed")["reason"] != Reason.LIMIT:
            pass  # the reason stands in the journal, for a person to find
        assert other.ask(LOOPBACK, target.port, b"direct") == b"DIRECT"
        greedy.control.close()
        until(lambda: not flows_to(sink.port), "all flows are closed")
        assert other.ask("home.tuunel", target.port, b"room again") == b"ROOM AGAIN"


_SILENT_SERVER = """
import socket
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.bind(("", 53))
    print("bound", flush=True)
    while True:
        sock.recv(999)
"""


@pytest.fixture
def silent_resolver(house: House) -> Iterator[None]:
    """The house's name server takes every question and answers none."""
    with Running([*house.on_lan_host, sys.executable, "-c", _SILENT_SERVER], clean_environment()) as server:
        assert server.line() == "bound"
        yield


@pytest.mark.usefixtures("silent_resolver")
def test_names_that_never_resolve_block_nobody(house: House) -> None:
    with associated(house.proxy.address) as association:
        for number in range(100):
            association.send(f"name{number}.never.example.home.tuunel", 9, b"anybody?")
        began = time.monotonic()
        assert association.ask(f"{LAN_HOST}.home.tuunel", ECHO_PORT, b"beside them") == b"beside them"
        assert time.monotonic() - began < 3


def test_a_forward_has_room_for_1024_clients_and_the_first_go_on(own_world: World, trio: Trio) -> None:
    with (
        answering(shout) as target,
        own_world.forward(trio.walker, f"0:home.tuunel:{target.port}/udp") as forward,
        connected(forward.port) as first,
        contextlib.ExitStack() as stack,
    ):
        for number in range(MAX_FLOWS + 200):
            client = stack.enter_context(connected(forward.port))
            client.send(b"client %d" % number)
            if number % 50 == 49:
                assert ask(first, b"still here") == b"STILL HERE"
        assert len(target.callers) <= MAX_FLOWS
