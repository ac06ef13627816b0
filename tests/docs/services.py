"""What waits behind `home` for the commands of the pages: real servers, at the ports and paths that the pages name."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.docs.machines import INTERNET, NAS, ROUTER, Computer, Machines
from tests.journeys.peers import missing, program

_UNIX_PAGE = """
import http.server, os, socketserver, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")
    def address_string(self):
        return "unix"
server = socketserver.ThreadingUnixStreamServer(sys.argv[1], Page)
print("ready", file=sys.stderr, flush=True)
server.serve_forever()
"""
_ECHO = """
import socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", int(sys.argv[1])))
print("ready", file=sys.stderr, flush=True)
while True:
    data, caller = sock.recvfrom(65535)
    sock.sendto(data, caller)
"""
_PAGES = """
import functools, http.server, sys
address, port, directory = sys.argv[1:]
server = http.server.ThreadingHTTPServer((address, int(port)), functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory))
print("ready", file=sys.stderr, flush=True)
server.serve_forever()
"""


def _script(machines: Machines, computer: Computer, name: str, code: str, *arguments: str) -> None:
    file = computer.home / f"{name}.py"
    file.write_text(code)
    machines.services.callback(computer.serve(f"{sys.executable} {file} {' '.join(arguments)}", "ready").stop)


def pages(machines: Machines) -> None:
    """A web site on home's port 8080."""
    site = machines.home.home / "site"
    site.mkdir(exist_ok=True)
    (site / "index.html").write_text("the page at home\n")
    _script(machines, machines.home, "pages", _PAGES, "127.0.0.1", "8080", str(site))


def other_pages(machines: Machines) -> None:
    """Web sites in home's network and beyond it."""
    site = machines.nas.home / "site"
    site.mkdir(exist_ok=True)
    (site / "index.html").write_text("another page\n")
    for address in (NAS, INTERNET):
        _script(machines, machines.nas, f"pages-{address}", _PAGES, address, "80", str(site))


def ssh(machines: Machines) -> None:
    """sshd at home and on the laptop, with each other's keys; files and a git repository at home."""
    binary, keygen = program("sshd"), program("ssh-keygen")
    pair = {"home": machines.laptop, "laptop": machines.home}
    for name, client in pair.items():
        server = machines.computer(name)
        for computer, key in ((server, "host"), (client, "id_ed25519")):
            computer.run(f"mkdir -p -m 700 .ssh && test -e .ssh/{key} || {keygen} -q -t ed25519 -N '' -C throw-away -f .ssh/{key}")
        shutil.copy(client.home / ".ssh" / "id_ed25519.pub", server.home / ".ssh" / "authorized_keys")
        host_key = (server.home / ".ssh" / "host.pub").read_text().split()[:2]
        (client.home / ".ssh" / "known_hosts").write_text(f"{name}.tuunel {' '.join(host_key)}\n")
        directory = server.home / ".ssh"
        (directory / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized_keys\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\nPrintMotd no\n"
        )
        machines.services.callback(server.serve(f"{binary} -D -e -f {directory}/sshd_config", "listening").stop)
    machines.home.run("mkdir -p backup && echo text | tee notes.txt backup/one > /dev/null")


def git(machines: Machines) -> None:
    """A repository at /srv for ssh, and another one on a web server's port 3000."""
    served = machines.home.home / "repositories"
    for bare in ("/srv/project.git", f"{served}/me/notes.git"):
        machines.home.run(
            f"git init -q --bare {bare} && rm -rf work && git init -q work && cd work && git -c user.name=me -c user.email=me@home commit "
            f"-q --allow-empty -m first && git push -q {bare} HEAD:main && git --git-dir {bare} symbolic-ref HEAD refs/heads/main && "
            f"git --git-dir {bare} update-server-info"
        )
    _script(machines, machines.home, "repositories", _PAGES, "127.0.0.1", "3000", str(served))


def rsync(machines: Machines) -> None:
    """An rsync daemon on home's port 873."""
    directory = machines.home.home
    (directory / "rsyncd.conf").write_text(f"use chroot = no\nlog file = {directory}/rsyncd.log\n[files]\npath = {directory}/backup\n")
    service = machines.home.serve(f"{program('rsync')} --daemon --no-detach --address=127.0.0.1 --config={directory}/rsyncd.conf")
    machines.services.callback(service.stop)


