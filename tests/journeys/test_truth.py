"""Every failure has its own answer, and it is the same truth on every interface: SOCKS5 reply, SOCKS4 code, HTTP status with
Proxy-Status, and the exit code of `nc` with a running proxy and by itself."""

import concurrent.futures
import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.journeys import doors
from tests.journeys.house import NO_ROUTE, UNREACHABLE_HOST, House
from tests.journeys.targets import closed_port, echo, full_backlog, read_exactly, serving
from tests.journeys.verdicts import Situation, ask_http, ask_http_connect, ask_nc, assert_everywhere, on, socks_codes
from tests.journeys.world import LOOPBACK, Machine, Proxy, Relay, Trio, World
from tuunel.errors import ANSWERS, Reason, Speaker
from tuunel.proxystatus import parse_proxy_status

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


# --- the target ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["home.tuunel", "127.0.0.2.home.tuunel", "0--1.ip6.home.tuunel"])
def test_refused(trio: Trio, host: str) -> None:
    assert_everywhere(on(trio, host, closed_port()), Reason.CONNECTION_REFUSED, Speaker.AGENT)


def test_unresolvable(trio: Trio) -> None:
    assert_everywhere(on(trio, "no-such-host.invalid.home.tuunel", 80), Reason.NAME_NOT_RESOLVED, Speaker.AGENT)


def test_a_target_that_never_answers(trio: Trio) -> None:
    with full_backlog() as (port, _):
        assert_everywhere(on(trio, "home.tuunel", port), Reason.CONNECT_TIMEOUT, Speaker.AGENT)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (UNREACHABLE_HOST, Reason.HOST_UNREACHABLE),
        (NO_ROUTE, Reason.NET_UNREACHABLE),
        ("nowhere.lan", Reason.NAME_NOT_RESOLVED),
    ],
)
def test_what_the_agents_network_says(house: House, host: str, reason: Reason) -> None:
    assert_everywhere(Situation(house.proxy, house.laptop, house.walker, f"{host}.home.tuunel", 80), reason, Speaker.AGENT)


# --- not allowed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["169.254.169.254.home.tuunel", "0--ffff-a9fe-a9fe.ip6.home.tuunel", "0.0.0.0.home.tuunel"])
def test_never_allowed_unless_named(trio: Trio, host: str) -> None:
    assert_everywhere(on(trio, host, 80), Reason.POLICY_DENIED, Speaker.AGENT)


def test_the_relay_is_no_target(trio: Trio) -> None:
    assert_everywhere(on(trio, f"{LOOPBACK}.home.tuunel", trio.relay.port), Reason.POLICY_DENIED, Speaker.AGENT)


def test_the_internet_is_not_in_the_default_grant(trio: Trio) -> None:
    assert_everywhere(on(trio, "203.0.113.1.home.tuunel", 80), Reason.POLICY_DENIED, Speaker.AGENT)


def paired_twice(trio: Trio, *options: str) -> Iterator[tuple[Machine, Proxy, Machine]]:
    """Two machines paired by invites made with `options`, a proxy on the first."""
    laptop, walker = (trio.world.laptop(trio.agent.new_invite(*options)) for _ in range(2))
    proxy = trio.world.proxy(laptop)
    yield laptop, proxy, walker
    proxy.process.stop()


@pytest.fixture
def guests(trio: Trio) -> Iterator[tuple[Machine, Proxy, Machine, int]]:
    """Two machines that may reach one port only."""
    with serving(echo) as allowed:
        for laptop, proxy, walker in paired_twice(trio, "--target", f"{LOOPBACK}:{allowed.port}", "--name", "guest"):
            yield laptop, proxy, walker, allowed.port


def test_denied_by_policy_even_where_nothing_listens(guests: tuple[Machine, Proxy, Machine, int]) -> None:
    laptop, proxy, walker, allowed = guests
    for machine in (laptop, walker):
        assert machine.nc("home", allowed, stdin=b"in").stdout == b"in"
    assert_everywhere(Situation(proxy, laptop, walker, "home.tuunel", closed_port()), Reason.POLICY_DENIED, Speaker.AGENT)


