"""A house with its own network: the agent lives in a network namespace, a LAN host in another one behind it.

    here (test, relay, laptop)  10.213.77.1 -- 10.213.77.2  house (agent)  10.213.78.1 -- 10.213.78.2  LAN host

Nothing but the agent can reach the LAN host. The house resolves names by its own hosts file, has no default route, and has
one network that its router calls unreachable.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.journeys.peers import network_namespaces
from tests.journeys.processes import Running, clean_environment, run
from tests.journeys.world import Agent, Machine, Proxy, Relay, World, world

HERE, HOUSE, ROUTER, LAN_HOST = "10.213.77.1", "10.213.77.2", "10.213.78.1", "10.213.78.2"
UNREACHABLE_HOST = "10.213.79.9"  # inside the network that has an `unreachable` route
NO_ROUTE = "10.99.99.99"
HOSTS = f"127.0.0.1 localhost\n::1 localhost\n{HERE} app.lab.example\n{LAN_HOST} printer printer.lan\n"

LAN_PAGE = b"the LAN host's page\n"
_LAN_SERVER = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"the LAN host's page\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Caller", self.client_address[0])
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer((sys.argv[1], 8080), Page)
print("ready", flush=True)
server.serve_forever()
"""


@dataclass
class House:
    """The world of the house. Its device is called `home` on `laptop`, whose proxy routes *.lab.example there, and on `walker`."""

    relay: Relay
    agent: Agent
    laptop: Machine
    proxy: Proxy
    walker: Machine


@contextlib.contextmanager
def _networks(ip: str) -> Iterator[tuple[str, str]]:
    house, lan = f"tuuhouse{os.getpid()}", f"tuulan{os.getpid()}"
    etc = Path("/etc/netns") / house
    outer, inner = f"tuuo{os.getpid()}", f"tuui{os.getpid()}"
    env = clean_environment()
    try:
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(HOSTS)
        (etc / "resolv.conf").write_text("")
        for command in (
            f"netns add {house}",
            f"netns add {lan}",
            f"link add {outer} type veth peer name {inner} netns {house}",
            f"address add {HERE}/30 dev {outer}",
            f"link set {outer} up",
            f"-n {house} address add {HOUSE}/30 dev {inner}",
            f"-n {house} link set lo up",
            f"-n {house} link set {inner} up",
            f"-n {house} link add lan0 type veth peer name lan1 netns {lan}",
            f"-n {house} address add {ROUTER}/30 dev lan0",
            f"-n {house} link set lan0 up",
            f"-n {lan} address add {LAN_HOST}/30 dev lan1",
            f"-n {lan} link set lan1 up",
            f"-n {house} route add unreachable {UNREACHABLE_HOST}/32",
        ):
            run([ip, *command.split()], env)
        yield house, lan
    finally:
        for name in (house, lan):
            run([ip, "netns", "delete", name], env, check=False)
        shutil.rmtree(etc, ignore_errors=True)


def _start(ip: str, made: World, house: str, lan: str) -> House:
    server = made.watch(Running([ip, "netns", "exec", lan, "python3", "-c", _LAN_SERVER, LAN_HOST], clean_environment()))
    assert server.line() == "ready"
    relay = made.relay(host=HERE)
    agent = made.agent(relay.link, machine=made.machine((ip, "netns", "exec", house)))
    assert agent.invite
    laptop = made.laptop(agent.invite)
    proxy = made.proxy(laptop, "--route", "*.lab.example=home")
    return House(relay, agent, laptop, proxy, made.laptop(agent.new_invite()))


@contextlib.contextmanager
def house() -> Iterator[House]:
    """Build the house, serve, and take it down again."""
    ip = network_namespaces()
    with _networks(ip) as (inside, lan), world() as made:
        yield _start(ip, made, inside, lan)