def databases(machines: Machines) -> None:
    """PostgreSQL at home, on its port and its usual socket; Redis on the nas."""
    if not any(line.startswith("postgres:") for line in Path("/etc/passwd").read_text().splitlines()):
        missing("a user for PostgreSQL")
    data, as_user = machines.home.home / "pg", "setpriv --reuid=postgres --regid=postgres --clear-groups"
    machines.home.run(
        f"chmod 755 . && install -d -o postgres {data} && chown postgres /run/postgresql && cd {data} && "
        f"{as_user} {program('initdb')} -D {data}/data -U me -A trust -E UTF8 --no-sync && "
        f"echo 'CREATE DATABASE mydb;' | {as_user} {program('postgres')} --single -D {data}/data postgres"
    )
    options = "--listen_addresses=127.0.0.1 --unix_socket_directories=/run/postgresql --fsync=off"
    service = machines.home.serve(f"{as_user} {program('postgres')} -D {data}/data {options}", "ready to accept connections")
    machines.services.callback(service.stop)
    options = f"--bind {NAS} --protected-mode no --save '' --dir {machines.nas.home} --logfile /dev/stderr"
    machines.services.callback(machines.nas.serve(f"{program('redis-server')} {options}", "eady to accept connections").stop)


def datagrams(machines: Machines) -> None:
    """The LAN's name server, iperf3 and an echo."""
    options = f"--keep-in-foreground --no-daemon --no-resolv --no-hosts --listen-address={ROUTER} --bind-interfaces"
    service = machines.nas.serve(f"{program('dnsmasq')} {options} --host-record=printer.lan,{NAS} --pid-file= --log-facility=-", "started")
    machines.services.callback(service.stop)
    machines.services.callback(machines.home.serve(f"{program('iperf3')} --server --bind 127.0.0.1").stop)
    machines.home.run("for n in $(seq 100); do ss -Hltn sport = 5201 | grep -q . && exit; sleep 0.05; done; exit 1")
    _script(machines, machines.home, "echo", _ECHO, "9999")


def unix_socket(machines: Machines) -> None:
    """A web service on the socket where Docker's would be: it answers to the one request that the page makes by hand."""
    _script(machines, machines.home, "unix", _UNIX_PAGE, "/run/docker.sock")


def firefox(machines: Machines) -> None:
    """The profile that Firefox makes at its first start."""
    profiles = machines.laptop.home / ".mozilla" / "firefox"
    (profiles / "me.default").mkdir(parents=True)
    (profiles / "profiles.ini").write_text("[Profile0]\nName=default\nIsRelative=1\nPath=me.default\nDefault=1\n")


def newer_link(machines: Machines) -> None:
    """One more machine is about to be enrolled."""
    machines.link = machines.vps.run("tuunel relay link 2> /dev/null").stdout.strip()


def stranger(machines: Machines) -> None:
    """A device that nobody needs any more, whose ID is at hand."""
    newer_link(machines)
    machines.alice.run(f"tuunel devices add {machines.device_ids['home']} --relay '{machines.link}' --name any")
    machines.remember("alice", machines.alice.run("tuunel devices 2>&1 | head -n 1").stdout)


def invite_in_a_file(machines: Machines) -> None:
    """An invite that came to the laptop as a file."""
    (machines.laptop.home / "invite.txt").write_text(machines.home.run("tuunel invite 2> /dev/null").stdout)


Service = Callable[[Machines], None]
NEEDS: dict[str, tuple[Service, ...]] = {
    "README.md": (ssh,),
    "docs/tutorial/first-tunnel.md": (ssh,),
    "docs/howto/browser.md": (other_pages, firefox),
    "docs/howto/databases.md": (databases,),
    "docs/howto/exit.md": (other_pages,),
    "docs/howto/fleet.md": (newer_link,),
    "docs/howto/git.md": (ssh, git),
    "docs/howto/other-direction.md": (ssh,),
    "docs/howto/relay.md": (stranger,),
    "docs/howto/script.md": (invite_in_a_file,),
    "docs/howto/ssh.md": (ssh, rsync),
    "docs/howto/udp.md": (datagrams,),
    "docs/howto/unix-sockets.md": (unix_socket,),
}
"""What must run for a page's commands besides the site on home's port 8080, which every page has."""
