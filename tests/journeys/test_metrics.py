"""A monitor's view of a world in use: real curl, promtool's judgement, and nobody behind the agent."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.journeys import doors
from tests.journeys.peers import program
from tests.journeys.processes import Json, Running, run, until
from tests.journeys.targets import echo, read_exactly, serving
from tests.journeys.verdicts import ask_http_connect
from tests.journeys.world import LOOPBACK, Machine, Proxy, World, port_of
from tuunel.errors import Reason, Speaker
from tuunel.metrics import KINDS, PREFIX

pytestmark = pytest.mark.real
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Watched:
    """A trio whose roles have metrics; `pages` are their addresses by role."""

    world: World
    processes: dict[str, Running]
    proxy: Proxy
    laptop: Machine
    pages: dict[str, str]

    def text(self, role: str) -> str:
        return run([program("curl"), "-sSf", "--noproxy", "*", f"http://{self.pages[role]}/metrics"]).stdout.decode()

    def samples(self, role: str) -> Samples:
        families = text_string_to_metric_families(self.text(role))
        return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}

    def value(self, role: str, name: str, **labels: str) -> float:
        return self.samples(role).get((PREFIX + name, frozenset(labels.items())), 0)


def until_told(process: Running, event: str, wanted: Callable[[Json], bool]) -> Json:
    """The next event of this kind that is the wanted one."""
    while not wanted(said := process.told(event)):
        pass
    return said


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    world = World()
    try:
        metrics = ("--metrics", "0")  # both loopbacks, any port
        machines = [world.machine(), world.machine()]
        relay = world.watch(machines[0].start("relay", "serve", "--listen", f"{LOOPBACK}:0", *metrics))
        relay_ready = relay.ready()
        agent = world.watch(machines[1].start("agent", relay_ready["link"], *metrics))
        agent_ready = agent.ready()
        laptop = world.laptop(agent_ready["invite"])
        proxy = world.watch(laptop.start("proxy", "--listen", f"{LOOPBACK}:0", *metrics))
        proxy_ready = proxy.ready()
        pages = {ready["role"]: ready["metrics"] for ready in (relay_ready, agent_ready, proxy_ready)}
        processes = {"relay": relay, "agent": agent, "proxy": proxy}
        yield Watched(world, processes, Proxy(proxy, port_of(proxy_ready["listen"])), laptop, pages)
    finally:
        world.close()


@pytest.mark.parametrize("role", ["relay", "agent", "proxy"])
def test_prometheus_own_tool_finds_no_fault(watched: Watched, role: str) -> None:
    """Where it is installed: its Debian package starts a server, so the tests do not ask for it. The client library reads each page."""
    promtool = shutil.which("promtool")
    if promtool:
        run([promtool, "check", "metrics"], stdin=watched.text(role).encode())
    assert watched.samples(role)


def test_every_role_has_the_metrics_of_the_table(watched: Watched) -> None:
    for role in ("relay", "agent", "proxy"):
        named = set(re.findall(rf"^# TYPE {PREFIX}(\S+)", watched.text(role), re.MULTILINE))
        assert named == {kind.name for kind in KINDS if role in kind.roles}


def test_what_is_carried_shows_at_all_three(watched: Watched) -> None:
    with serving(echo) as target, doors.socks5(watched.proxy.address, "home.tuunel", target.port) as opened:
        opened.sock.sendall(b"x" * 5000)
        read_exactly(opened.sock, 5000)
        assert watched.value("proxy", "connections", state="open", door="socks5") == 1
        assert watched.value("agent", "connections", state="open", door="tunnel") == 1
        assert watched.value("agent", "agent_clients") == 1
        assert watched.value("relay", "relay_devices_enrolled") == 2
        assert watched.value("relay", "relay_agents_online") == 1
        assert watched.value("relay", "relay_ready_parked") >= 1
        relay = next(iter({dict(labels)["relay"] for name, labels in watched.samples("proxy") if name == f"{PREFIX}relay_online"}))
        assert watched.value("proxy", "relay_online", relay=relay) == 1
        assert 0 < watched.value("proxy", "relay_rtt_seconds", relay=relay) < 5
        for role in ("proxy", "agent", "relay"):
            until(lambda role=role: watched.value(role, "bytes_total", direction="up") >= 5000, f"the {role} has counted", interval=0.1)


def test_failures_are_counted_by_their_reason(watched: Watched) -> None:
    refused = ask_http_connect(watched.proxy, "home.tuunel", 1)
    assert refused.reason is Reason.CONNECTION_REFUSED
    assert watched.value("proxy", "connections_closed_total", door="http-connect", reason="CONNECTION_REFUSED") == 1
    assert watched.value("agent", "connections_closed_total", door="tunnel", reason="CONNECTION_REFUSED") == 1
    before = watched.value("relay", "relay_handshakes_refused_total", cause="broken")
    relay_port = next(dict(labels)["relay"] for name, labels in watched.samples("agent") if name == f"{PREFIX}relay_online")
    run([program("curl"), "-s", "--max-time", "3", f"http://{relay_port}/"], check=False)  # a scanner
    assert watched.value("relay", "relay_handshakes_refused_total", cause="broken") == before + 1


def test_a_guest_of_the_agent_never_reads_the_agents_own(watched: Watched) -> None:
    verdict = ask_http_connect(watched.proxy, "home.tuunel", port_of(watched.pages["agent"]))
    assert (verdict.reason, verdict.speaker) == (Reason.POLICY_DENIED, Speaker.AGENT)


def test_one_tunnel_id_finds_a_connection_in_the_logs_of_all_three(watched: Watched) -> None:
    """What an operator does with three logs: look for the id that one of them names."""
    with serving(echo) as target, doors.socks5(watched.proxy.address, "home.tuunel", target.port) as opened:
        opened.sock.sendall(b"once")
        assert read_exactly(opened.sock, 4) == b"once"
        opened_line = until_told(watched.processes["proxy"], "opened", lambda line: line["target"] == f"home.tuunel:{target.port}")
        changed = until_told(watched.processes["proxy"], "changed", lambda line: line["id"] == opened_line["id"])
    tunnel = changed["tunnel"]
    assert tunnel
    base = tunnel.partition(".")[0]  # the relay sees one pipe, however often it is used
    closed = until_told(watched.processes["proxy"], "closed", lambda line: line.get("tunnel") == tunnel)
    assert (closed["reason"], closed["up"], closed["down"]) == ("done", 4, 4)
    at_agent = until_told(watched.processes["agent"], "closed", lambda line: line.get("tunnel") == tunnel)
    assert (at_agent["up"], at_agent["down"]) == (4, 4)
    until_told(watched.processes["relay"], "changed", lambda line: line.get("tunnel") == base)
