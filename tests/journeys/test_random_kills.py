"""Random transfers while relay, agent and proxy are killed at random: every byte is right, every end is the whole or a reset."""

import os
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.journeys import doors
from tests.journeys.figures import figure
from tests.journeys.targets import Target, read_exactly, serving
from tests.journeys.world import Proxy, Trio, port_of

pytestmark = pytest.mark.real

LARGEST = 4_000_000  #: bytes of one transfer
CHUNK = 65536


def content(seed: int, length: int) -> bytes:
    """The bytes of a transfer: anybody who knows its seed can check them."""
    return random.Random(seed).randbytes(length)


@dataclass
class Ends:
    """How transfers ended, for each side and direction: "whole", "reset", or what must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, wanted: bytes, got: bytes, ended: str) -> None:
        with self.lock:
            if got != wanted[: len(got)]:
                self.wrong.append(f"{what}: a wrong byte")
            elif ended == "end" and len(got) != len(wanted):
                self.wrong.append(f"{what}: ended cleanly after {len(got)} of {len(wanted)} bytes")
            else:
                self.counts[f"{what} {'whole' if ended == 'end' else 'reset'}"] += 1


def receive(sock: socket.socket) -> tuple[bytes, str]:
    got = bytearray()
    try:
        while chunk := sock.recv(CHUNK):
            got += chunk
    except ConnectionResetError:
        return bytes(got), "reset"
    return bytes(got), "end"


def both_ways(sock: socket.socket, out: bytes) -> tuple[bytes, str]:
    """Send and end one direction, while the other is read to its end. The kernel tells a reset once: to whom asks first."""
    failed = threading.Event()

    def send() -> None:
        try:
            sock.sendall(out)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            failed.set()

    sender = threading.Thread(target=send)
    sender.start()
    got, ended = receive(sock)
    if ended == "reset":
        sock.close()
    sender.join()
    return got, "reset" if failed.is_set() else ended


class Transfers:
    """Runs transfers through a trio until told to stop, some at a time."""

    def __init__(self, trio: Trio, seed: int) -> None:
        self.trio = trio
        self.ends = Ends()
        self.over = threading.Event()
        self.refused = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def serve(self, sock: socket.socket, _target: Target) -> None:
        """The target's side: what it gets and gives is said in the first 16 bytes."""
        seed, up, down = (int.from_bytes(read_exactly(sock, size)) for size in (8, 4, 4))
        got, ended = both_ways(sock, content(seed + 1, down))
        self.ends.note("target", content(seed, up), got, ended)

    def work(self, port: int) -> None:
        while not self.over.is_set():
            with self._lock:
                seed, up, down = self._random.getrandbits(60), self._random.randrange(LARGEST), self._random.randrange(LARGEST)
            try:
                opened = doors.socks5(self.trio.proxy.address, "home.tuunel", port)
            except (OSError, AssertionError):
                self.refused += 1  # the proxy itself is away
                time.sleep(0.05)
                continue
            with opened:
                if opened.answer.code:
                    self.refused += 1
                    time.sleep(0.05)
                    continue
                head = seed.to_bytes(8) + up.to_bytes(4) + down.to_bytes(4)
                got, ended = both_ways(opened.sock, head + content(seed, up))
                self.ends.note("app", content(seed + 1, down), got, ended)


def kill_one(trio: Trio, who: str) -> None:
    """Kill a role and start it again where it was."""
    if who == "relay":
        trio.relay.process.kill()
        trio.relay = trio.world.relay(trio.relay.machine, port=trio.relay.port)
    elif who == "agent":
        trio.agent.process.kill()
        trio.agent = trio.world.agent(None, machine=trio.agent.machine)
    else:
        port = trio.proxy.port
        trio.proxy.process.kill()
        process = trio.world.watch(trio.laptop.start("proxy", "--listen", f"127.0.0.1:{port}"))
        trio.proxy = Proxy(process, port_of(process.ready()["listen"]))
        assert trio.proxy.port == port


@pytest.mark.parametrize(
    ("kills", "pause"), [(4, 1.0), pytest.param(150, 3.0, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])], ids=["short", "soak"]
)
def test_every_byte_is_right_and_every_end_is_whole_or_a_reset(own_trio: Trio, kills: int, pause: float) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
    figure("seed", seed)
    chance = random.Random(seed)
    transfers = Transfers(own_trio, seed)
    with serving(transfers.serve) as target, ThreadPoolExecutor() as threads:
        workers: list[Future[None]] = [threads.submit(transfers.work, target.port) for _ in range(4)]
        try:
            for number in range(kills):
                time.sleep(chance.random() * pause)  # how far the transfers are when it happens
                kill_one(own_trio, chance.choice(["relay", "agent", "proxy"]) if number > 2 else ["relay", "agent", "proxy"][number])
        finally:
            transfers.over.set()
            for worker in workers:
                worker.result(60)
    figure(f"ends of transfers with {kills} kills", dict(sorted(transfers.ends.counts.items())))
    assert not transfers.ends.wrong
    assert transfers.ends.counts["app reset"]
    assert transfers.ends.counts["app whole"]
