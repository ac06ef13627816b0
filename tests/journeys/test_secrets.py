"""Real processes, every command and role, on good days and bad ones: nothing that they write, and nothing that `ps` shows, holds a secret.

A bearer - an enrolment link, an invite - is written where a person has asked for it, so that it can be copied; once used it opens nothing.
"""

import base64
import json
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.journeys import doors
from tests.journeys.processes import Json, run, tuunel_argv, until
from tests.journeys.targets import echo, serving
from tests.journeys.world import LOOPBACK, Machine, World, port_of
from tuunel.cli.app import app
from tuunel.links import parse_invite, parse_link

pytestmark = pytest.mark.real

USER, PASSWORD = "ann", "correct-horse-battery-staple"
LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.+?)-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)

#: A role tells of slow callbacks with their arguments, of tasks that were left, of what was not closed, and of its end by a signal.
TALKATIVE = {"PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "always"}

#: A worse day: the first signature of the process fails by a fault that nobody has foreseen.
CRASH = """
import sys
from tuunel import identity
def fail(private, label, digest):
    raise ZeroDivisionError(label)
identity.sign_with = fail
from tuunel.__main__ import main
sys.exit(main())
"""


def forms(secret: bytes) -> set[str]:
    """How bytes can be written: hexadecimal, base64, base32, Python's way, and as one number."""
    number = int.from_bytes(secret)
    coded = {base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b32encode(secret), base64.b32encode(secret).lower()}
    shown = {text.decode().rstrip("=") for text in coded}
    return shown | {secret.hex(), secret.hex().upper(), repr(secret)[2:-1], str(number), f"{number:x}"}


def files(home: Path) -> Iterator[Path]:
    return (path for path in home.rglob("*") if path.is_file())


def private_keys(home: Path) -> set[str]:
    """Every private key in the files of a machine, however it may be written, and the lines that its file has for it."""
    found = set()
    for path in files(home):
        for match in PEM.finditer(path.read_bytes()):
            key = serialization.load_pem_private_key(match[0], None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            found |= forms(key.private_numbers().private_value.to_bytes(32))
            found |= {line for line in match[1].decode().splitlines() if len(line) > 20}
    return found


@dataclass
class Process:
    """A role that runs; what it writes goes to files."""

    argv: list[str]
    popen: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def said(self) -> str:
        return self.stdout.read_text(errors="replace") + self.stderr.read_text(errors="replace")

    def ready(self) -> str:
        """Everything it has said once it serves."""
        until(lambda: re.search(r'"event": "ready".*\n|\b(relay|agent|proxy) ready.*\n(.*\n)+', self.said()), f"{self.argv} is ready")
        return self.said()

    def event(self, name: str) -> Json:
        """The first event of this name that a role with --json has told."""
        self.ready()
        events: list[Json] = [json.loads(line) for line in self.stdout.read_text().splitlines()]
        return next(event for event in events if event["event"] == name)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        self.popen.wait(30)


@dataclass
class Household:
    """Machines, and everything that any process of theirs has written or could be seen with."""

    world: World
    logs: Path
    ending: ExitStack
    machines: list[Machine] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)

    def machine(self) -> Machine:
        made = self.world.machine()
        self.machines.append(made)
        return made

    def start(self, machine: Machine, *arguments: str, stdin: str = "") -> Process:
        stdout, stderr = (self.logs / f"{len(self.processes)}.{name}" for name in ("out", "err"))
        argv = tuunel_argv(*arguments)
        with stdout.open("wb") as out, stderr.open("wb") as err:
            popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=err, env={**machine.env, **TALKATIVE})
        assert popen.stdin is not None
        popen.stdin.write(stdin.encode())
        popen.stdin.close()
        process = Process(argv, popen, stdout, stderr)
        self.ending.callback(process.end)
        self.processes.append(process)
        return process

    def tell(self, machine: Machine, *arguments: str, stdin: str = "", fails: bool = False, program: str = "") -> str:
        """Run a command to its end: what it has written, which is kept."""
        argv = [sys.executable, "-c", program, *arguments] if program else tuunel_argv(*arguments)
        done = run(argv, machine.env, stdin=stdin.encode(), check=False)
        text = (done.stdout + done.stderr).decode(errors="replace")
        self.written[f"{len(self.written)}: {' '.join(word for word in arguments if '://' not in word)}"] = text
        assert (done.returncode != 0) == fails, text
        return done.stdout.decode() if not fails else text

    def look_at_processes(self) -> None:
        """What others on the machine, or tools of its owner, can list."""
        for process in self.processes:
            for name in ("cmdline", "environ"):
                text = Path(f"/proc/{process.popen.pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                assert text
                self.listed[f"{name} of {process.argv[3]} {process.popen.pid}"] = text

    def find(self, *secrets: str) -> set[str]:
        """Where any of these was written or could be listed."""
        said = {f"output of {process.argv[3]} {process.popen.pid}": process.said() for process in self.processes}
        assert all(said.values())
        return {where for where, text in {**said, **self.written, **self.listed}.items() if any(secret in text for secret in secrets)}


@pytest.fixture
def household(own_world: World, tmp_path: Path) -> Iterator[Household]:
    with ExitStack() as ending:
        yield Household(own_world, tmp_path, ending)


def bearers(text: str) -> set[str]:
    """The secret of an invite or link and the token in it, as they stand there."""
    parts = dict(part.split("=") for part in text.partition("?")[2].split("&"))
    return {parts[name] for name in ("secret", "enrol") if name in parts}


def login(proxy: int, password: str, port: int, *, right: bool) -> None:
    """Both ways to give a password."""
    header = f"Proxy-Authorization: Basic {base64.b64encode(f'{USER}:{password}'.encode()).decode()}\r\n"
    with doors.http_connect((LOOPBACK, proxy), "home.tuunel", port, extra=header) as opened:
        assert (opened.answer.code == 200) == right
    with socket.create_connection((LOOPBACK, proxy)) as sock:
        sock.sendall(b"\x05\x01\x02\x01" + bytes([len(USER)]) + USER.encode() + bytes([len(password)]) + password.encode())
        answer = sock.recv(2) + sock.recv(2)
        assert (answer == b"\x05\x02\x01\x00") == right


@dataclass
class Day:
    """Who is who, and every bearer with the places where somebody has asked for it."""

    relay: Machine
    home: Machine
    cabin_id: str
    laptop: Machine
    proxy: Process
    bearers: dict[str, set[str]]


def good_day(household: Household) -> Day:
    """Enrol, invite, pair, use, list."""
    relay_machine, home_machine, cabin_machine = household.machine(), household.machine(), household.machine()
    relay = household.start(relay_machine, "relay", "serve", "--listen", f"{LOOPBACK}:0", "--advertise", LOOPBACK, "--json")
    link = relay.event("ready")["link"]
    home = household.start(home_machine, "agent", link, "--json")
    invite = home.event("ready")["invite"]
    piped_link = household.tell(relay_machine, "relay", "link").split()[0]
    cabin = household.start(cabin_machine, "agent", "-", stdin=piped_link)
    told_invite = re.findall(r"tuunel://[^\s']+", cabin.ready())[-1]
    cabin_id = re.findall(r"(?:[a-z2-7]{5}-){7}[a-z2-7]{5}", cabin.said())[0]

    laptop, walker = household.machine(), household.machine()
    household.tell(laptop, "pair", "-", "--name", "home", stdin=invite)
    household.tell(walker, "pair", "-", "--name", "cabin", "--json", stdin=told_invite)
    typed_invite = household.tell(home_machine, "invite", "--name", "walker").split()[0]
    household.tell(walker, "pair", typed_invite, "--name", "home")
    narrow_invite = json.loads(household.tell(home_machine, "invite", "--json", "--for", "8h", "--target", "*:1-65535"))["invite"]
    household.tell(laptop, "pair", "-", "--name", "again", stdin=narrow_invite)

    proxy = use(household, laptop, walker)
    for arguments in (("devices",), ("devices", "--json"), ("rename", "again", "other"), ("forget", "other"), ("setup", "env")):
        household.tell(laptop, *arguments)
    ask_how_it_stands(household, laptop)
    household.tell(home_machine, "verify", "walker")
    household.tell(home_machine, "clients")
    household.tell(relay_machine, "relay", "devices")
    household.tell(laptop, "demo", "--once", "--json")
    made = {
        link: {f"output of relay {relay.popen.pid}", f"cmdline of agent {home.popen.pid}"},
        piped_link: {"relay link"},
        invite: {f"output of agent {home.popen.pid}"},
        told_invite: {f"output of agent {cabin.popen.pid}"},
        typed_invite: {"invite --name walker"},
        narrow_invite: {"invite --json --for 8h --target *:1-65535"},
    }
    return Day(relay_machine, home_machine, cabin_id, laptop, proxy, made)


def ask_how_it_stands(household: Household, laptop: Machine) -> None:
    """Everything that looks at what runs, or only prints."""
    asking = (
        *(("status",), ("status", "--json"), ("top",), ("doctor",), ("doctor", "--json"), ("config", "show"), ("config", "check")),
        *(("why", "home.tuunel:1"), ("why", "home.tuunel:1", "--json"), ("ping", "home", "--count", "1"), ("verify", "home")),
        *(("bench", "home", "--seconds", "0.2"), ("completion", "bash"), ("service", "install", "proxy", "--print")),
    )
    for arguments in asking:
        household.tell(laptop, *arguments, fails="why" in arguments)  # nobody listens on port 1


def use(household: Household, laptop: Machine, walker: Machine) -> Process:
    """Connect in every way, with right and with wrong passwords."""
    for machine in (laptop, walker):
        (machine.home / "proxy-password").write_text(f"{PASSWORD}\n")
        (machine.home / "proxy-password").chmod(0o600)
    proxy = household.start(laptop, "proxy", "--listen", f"{LOOPBACK}:0", "--auth", USER, "--json")
    other = household.start(walker, "proxy", "--listen", f"{LOOPBACK}:0", "--auth", USER)
    ports = [port_of(proxy.event("ready")["listen"]), int(re.findall(r"proxy ready on [^ ]*:([0-9]+)", other.ready())[0])]
    with serving(echo) as target:
        for port in ports:
            login(port, PASSWORD, target.port, right=True)
            login(port, "wrong", target.port, right=False)
        household.tell(laptop, "nc", "home", str(target.port))
        household.tell(laptop, "nc", "home", "1", fails=True)
        forward = household.start(walker, "forward", f"0:home.tuunel:{target.port}", "--json")
        with socket.create_connection((LOOPBACK, port_of(forward.event("ready")["listen"]))) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
    return proxy


def bad_day(household: Household, day: Day) -> Machine:
    """What is used up, cut, wrong, revoked; and crashes. The machine that came in nowhere."""
    stranger = household.machine()
    for bearer in day.bearers:
        household.tell(stranger, "pair" if "secret=" in bearer else "agent", "-", stdin=bearer, fails=True)
    link, _, invite, *_ = day.bearers
    household.tell(stranger, "pair", invite[:-9], fails=True)
    household.tell(stranger, "pair", f"{invite[:-2]}aa", "--json", fails=True)
    household.tell(stranger, "devices", "add", day.cabin_id, "--relay", link, "--name", "cabin", fails=True)
    fresh = household.tell(day.home, "invite").split()[0]
    day.bearers[fresh] = {"invite"}
    crash = ("pair", "-", "--name", "crash")
    assert "ZeroDivisionError" in household.tell(stranger, *crash, stdin=fresh, program=CRASH, fails=True)
    assert "ZeroDivisionError" in household.tell(day.laptop, *crash, stdin=fresh, program=CRASH, fails=True)
    client = json.loads(household.tell(day.home, "clients", "--json"))["clients"][0]["name"]
    household.tell(day.home, "revoke", client)
    household.tell(day.relay, "relay", "revoke", day.cabin_id)
    day.proxy.end(signal.SIGABRT)  # the interpreter then tells where it stood
    for process in reversed(household.processes):
        process.end()
    assert "Fatal Python error: Aborted" in day.proxy.said()
    return stranger


@pytest.mark.timeout(400)  # some forty processes, one behind the other
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc")
def test_nothing_written_or_listed_holds_a_secret(household: Household) -> None:
    day = good_day(household)
    household.look_at_processes()
    stranger = bad_day(household, day)

    keys = set[str]()
    for machine in household.machines:
        found = private_keys(machine.home)
        assert found or machine is stranger
        keys |= found
    assert household.find(*keys) == set()
    assert household.find(PASSWORD, LOGIN) == set()

    for text, places in day.bearers.items():
        told = {where.partition(": ")[2] or where for where in household.find(*bearers(text), *forms(secret_of(text)))}
        assert told == places, text

    for machine in household.machines:
        for path in machine.home.rglob("*"):
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path
        for path in files(machine.home):
            check_at_rest(path, day)


def secret_of(text: str) -> bytes:
    secret = parse_invite(text).secret if "secret=" in text else parse_link(text).enrol
    assert secret
    return secret


def check_at_rest(path: Path, day: Day) -> None:
    """No machine keeps a bearer, neither the one that made it nor one that has used it."""
    content = path.read_bytes()
    for text in day.bearers:
        assert secret_of(text) not in content, path
        assert not [form for form in bearers(text) | forms(secret_of(text)) if form.encode() in content], path
    assert (PASSWORD.encode() in content) == (path.name == "proxy-password")


def test_the_day_above_runs_every_command() -> None:
    """A new command must find its place there."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {group.name for group in app.registered_groups if group.name}
    source = Path(__file__).read_text()
    assert {name for name in names if f'"{name}"' not in source} == set()
