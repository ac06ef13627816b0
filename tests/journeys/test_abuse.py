"""Somebody abuses the relay, and a well-behaved pair beside it works on: its latency is told, not judged, for it depends on the machine."""

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench.process import Process, python
from tests.journeys import doors
from tests.journeys.figures import figure
from tests.journeys.leaks import Held
from tests.journeys.targets import Target, echo, hold, pour, read_exactly, serving
from tests.journeys.world import Trio, World, make_trio

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.timeout(900)]

SECONDS = 10.0  #: of each measurement
HALF_DONE = 5000
SLOW = 200
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 17)]
STILL = 1.0  #: seconds without a byte after which all that can be held on the way is held


def latency(trio: Trio, port: int) -> str:
    """New tunnels and round trips of the well-behaved pair for a while: medians and the slowest of a hundred, in milliseconds."""
    opens, trips = [], []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        began = time.perf_counter()
        with doors.socks5(trio.proxy.address, "home.tuunel", port) as opened:
            assert opened.answer.code == 0
            opens.append(time.perf_counter() - began)
            for _ in range(10):
                began = time.perf_counter()
                opened.sock.sendall(b"x" * 64)
                assert read_exactly(opened.sock, 64) == b"x" * 64
                trips.append(time.perf_counter() - began)
    shown = []
    for name, times in (("open", opens), ("round trip", trips)):
        slowest = statistics.quantiles(times, n=100)[98]
        shown.append(f"{name} p50 {statistics.median(times) * 1000:.1f} ms, p99 {slowest * 1000:.1f} ms ({len(times)})")
    return "; ".join(shown)


@contextlib.contextmanager
def half_done_handshakes(trio: Trio) -> Iterator[None]:
    """Five thousand sockets from sixteen addresses, each with the first bytes of an M1; what the relay ends is opened again."""
    over, all_there = threading.Event(), threading.Event()
    socks: dict[int, socket.socket] = {}

    def keep() -> None:
        while not over.is_set():
            for number in range(HALF_DONE):
                if over.is_set():
                    return
                old = socks.get(number)
                if old is not None and not ended(old):
                    continue
                if old is not None:
                    old.close()
                with contextlib.suppress(OSError):
                    fresh = socket.create_connection(("127.0.0.1", trio.relay.port), 2, (f"127.0.1.{1 + number % 16}", 0))
                    socks[number] = fresh
                    fresh.sendall(b"TNL1\x00")
                    fresh.setblocking(False)
            all_there.set()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        assert all_there.wait(60), "not every one of them was tried within a minute"
        yield
    finally:
        over.set()
        keeper.join()
        for sock in socks.values():
            sock.close()


def ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(64)
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def busy(work: Callable[[], None], threads: int) -> Iterator[None]:
    """Do the work again and again in threads."""
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, AssertionError):
                work()

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        over.set()
        for worker in workers:
            worker.join()


def test_a_well_behaved_pair_beside_abuse(own_trio: Trio) -> None:
    def garbage() -> None:
        with socket.create_connection(("127.0.0.1", own_trio.relay.port), 5) as sock:
            sock.sendall(os.urandom(512))
            sock.recv(1)

    guest = own_trio.world.laptop(own_trio.agent.new_invite("--name", "guest"))
    guests = own_trio.world.proxy(guest)
    with serving(echo) as target, serving(pour) as pouring:

        def open_in_a_loop() -> None:
            with doors.socks5(guests.address, "home.tuunel", target.port):
                pass

        figure("alone", latency(own_trio, target.port))
        with half_done_handshakes(own_trio):
            figure(f"beside {HALF_DONE} half-done handshakes", latency(own_trio, target.port))
        with busy(garbage, 4):
            figure("beside garbage from four threads", latency(own_trio, target.port))
        with busy(open_in_a_loop, 8):
            figure("beside one device that opens tunnels in eight loops", latency(own_trio, target.port))
        before = memory(own_trio)
        with contextlib.ExitStack() as stack:
            for _ in range(SLOW):
                stack.enter_context(doors.socks5(guests.address, "home.tuunel", pouring.port))
            figure(f"beside {SLOW} clients that never read", latency(own_trio, target.port))
            assert_bounded("client", before, memory(own_trio))
        figure("afterwards", latency(own_trio, target.port))


