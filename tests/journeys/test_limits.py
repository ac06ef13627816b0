"""What a relay's operator allows a device holds, is told to whoever meets it, and costs nobody else anything."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from random import Random

import pytest

from tests.journeys import doors
from tests.journeys.processes import Json, until
from tests.journeys.targets import Target, echo, read_exactly, read_to_end, serving
from tests.journeys.verdicts import Verdict, http_verdict
from tests.journeys.world import Machine, Proxy, Trio, World
from tuunel.errors import Reason, Speaker
from tuunel.relay.limiter import RATE_BURST

pytestmark = pytest.mark.real

MANY = 200  #: more than any limit here: a test that opens so many without a refusal has found a fault
RATE = 1_000_000


def limited_trio(world: World, *limits: str) -> Trio:
    relay = world.relay(options=[part for limit in limits for part in ("--limit", limit)])
    agent = world.agent(relay.link)
    laptop = world.laptop(str(agent.invite))
    return Trio(world, relay, agent, laptop, world.proxy(laptop))


def use_of(trio: Trio, machine: Machine) -> Json:
    """What `tuunel relay devices` says of a machine."""
    number = machine.ask("devices")["device_id"]
    used: Json = next(each["use"] for each in trio.relay.machine.ask("relay", "devices")["devices"] if each["device_id"] == number)
    return used


def works(sock: socket.socket) -> bool:
    sock.sendall(b"hello")
    return read_exactly(sock, 5) == b"hello"


@contextlib.contextmanager
def as_many_as_it_may(proxy: Proxy, port: int) -> Iterator[tuple[list[socket.socket], Verdict]]:
    """Open tunnels and keep them, until the proxy is refused one: the tunnels, and what the refusal says."""
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        for _ in range(MANY):
            opened = stack.enter_context(doors.http_connect(proxy.address, "home.tuunel", port))
            if opened.answer.code != 200:
                yield held, http_verdict(opened)
                return
            held.append(opened.sock)
        pytest.fail(f"{MANY} tunnels, and no limit was met")


def test_a_device_that_opens_too_fast_is_refused_with_the_reason_and_a_pair_beside_it_works_on(own_world: World) -> None:
    trio = limited_trio(own_world, "device-opens=1/s")
    quiet = own_world.laptop(trio.agent.new_invite())
    beside = own_world.proxy(quiet)
    with serving(echo) as target, doors.socks5(beside.address, "home.tuunel", target.port) as old:
        with as_many_as_it_may(trio.proxy, target.port) as (held, refused):
            assert (refused.reason, refused.speaker) == (Reason.RATE_LIMITED, Speaker.RELAY)
            assert "this device may open 1 tunnels a second (limit device-opens)" in refused.said
            assert all(works(each) for each in held)
            assert works(old.sock)
            with doors.socks5(beside.address, "home.tuunel", target.port) as fresh:
                assert works(fresh.sock)
        fast, well_behaved = use_of(trio, trio.laptop), use_of(trio, quiet)
        assert fast["refused"] > 0
        assert (well_behaved["refused"], well_behaved["at_limit"]) == (0, [])
        while "refused a tunnel" not in (told := trio.relay.process.told("notice")["text"]):
            pass  # a relay says at its start how many connections it has room for
        assert trio.laptop.ask("devices")["device_id"] in told

        def again() -> bool:
            with doors.socks5(trio.proxy.address, "home.tuunel", target.port) as opened:
                return opened.answer.code == 0 and works(opened.sock)

        until(again, "it may open again when some time has passed", 30, 0.5)


def test_a_limit_that_is_set_while_tunnels_live_counts_at_once_and_ends_none(own_trio: Trio) -> None:
    relay, proxy = own_trio.relay, own_trio.proxy
    with serving(echo) as target, contextlib.ExitStack() as stack:
        before = [stack.enter_context(doors.socks5(proxy.address, "home.tuunel", target.port)).sock for _ in range(6)]
        (relay.machine.home / "config.toml").write_text('[relay]\nlimit = ["device-tunnels=3"]\n')
        relay.process.signal(signal.SIGHUP)
        until(lambda: relay.machine.ask("relay", "devices")["limits"]["device"]["tunnels"] == 3, "the new limit is read")
        with as_many_as_it_may(proxy, target.port) as (_, refused):  # the tunnels that were ready are used up first
            assert (refused.reason, refused.speaker) == (Reason.QUOTA, Speaker.RELAY)
            assert "this device may have 3 tunnels (limit device-tunnels)" in refused.said
            assert all(works(each) for each in before)
            used = use_of(own_trio, own_trio.laptop)
            assert used["tunnels"] >= 6
            assert used["at_limit"] == ["tunnels"]
            assert "!" in relay.machine.tuunel("relay", "devices").stdout.decode()
            assert "is at its limit: tunnels" in relay.machine.tuunel("status").stdout.decode()
        (relay.machine.home / "config.toml").write_text("")
        relay.process.signal(signal.SIGHUP)

        def again() -> bool:
            with doors.socks5(proxy.address, "home.tuunel", target.port) as opened:
                return opened.answer.code == 0 and works(opened.sock)

        until(again, "there is no limit any more", 30, 0.2)


def test_a_rate_slows_down_and_loses_nothing(own_world: World) -> None:
    """Both directions at once, in pieces of random sizes, each ended by itself: all of it arrives, and no faster than it may."""
    trio = limited_trio(own_world, f"device-rate={RATE}")
    random = Random(7)
    up, down = random.randbytes(RATE), random.randbytes(RATE)

    def answer(sock: socket.socket, target: Target) -> None:
        sender = threading.Thread(target=send_in_pieces, args=(sock, down, Random(8)))
        sender.start()
        target.note(read_to_end(sock))
        sender.join()

    with serving(answer) as target, doors.socks5(trio.proxy.address, "home.tuunel", target.port) as opened:
        began = time.monotonic()
        sender = threading.Thread(target=send_in_pieces, args=(opened.sock, up, Random(9)))
        sender.start()
        assert read_to_end(opened.sock) == down
        sender.join()
        assert target.noted() == [up]
        # a slow machine takes longer, and none may take less: what the bucket held, and what has come since
        assert len(up) + len(down) <= RATE * (RATE_BURST + time.monotonic() - began)


def send_in_pieces(sock: socket.socket, data: bytes, random: Random) -> None:
    at = 0
    while at < len(data):
        size = random.choice((1, 100, 5_000, 70_000, 600_000))
        sock.sendall(data[at : at + size])
        at += size
    sock.shutdown(socket.SHUT_WR)