def test_not_paired_and_at_no_relay(own_world: World, trio: Trio) -> None:
    laptop, walker = own_world.machine(), own_world.machine()
    situation = Situation(own_world.proxy(laptop), laptop, walker, f"{trio.agent.device_id}.tuunel", 80)
    assert_everywhere(situation, Reason.NOT_PAIRED, Speaker.LOCAL)


def strangers(trio: Trio, world: World, device_id: str) -> tuple[Machine, Proxy, Machine]:
    """Two machines that are enrolled at the trio's relay and know `device_id` as `home`, a proxy on the first."""
    laptop, walker = world.machine(), world.machine()
    for machine in (laptop, walker):
        machine.tuunel("devices", "add", device_id, "--relay", trio.relay.new_link(), "--name", "home")
    return laptop, world.proxy(laptop), walker


def test_a_stranger_learns_nothing_not_even_presence(own_world: World, trio: Trio) -> None:
    laptop, proxy, walker = strangers(trio, own_world, trio.agent.device_id)
    assert_everywhere(Situation(proxy, laptop, walker, "home.tuunel", 80), Reason.PEER_UNAVAILABLE, Speaker.RELAY)


def test_a_revoked_machine_is_told_so_by_the_agent(own_world: World, trio: Trio) -> None:
    """The relay lets a revoked device ask once a minute, so each interface is asked on a machine of its own."""
    machines = [own_world.machine() for _ in range(4)]
    names = [f"leaver{number}" for number in range(4)]

    def enrol_and_pair(machine: Machine, name: str) -> None:
        """By the operator's link first: a machine that only an invite has brought in is no longer known to the relay once revoked."""
        machine.tuunel("devices", "add", trio.agent.device_id, "--relay", trio.relay.new_link(), "--name", "early")
        machine.ask("pair", trio.agent.new_invite("--name", name), "--name", "home")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(enrol_and_pair, machines, names))
        proxies = [own_world.proxy(machine) for machine in machines[:3]]
        list(pool.map(lambda name: trio.agent.machine.ask("revoke", name), names))
    wanted = Reason.POLICY_REVOKED, Speaker.AGENT
    connect = ask_http_connect(proxies[0], "home.tuunel", 80)
    assert (connect.reason, connect.speaker) == wanted
    with doors.socks5(proxies[1].address, "home.tuunel", 80) as five:
        assert five.answer.code == ANSWERS[Reason.POLICY_REVOKED].socks
    through = ask_nc(machines[2], "home.tuunel", 80)
    assert (through.reason, through.speaker) == wanted
    alone = ask_nc(machines[3], "home.tuunel", 80)
    assert (alone.reason, alone.speaker) == wanted


def test_a_revoked_machine_that_only_the_invite_brought_in_is_no_longer_known_to_the_relay(own_world: World, trio: Trio) -> None:
    laptop, walker = (own_world.laptop(trio.agent.new_invite("--name", name)) for name in ("quitter1", "quitter2"))
    situation = Situation(own_world.proxy(laptop), laptop, walker, "home.tuunel", 80)
    for name in ("quitter1", "quitter2"):
        trio.agent.machine.ask("revoke", name)
    assert_everywhere(situation, Reason.DEVICE_UNKNOWN, Speaker.RELAY)


def test_a_used_invite_pairs_nobody_else(own_world: World, trio: Trio) -> None:
    invite = trio.agent.new_invite()
    own_world.laptop(invite)
    late = own_world.machine()
    done = late.tuunel("pair", invite, check=False)
    assert done.returncode in {ANSWERS[Reason.INVITE_INVALID].exit, ANSWERS[Reason.ENROLMENT_REQUIRED].exit}, done.stderr


# --- the way ------------------------------------------------------------------------------------------------------------------


def test_the_device_is_offline(own_trio: Trio) -> None:
    situation = on(own_trio, "home.tuunel", 80)
    own_trio.agent.process.stop()
    assert_everywhere(situation, Reason.PEER_UNAVAILABLE, Speaker.RELAY)


