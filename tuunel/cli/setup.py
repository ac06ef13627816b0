"""`tuunel setup`: the configuration that makes other programs use tuunel."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import os
import shlex
import shutil
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from tuunel.cli.report import ask_role, put, say
from tuunel.errors import NotRunning, StateError

DEFAULT_PROXY: Final = "localhost:1080"
BEGIN: Final = "# tuunel: begin (written by 'tuunel setup ssh --write')"
END: Final = "# tuunel: end"


class Client(StrEnum):
    """What can be set up."""

    SSH = "ssh"
    PAC = "pac"
    ENV = "env"


def setup(
    client: Annotated[Client, typer.Argument(help="ssh: ~/.ssh/config; pac: a browser's proxy script; env: a shell's variables.")],
    *,
    write: Annotated[bool, typer.Option("--write", help="Write it to its file instead of printing it.")] = False,
) -> None:
    """Print, or write with --write, the configuration of a client."""
    text, path = configuration(client)
    if not write:
        put(text.rstrip("\n"))
        return
    write_block(path, text) if client is Client.SSH else write_file(path, text)
    say(f"written to {path}", *after_writing(client, path))


def configuration(client: Client) -> tuple[str, Path]:
    """The text for `client`, and the file that `--write` puts it in."""
    from tuunel.settings import Home

    match client:
        case Client.SSH:
            return ssh_block(), Path.home() / ".ssh" / "config"
        case Client.PAC:
            return pac_script(), Home.find().root / "proxy.pac"
        case Client.ENV:
            return env_lines(proxy_address()), Home.find().root / "env.sh"


def after_writing(client: Client, path: Path) -> list[str]:
    """What a person does with the file just written."""
    match client:
        case Client.SSH:
            return ["next:   ssh NAME.tuunel"]
        case Client.PAC:
            return [
                f"next, in the browser's automatic proxy configuration:   http://{proxy_address()}/proxy.pac   while the proxy runs",
                f"  or, in a browser that takes a file (Chromium does not):   {path.as_uri()}",
            ]
        case Client.ENV:
            return [f"next:   . {shlex.quote(str(path))}"]


def ssh_block() -> str:
    """The lines of `~/.ssh/config` that send ssh, scp, git and rsync to `.tuunel` hosts through `tuunel nc`."""
    command = "tuunel" if shutil.which("tuunel") else f"{shlex.quote(sys.executable)} -m tuunel"
    return f"Host *.tuunel\n    ProxyCommand {command} nc %h %p\n"


def env_lines(proxy: str) -> str:
    """Shell lines that send programs through the proxy. `socks5h`, not `socks5`: the proxy must see the name."""
    variables = {
        "ALL_PROXY": f"socks5h://{proxy}",
        "HTTP_PROXY": f"http://{proxy}",
        "HTTPS_PROXY": f"http://{proxy}",
        "NO_PROXY": "localhost,127.0.0.1,::1",
    }
    lines = (f"export {name}={value} {name.lower()}={value}" for name, value in variables.items())
    return "\n".join(lines) + "\n"


def pac_script() -> str:
    """The running proxy's own PAC script, with its port and routes. NotRunning when no proxy runs."""
    import http.client
    import socket

    from tuunel.settings import Home

    path = Home.find().socket("proxy")
    connection = http.client.HTTPConnection("127.0.0.1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(os.fspath(path))
        except OSError as error:
            raise NotRunning("no tuunel proxy runs here, and the script names its port and routes", "start 'tuunel proxy' first") from error
        connection.sock = door
        connection.request("GET", "/proxy.pac")
        return connection.getresponse().read().decode()


def proxy_address() -> str:
    """Where the running proxy listens; the default address when none runs."""
    try:
        return str(ask_role("proxy", "status")["listen"][0])
    except NotRunning:
        say(f"no tuunel proxy runs here; assuming {DEFAULT_PROXY}")
        return DEFAULT_PROXY


def write_block(path: Path, text: str) -> None:
    """Put `text` between our marks at the end of the file at `path`, in place of what stood between them before."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    head, found, rest = before.partition(BEGIN + "\n")
    _, closed, tail = rest.partition(END + "\n")
    if found and not closed:
        raise StateError(f"{path} has a line '{BEGIN}' without its '{END}'", "mend the file by hand, then try again")
    if not found and head and not head.endswith("\n"):
        head += "\n"
    write_file(path, f"{head}{BEGIN}\n{text}{END}\n{tail}")


def write_file(path: Path, text: str) -> None:
    """Replace the file at `path` in one step; its mode is kept, a new one is 0600. Raises StateError."""
    real = path.resolve()  # a link to a file elsewhere stays a link
    fresh = real.with_name(f".{real.name}.tuunel-{os.getpid()}")
    try:
        real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = real.stat().st_mode & 0o777 if real.exists() else 0o600
        fresh.touch(mode=mode)
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(mode)
        fresh.replace(real)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise StateError(f"{path} cannot be written: {error}") from error
