"""A house with its own network: the agent lives in a network namespace, a LAN host in another one behind it.

    here (test, relay, laptop)  HERE -- HOUSE  house (agent)  ROUTER -- LAN_HOST  LAN host, PUBLIC_HOST

The private addresses are a block of this run's own: a second run of the tests on the machine, or what a run that was killed has left,
would else take the answers that belong to this one. What was left is removed before a house is built.

Nothing but the agent can reach the LAN host. The house resolves names by its own hosts file; its name server is the LAN host,
where none runs unless a test starts one. It has no default route, and one network that its router calls unreachable. The LAN
host is also the house's public Internet: it answers at one address that is neither private nor on any interface of the house.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from tests.journeys.peers import network_namespaces
from tests.journeys.processes import Running, clean_environment, run
from tests.journeys.world import Agent, Machine, Proxy, Relay, World, world

BLOCK = ip_network("10.192.0.0/10")  # cut into blocks of 16 addresses, one for each process id up to 262,143; then they repeat
OWN = ip_network((int(BLOCK.network_address) + os.getpid() % 2**18 * 16, 28))
HERE, HOUSE, ROUTER, LAN_HOST = (str(OWN[place]) for place in (1, 2, 5, 6))
UNREACHABLE_HOST = str(OWN[9])  # the house has an `unreachable` route to it
NO_ROUTE = "10.99.99.99"
PUBLIC_HOST, PUBLIC_NETWORK = "203.0.113.10", "203.0.113.0/24"  # RFC 5737: for documentation, so that nobody real is there
HOSTS = f"127.0.0.1 localhost\n::1 localhost\n{HERE} app.lab.example\n{LAN_HOST} printer printer.lan\n{PUBLIC_HOST} www.public.example\n"

NAMES = re.compile(r"tuu(?:house|lan|lab[a-z]+)(?P<pid>\d+)")

ECHO_PORT = 7  #: where the LAN host answers each datagram with itself
LAN_PAGE = b"the LAN host's page\n"
_LAN_SERVER = """
import http.server, socket, sys, threading
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
def echo(sock):
    while True:
        data, caller = sock.recvfrom(65535)
        sock.sendto(data, caller)
server = http.server.ThreadingHTTPServer(("", 8080), Page)
for address in sys.argv[1:]:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((address, ECHO_PORT))
    threading.Thread(target=echo, args=(sock,), daemon=True).start()
print("ready", flush=True)
server.serve_forever()
""".replace("ECHO_PORT", str(ECHO_PORT))


@dataclass
class House:
    """The world of the house. Its device is called `home` on `laptop`, whose proxy routes *.lab.example there, and on `walker`."""

    relay: Relay
    agent: Agent
    laptop: Machine
    proxy: Proxy
    walker: Machine
    on_lan_host: tuple[str, ...]  #: put before a command line, it runs on the LAN host


def remove_what_was_left(ip: str) -> None:
    """Take down the houses and labs of test runs that were killed: nobody else will."""
    for name in run([ip, "netns", "list"]).stdout.decode().split():
        if (found := NAMES.fullmatch(name)) and not Path("/proc", found["pid"]).exists():
            run([ip, "netns", "delete", name], check=False)  # a veth pair goes with either of its ends
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


@contextlib.contextmanager
def _networks(ip: str) -> Iterator[tuple[str, str]]:
    remove_what_was_left(ip)
    house, lan = f"tuuhouse{os.getpid()}", f"tuulan{os.getpid()}"
    etc = Path("/etc/netns") / house
    outer, inner = f"tuuo{os.getpid()}", f"tuui{os.getpid()}"
    env = clean_environment()
    try:
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(HOSTS)
        (etc / "resolv.conf").write_text(f"nameserver {LAN_HOST}\noptions timeout:2 attempts:1\n")
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
            f"-n {lan} address add {PUBLIC_HOST}/32 dev lan1",
            f"-n {house} route add {PUBLIC_NETWORK} via {LAN_HOST}",
            f"-n {house} route add unreachable {UNREACHABLE_HOST}/32",
        ):
            run([ip, *command.split()], env)
        yield house, lan
    finally:
        for name in (house, lan):
            run([ip, "netns", "delete", name], env, check=False)
        shutil.rmtree(etc, ignore_errors=True)


def _start(ip: str, made: World, house: str, lan: str) -> House:
    on_lan_host = (ip, "netns", "exec", lan)
    server = made.watch(Running([*on_lan_host, sys.executable, "-c", _LAN_SERVER, LAN_HOST, PUBLIC_HOST], clean_environment()))
    assert server.line() == "ready"
    relay = made.relay(host=HERE)
    agent = made.agent(relay.link, machine=made.machine((ip, "netns", "exec", house)))
    assert agent.invite
    laptop = made.laptop(agent.invite)
    proxy = made.proxy(laptop, "--route", "*.lab.example=home")
    return House(relay, agent, laptop, proxy, made.laptop(agent.new_invite()), on_lan_host)


@contextlib.contextmanager
def house() -> Iterator[House]:
    """Build the house, serve, and take it down again."""
    ip = network_namespaces()
    with _networks(ip) as (inside, lan), world() as made:
        yield _start(ip, made, inside, lan)
