"""The three machines of the documentation, as it describes them, and the network behind `home`.

    laptop, alice (a guest's) -- vps (relay.example.net) -- home -- nas (192.168.1.10)

The nas is also the name server of home's network, and as much of the Internet as the pages show.

Each is a network and mount namespace of its own: host names, ports and paths are those that the pages show, and none of them is seen by
the machine that runs the tests. A namespace ends with the process that holds it, and that one with the test.
"""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.pages import Shown, words_of
from tests.journeys.peers import SEARCH_PATH, network_namespaces, program
from tests.journeys.processes import Running, clean_environment, until
from tuunel.control import call

PATIENCE = 30.0
COLUMNS = 600  # no line of the documentation is longer, links in full included
RELAY, HOME_OUT = "203.0.113.5", "203.0.113.6"
ROUTER, HOME_LAN, NAS, INTERNET = "192.168.1.1", "192.168.1.2", "192.168.1.10", "198.51.100.7"
HOSTS = {
    "vps": f"{RELAY} relay.example.net\n",
    "home": f"{RELAY} relay.example.net\n{NAS} nas wiki.lab.example.com\n{INTERNET} www.example.org\n",
    "laptop": f"{RELAY} relay.example.net\n",
    "alice": f"{RELAY} relay.example.net\n",
    "nas": f"{ROUTER} router.lan\n{NAS} nas.lan printer.lan\n",
}
ROLES = {"relay serve": "relay", "agent": "agent", "proxy": "proxy", "forward": "forward"}  # the commands that run until Ctrl-C
BASE = {  # what runs when the tutorial has been followed
    ("vps", "relay"): "tuunel relay serve --advertise relay.example.net",
    ("home", "agent"): "tuunel agent",
    ("laptop", "proxy"): "tuunel proxy",
}
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])")
_LINK = re.compile(r"tuunel://[^\s'\"\\]+")
_DEVICE_ID = re.compile(r"\b[a-z2-7]{5}(?:-[a-z2-7]{5}){7}\b")


def role_of(command: str) -> str:
    """The role that the command line runs until Ctrl-C; empty for a command that ends by itself."""
    words = words_of(command)
    if words[:1] != ["tuunel"] or "--help" in words:
        return ""
    return next((role for name, role in ROLES.items() if words[1 : 1 + len(name.split())] == name.split()), "")