class TestRelayOutOfReach:
    """Machines that know a device at a relay of their own, which then goes away."""

    @pytest.fixture
    def gone(self, own_world: World, trio: Trio) -> tuple[Relay, Situation]:
        relay = own_world.relay()
        assert relay.link
        laptop, walker = own_world.machine(), own_world.machine()
        laptop.tuunel("devices", "add", trio.agent.device_id, "--relay", relay.link, "--name", "home")
        walker.tuunel("devices", "add", trio.agent.device_id, "--relay", relay.new_link(), "--name", "home")
        relay.process.stop()
        return relay, Situation(own_world.proxy(laptop), laptop, walker, "home.tuunel", 80)

    def test_unreachable(self, gone: tuple[Relay, Situation]) -> None:
        assert_everywhere(gone[1], Reason.RELAY_UNREACHABLE, Speaker.LOCAL)

    def test_not_the_pinned_one(self, gone: tuple[Relay, Situation], own_world: World) -> None:
        other = own_world.relay(port=gone[0].port)
        assert_everywhere(gone[1], Reason.RELAY_UNTRUSTED, Speaker.LOCAL)
        assert other.machine.ask("relay", "devices")["devices"] == []

    def test_no_relay_at_all(self, gone: tuple[Relay, Situation]) -> None:
        """Another kind of server on the relay's port."""
        with contextlib.closing(socket.create_server((LOOPBACK, gone[0].port))):
            assert_everywhere(gone[1], Reason.RELAY_UNREACHABLE, Speaker.LOCAL)


# --- this machine -------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_answers_with_the_nearest(trio: Trio) -> None:
    assert_everywhere(on(trio, "hone.tuunel", 80), Reason.UNKNOWN_NAME, Speaker.LOCAL, saying="home")


@pytest.mark.parametrize("host", ["tuunel", "zz--1.ip6.home.tuunel", "a..home.tuunel"])
def test_a_malformed_name_never_goes_elsewhere(trio: Trio, host: str) -> None:
    verdict = ask_http_connect(trio.proxy, host, 80)
    assert (verdict.reason, verdict.speaker) == (Reason.UNKNOWN_NAME, Speaker.LOCAL)
    assert socks_codes(trio.proxy, host, 80) == (ANSWERS[Reason.UNKNOWN_NAME].socks, 0x5B)


def test_a_mistyped_device_id_is_told_as_a_typo(trio: Trio) -> None:
    last = trio.agent.device_id[-1]
    typo = trio.agent.device_id[:-1] + ("a" if last != "a" else "b")
    verdict = ask_http_connect(trio.proxy, f"{typo}.tuunel", 80)
    assert verdict.reason is Reason.UNKNOWN_NAME


def test_what_the_settings_refuse(own_world: World, trio: Trio) -> None:
    proxy = own_world.proxy(own_world.laptop(trio.agent.new_invite()), "--other", "refuse")
    with serving(echo) as target:
        for ask in (ask_http_connect, ask_http):
            verdict = ask(proxy, LOOPBACK, target.port)
            assert (verdict.reason, verdict.speaker) == (Reason.REFUSED_BY_SETTING, Speaker.LOCAL)
        assert socks_codes(proxy, LOOPBACK, target.port) == (2, 0x5B)
        assert not target.connections


def test_everything_else_may_leave_through_a_device(own_world: World, trio: Trio) -> None:
    proxy = own_world.proxy(own_world.laptop(trio.agent.new_invite()), "--other", "via:home")
    with serving(echo) as target, doors.socks5(proxy.address, LOOPBACK, target.port) as opened:
        opened.sock.sendall(b"via home")
        assert read_exactly(opened.sock, 8) == b"via home"
    assert ask_http_connect(proxy, LOOPBACK, closed_port()).speaker is Speaker.AGENT