@pytest.mark.parametrize(("kind", "what"), [("hello", "M1s that are right"), ("ready", "READY connections of one agent")])
def test_a_well_behaved_pair_beside_a_flood(own_world: World, kind: str, what: str) -> None:
    trio = make_trio(own_world, "--open-enrolment")
    with serving(echo) as target:
        figure("alone", latency(trio, target.port))
        with Process(python("tests.journeys.floods", kind, trio.relay.new_link(), *ADDRESSES)) as flood:
            assert flood.answer() == {"under_way": True}
            figure(f"beside a flood of {what}", latency(trio, target.port))
            flood.end_of_orders()
            counts = flood.answer()
        figure(f"flood of {what}, in about {SECONDS:.0f} s", f"{counts['served']} served, {counts['refused']} refused")
        assert counts["served"] > 100
        figure("afterwards", latency(trio, target.port))
        assert "Traceback" not in trio.relay.process.errors()


def test_memory_for_each_tunnel_whose_target_never_reads_is_bounded(own_trio: Trio) -> None:
    guest = own_trio.world.laptop(own_trio.agent.new_invite("--name", "guest"))
    guests = own_trio.world.proxy(guest)

    def memory_of_all() -> dict[str, int]:
        return {**memory(own_trio), "proxy": Held.by(guests.process, guest).memory}

    with serving(echo) as target, serving(hold) as deaf, contextlib.ExitStack() as stack:
        with doors.socks5(guests.address, "home.tuunel", target.port):  # what the first tunnel needs is not counted
            before = memory_of_all()
        opened = [stack.enter_context(doors.socks5(guests.address, "home.tuunel", deaf.port)) for _ in range(SLOW)]
        sent = fill([each.sock for each in opened])
        figure(f"taken on the way to {SLOW} targets that never read", f"{sent / SLOW / 1024:.0f} KiB each")
        figure(f"beside {SLOW} targets that never read", latency(own_trio, target.port))
        assert_bounded("target", before, memory_of_all())


def fill(socks: list[socket.socket]) -> int:
    """Send into each until nothing more is taken: how many bytes went in."""
    block, sent = bytes(65536), 0
    for sock in socks:
        sock.setblocking(False)
    moved = time.monotonic()
    while time.monotonic() - moved < STILL:
        for sock in socks:
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(block)
                moved = time.monotonic()
        time.sleep(0.01)
    return sent


def memory(trio: Trio) -> dict[str, int]:
    """KiB that the relay and the agent hold."""
    roles = {"relay": (trio.relay.process, trio.relay.machine), "agent": (trio.agent.process, trio.agent.machine)}
    return {role: Held.by(process, machine).memory for role, (process, machine) in roles.items()}


def assert_bounded(who: str, before: dict[str, int], after: dict[str, int]) -> None:
    for role, was in before.items():
        per_tunnel = (after[role] - was) / SLOW
        figure(f"memory of the {role} for each tunnel whose {who} never reads", f"{per_tunnel:.0f} KiB")
        assert per_tunnel < 600, role  # one record of 256 KiB each way, and what Python spends on a tunnel


@pytest.mark.timeout(1200)
def test_memory_stays_flat_over_many_tunnels(own_trio: Trio) -> None:
    roles = {"relay": own_trio.relay.process, "agent": own_trio.agent.process, "proxy": own_trio.proxy.process}
    machines = {"relay": own_trio.relay.machine, "agent": own_trio.agent.machine, "proxy": own_trio.laptop}
    opened = 0

    def echo_and_close(sock: socket.socket, target: Target) -> None:
        with sock:  # or this process runs out of descriptors before the roles do
            echo(sock, target)

    with serving(echo_and_close) as target:

        def some(seconds: float) -> None:
            nonlocal opened
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with doors.socks5(own_trio.proxy.address, "home.tuunel", target.port) as one:
                    assert one.answer.code == 0
                    one.sock.sendall(b"x")
                    assert read_exactly(one.sock, 1) == b"x"
                opened += 1

        some(30)
        before = {role: Held.by(process, machines[role]) for role, process in roles.items()}
        some(300)
        after = {role: Held.by(process, machines[role]) for role, process in roles.items()}
    figure("tunnels opened one after the other, in 330 s", opened)
    for role in roles:
        figure(f"{role} before and after", f"{before[role].shown()}; {after[role].shown()}")
        assert after[role].memory < before[role].memory + 10_000, role