class Terminal:
    """A command that runs until Ctrl-C, in a terminal of its own; `text` is what it has written so far, without colours."""

    def __init__(self, computer: "Computer", command: str) -> None:
        self.command = command
        self._screen, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            computer.argv(f"exec {command}"), stdin=inside, stdout=inside, stderr=inside, env=computer.env, start_new_session=True
        )
        os.close(inside)
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # Linux: EIO when the last writer has gone
            while data := os.read(self._screen, 65536):
                self._written += data

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", bytes(self._written).decode("utf-8", "replace")).replace("\r", "\n")

    def alive(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        if self.alive():
            self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(PATIENCE)
        finally:
            if self.alive():
                self._process.kill()
                self._process.wait(10)
            self._reader.join(10)
            os.close(self._screen)
        return code


@dataclass
class Computer:
    """One machine: its name, its owner's home directory, the namespace that it is, and what runs in its terminals by role."""

    name: str
    home: Path
    namespace: Running
    running: dict[str, list[Terminal]] = field(default_factory=dict)
    lasting: list[str] = field(default_factory=list)  #: command lines that change the shell, to be run before each later one

    @property
    def env(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), SEARCH_PATH])
        return clean_environment(HOME=str(self.home), USER="me", LOGNAME="me", TERM="xterm-256color") | {"PATH": path}

    def argv(self, command: str) -> list[str]:
        """What runs a shell's line on this machine, in its owner's home directory."""
        line = " && ".join([f"cd {shlex.quote(str(self.home))}", *self.lasting, command])
        inside = [program("nsenter"), "--target", str(self.namespace.pid), "--net", "--mount", "--uts"]
        return [*inside, "bash", "-c", line]

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a line to its end; its output is stdout and stderr as they come."""
        done = subprocess.run(
            self.argv(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.env,
            timeout=60, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{self.name}$ {command}\nended with {done.returncode}:\n{done.stdout}"
        return done

    def serve(self, command: str, ready: str = "") -> Running:
        """Start a service, and wait until it has written `ready` to stderr."""
        service = Running(self.argv(f"exec setpriv --pdeathsig KILL {command}"), self.env)
        until(lambda: ready in service.errors() or not service.alive(), f"{self.name}: {command}")
        assert service.alive(), f"{command}\n{service.errors()}"
        return service

    def start(self, role: str, command: str) -> Terminal:
        """Run a role in a new terminal, in the place of the one that runs already, and wait until it answers."""
        if role != "forward":
            self.stop(role)
        terminal = Terminal(self, command)
        self.running.setdefault(role, []).append(terminal)
        head = re.compile(rf"tuunel {role}  \S")  # the table's header says where it listens, or its device ID, once it is ready
        until(lambda: head.search(terminal.text) or not terminal.alive(), f"{self.name}: {command} is ready")
        assert terminal.alive(), f"{self.name}$ {command}\n{terminal.text}"
        return terminal

    def stop(self, role: str) -> None:
        """Press Ctrl-C in every terminal that runs the role; each must end well."""
        for terminal in self.running.pop(role, []):
            assert terminal.interrupt() == 0, terminal.text


@dataclass
class Machines:
    """All of them, and what was shown last: the newest link, invite and device IDs, which the pages write as `...`."""

    vps: Computer
    home: Computer
    laptop: Computer
    alice: Computer
    nas: Computer
    link: str = ""
    invite: str = ""
    device_ids: dict[str, str] = field(default_factory=dict)  #: by the machine that showed it
    services: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    served: set[str] = field(default_factory=set)

    def computer(self, name: str) -> Computer:
        found: Computer = getattr(self, name)
        return found

    def all(self) -> tuple[Computer, ...]:
        return self.alice, self.laptop, self.home, self.vps, self.nas

    def type(self, shown: Shown) -> str:
        """Type a shown command on its machine as a person would, with the newest secrets filled in; returns what it prints.

        A role is left running in its terminal, and what it prints counts as complete once it holds all that is expected of it.
        """
        computer = self.computer(shown.machine)
        command, role = self.filled(shown), role_of(shown.command)
        if role:
            terminal = computer.start(role, command)
            until(lambda: prints(terminal.text, shown.output) or not terminal.alive(), f"{command} prints what the page says", PATIENCE)
            text = terminal.text
        else:
            text = computer.run(command).stdout
            if re.match(r"eval |export |alias |cd |\. ", command):
                computer.lasting.append(command)
        self.remember(shown.machine, text)
        return text

    def serve(self, service: Callable[["Machines"], None]) -> None:
        """Start a service, once."""
        if service.__name__ not in self.served:
            self.served.add(service.__name__)
            service(self)

    def filled(self, shown: Shown) -> str:
        """The command line with real values in place of the page's dots and capitals."""
        words = words_of(shown.command)
        secret = self.invite if "pair" in words[:2] else self.link
        command = re.sub(r"tuunel://[^'\s]*\.\.\.[^'\s]*", lambda _: secret, shown.command)
        others = [each for machine, each in self.device_ids.items() if machine != shown.machine] or list(self.device_ids.values())
        return command.replace("DEVICE-ID", others[-1]) if "DEVICE-ID" in command else command

    def remember(self, machine: str, text: str) -> None:
        """Note what a machine has shown."""
        for secret in _LINK.findall(text):
            if "device=" in secret:
                self.invite = secret
            else:
                self.link = secret
        for device_id in _DEVICE_ID.findall(text):
            self.device_ids.pop(machine, None)
            self.device_ids[machine] = device_id

    def settle(self) -> None:
        """Bring every machine to where the tutorial ends: what a page has started is ended, what it has replaced runs again."""
        for computer in self.all():
            computer.lasting.clear()
            for role, terminals in list(computer.running.items()):
                if [each.command for each in terminals] != [BASE.get((computer.name, role))]:
                    computer.stop(role)
        for (name, role), command in BASE.items():
            if role not in self.computer(name).running:
                self.type(Shown("", name, command))
        agent = self.home.home / ".local" / "state" / "tuunel" / "run" / "agent.sock"
        until(lambda: call(agent, "status")["relays"][0]["state"] == "online", "the agent has found the relay again")

    def end(self) -> None:
        """Stop every role, also when one of them does not end well."""
        with contextlib.ExitStack() as stopping:
            for computer in reversed(self.all()):
                for role in computer.running:
                    stopping.callback(computer.stop, role)


