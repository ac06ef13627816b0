"""OpenSSH: the home machine's reverse tunnel (`ssh -R`) to a relay's sshd, and through it an ssh to the home machine's own sshd.

Everything is encrypted twice: the inner connection, from the app's machine to the service's, keeps the relay from reading. Keys, settings
and the list of who may log in are made for one run and thrown away; the user's own are not read.
"""

import getpass
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.door import Door
from bench.peers import find, output
from bench.place import LOOPBACK, Place, Places
from bench.ports import await_listener, free_port
from bench.process import Process, Processes
from bench.systems.system import Route, Transport

_SSHD = """
ListenAddress {address}:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
LogLevel ERROR
"""


class OpenSsh:
    readable = "nobody"
    transports = frozenset([Transport.TCP])

    def __init__(self, *, socks: bool = False) -> None:
        self.socks = socks
        self.name = "openssh-socks" if socks else "openssh"
        self.hops = f"app - ssh {'-D' if socks else '-L'} in ssh -W - sshd - ssh -R to sshd - service"

    def version(self) -> str:
        find("sshd")
        return output([find("ssh"), "-V"]).partition(",")[0]

    @contextmanager
    def route(self, service: int, transport: Transport, places: Places) -> Iterator[Route]:
        with ExitStack() as ending:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="benchssh")))
            keys = _Keys(folder)
            relay, home, reverse, app = free_port(), free_port(), free_port(), free_port()

            def start(argv: list[str], place: Place) -> Process:
                return ending.enter_context(Process(argv, place=place))

            relay_sshd = start(keys.sshd(places.relay.address, relay), places.relay)
            home_sshd = start(keys.sshd(LOOPBACK, home), places.service)
            await_listener(relay_sshd, relay)
            await_listener(home_sshd, home)
            to_relay = keys.ssh(relay, places.relay.address)
            dial_out = start([*to_relay, "-N", "-R", f"{LOOPBACK}:{reverse}:{LOOPBACK}:{home}"], places.service)
            await_listener(relay_sshd, reverse)
            way = f"-oProxyCommand={shlex.join([*to_relay, '-W', f'{LOOPBACK}:{reverse}'])}"
            listen = ["-D", f"{LOOPBACK}:{app}"] if self.socks else ["-L", f"{LOOPBACK}:{app}:{LOOPBACK}:{service}"]
            forward = start([*keys.ssh(home, LOOPBACK, way), "-N", *listen], places.app)
            await_listener(forward, app)
            door = Door(LOOPBACK, app, (LOOPBACK, service) if self.socks else None)
            yield Route(door, {"forward": Processes(forward), "relay": Processes(relay_sshd), "agent": Processes(dial_out, home_sshd)})


class _Keys:
    """Keys for one run, and command lines that use them and nothing of the user's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("host", "client"):
            output([find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "benchmark", "-f", str(folder / name)])
        (folder / "authorized_keys").write_text((folder / "client.pub").read_text())
        (folder / "known_hosts").write_text(f"benchmark {(folder / 'host.pub').read_text()}")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, run by root, separates its privileges

    def sshd(self, address: str, port: int) -> list[str]:
        """Return the command line of a server."""
        path = self._folder / f"sshd-{port}"
        path.write_text(_SSHD.format(address=address, port=port, folder=self._folder))
        return [find("sshd"), "-D", "-e", "-f", str(path)]

    def ssh(self, port: int, address: str, *options: str) -> list[str]:
        """Return the command line of a client that logs in as this user, to which what it shall do is added."""
        settings = {
            "Port": port,
            "User": getpass.getuser(),
            "HostKeyAlias": "benchmark",
            "IdentityFile": self._folder / "client",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self._folder / "known_hosts",
            "GlobalKnownHostsFile": os.devnull,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ExitOnForwardFailure": "yes",
            "LogLevel": "ERROR",
        }
        return [find("ssh"), "-F", os.devnull, *options, *(f"-o{name}={value}" for name, value in settings.items()), address]