def test_direct_failures_are_told_apart_too(trio: Trio) -> None:
    for ask in (ask_http_connect, ask_http):
        verdict = ask(trio.proxy, LOOPBACK, closed_port())
        assert (verdict.reason, verdict.speaker) == (Reason.CONNECTION_REFUSED, Speaker.LOCAL)
    assert socks_codes(trio.proxy, LOOPBACK, closed_port()) == (5, 0x5B)
    verdict = ask_http_connect(trio.proxy, "no-such-host.invalid", 80)
    assert (verdict.reason, verdict.speaker) == (Reason.NAME_NOT_RESOLVED, Speaker.LOCAL)


def test_the_proxy_never_dials_itself(trio: Trio) -> None:
    for host in (LOOPBACK, "localhost", "0.0.0.0", "::ffff:127.0.0.1"):
        assert ask_http_connect(trio.proxy, host, trio.proxy.port).reason in {Reason.REFUSED_BY_SETTING, Reason.POLICY_DENIED}


@pytest.mark.parametrize("command", [2, 9])
def test_an_unsupported_command(trio: Trio, command: int) -> None:
    with doors.socks5(trio.proxy.address, "home.tuunel", 80, command=command) as five:
        assert five.answer.code == 7
        assert five.sock.recv(1) == b""
    with doors.socks4a(trio.proxy.address, "home.tuunel", 80, command=command) as four:
        assert four.answer.code == 0x5B


def test_an_unknown_address_type(trio: Trio) -> None:
    with contextlib.closing(doors.connect(trio.proxy.address)) as sock:
        sock.sendall(b"\x05\x01\x00")
        assert read_exactly(sock, 2) == b"\x05\x00"
        sock.sendall(b"\x05\x01\x00\x09" + bytes(6))
        assert doors.read_socks5_reply(sock).code == 8
        assert sock.recv(1) == b""


@pytest.fixture(scope="module")
def guarded(trio: Trio) -> Iterator[Proxy]:
    machine = trio.world.laptop(trio.agent.new_invite())
    password = machine.home / "proxy-password"
    password.write_text("right\n")
    password.chmod(0o600)
    proxy = trio.world.proxy(machine, "--auth", "ann")
    yield proxy
    proxy.process.stop()


class TestBadCredentials:
    """A proxy with --auth, on each door."""

    @pytest.mark.parametrize("wrong", [b"\x01\x03ann\x05wrong", b"\x01\x03bob\x05right", b"\x01\x03ann\x06rightx"])
    def test_socks5_says_so_and_closes(self, guarded: Proxy, wrong: bytes) -> None:
        with contextlib.closing(doors.connect(guarded.address)) as sock:
            sock.sendall(b"\x05\x02\x00\x02")
            assert read_exactly(sock, 2) == b"\x05\x02"
            sock.sendall(wrong)
            version, status = read_exactly(sock, 2)
            assert version == 1
            assert status != 0
            assert sock.recv(1) == b""

    def test_socks5_without_the_method_is_told_that_none_will_do(self, guarded: Proxy) -> None:
        with contextlib.closing(doors.connect(guarded.address)) as sock:
            sock.sendall(b"\x05\x01\x00")
            assert read_exactly(sock, 2) == b"\x05\xff"
            assert sock.recv(1) == b""

    @pytest.mark.parametrize("credentials", ["", "Proxy-Authorization: Basic YW5uOndyb25n\r\n", "Proxy-Authorization: Basic !!\r\n"])
    def test_http_says_407(self, guarded: Proxy, credentials: str) -> None:
        for opened in (
            doors.http_connect(guarded.address, "home.tuunel", 80, extra=credentials),
            doors.http_get(guarded.address, "home.tuunel", 80, extra=credentials),
        ):
            with opened:
                assert opened.answer.code == 407
                assert opened.answer.headers["proxy-authenticate"].lower().startswith("basic")
                parsed = parse_proxy_status(opened.answer.headers["proxy-status"])
                assert parsed
                assert parsed[1] is Reason.BAD_CREDENTIALS

    def test_beyond_loopback_without_auth_is_refused_at_start(self, own_world: World) -> None:
        done = own_world.machine().tuunel("proxy", "--listen", "0.0.0.0:0", check=False)
        assert done.returncode == 2
        assert b"--auth" in done.stderr