def prints(text: str, output: Sequence[str]) -> bool:
    """Whether `text` has each line of `output`, in this order; `...` stands for anything within a line."""
    lines = "".join(rf"(?:.*\n)*?\s*{'.*?'.join(map(re.escape, line.split('...')))}[ \t]*\n" for line in output)
    return re.match(lines, text + "\n") is not None


_HOLD = """
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /srv && mkdir -p /run/user/1000 /run/sshd /run/postgresql
for each in hosts resolv.conf passwd; do mount --bind "$1/etc/$each" "/etc/$each"; done
hostname "$2" && ip link set lo up && echo ready && exec setpriv --pdeathsig KILL sleep 1800
"""


def _computer(name: str, root: Path) -> Computer:
    home, etc = root / name, root / name / "etc"
    etc.mkdir(parents=True)
    (home / ".curlrc").write_text("fail\nsilent\nshow-error\n")  # a page that reports an error is one
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{HOSTS[name]}")
    (etc / "resolv.conf").write_text(f"nameserver {ROUTER if name == 'home' else '127.0.0.1'}\noptions timeout:1 attempts:1\n")
    known = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith(("root:", "me:"))]
    people = [f"{each}:x:0:0::{home}:/bin/bash" for each in ("root", "me")]
    (etc / "passwd").write_text("\n".join([*people, *known]) + "\n")
    unshare = [program("unshare"), "--net", "--mount", "--uts", "bash", "-c", _HOLD, "bash", str(home), name]
    namespace = Running(unshare, clean_environment())
    assert namespace.line() == "ready"
    return Computer(name, home, namespace)


def _cable(ip: str, one: Computer, its: str, other: Computer, others: str) -> None:
    """Join two machines by a pair of interfaces."""
    ends = (one, f"to-{other.name}", its), (other, f"to-{one.name}", others)
    one.run(f"{ip} link add to-{other.name} type veth peer name to-{one.name} netns {other.namespace.pid}")
    for computer, interface, addresses in ends:
        computer.run(" && ".join(f"{ip} address add {each} dev {interface}" for each in addresses.split()))
        computer.run(f"{ip} link set {interface} up")


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """Build the machines, and take them down again."""
    ip = network_namespaces()
    with tempfile.TemporaryDirectory(prefix="tuudoc", dir="/tmp") as root, contextlib.ExitStack() as ending:
        Path(root).chmod(0o711)  # PostgreSQL runs as a user of its own
        made = {}
        for name in HOSTS:
            made[name] = _computer(name, Path(root))
            ending.callback(made[name].namespace.stop)
        whole = Machines(**made)
        _cable(ip, whole.vps, f"{RELAY}/30", whole.home, f"{HOME_OUT}/30")
        for number, computer in enumerate((whole.laptop, whole.alice)):
            _cable(ip, whole.vps, f"203.0.113.{9 + 4 * number}/30", computer, f"203.0.113.{10 + 4 * number}/30")
            computer.run(f"{ip} route add {RELAY} via 203.0.113.{9 + 4 * number}")
        _cable(ip, whole.home, f"{HOME_LAN}/24", whole.nas, f"{ROUTER}/24 {NAS}/24 {INTERNET}/32")
        whole.home.run(f"{ip} route add {INTERNET} via {NAS}")
        ending.callback(whole.services.close)
        ending.callback(whole.end)
        yield whole
