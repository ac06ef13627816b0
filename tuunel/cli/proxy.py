"""`tuunel proxy`: the forward proxy."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuunel.cli.arguments import DEFAULT_DRAIN, DEFAULT_LEVEL, AsJsonLines, Drain, LogLevel, Metrics
from tuunel.cli.completion import routes, ways_for_others
from tuunel.errors import StateError, UsageError

if TYPE_CHECKING:
    from tuunel.address import HostPort
    from tuunel.configfile import RunningSettings

DEFAULT_LISTEN = "localhost:1080"
DEFAULT_PORT = 1080
PASSWORD_FILE = "proxy-password"  # noqa: S105 - the file's name, not a password
MAX_PASSWORD = 255  # RFC 1929 section 2: PLEN is one byte


def proxy(
    context: typer.Context,
    *,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where apps connect; localhost is both loopbacks.")] = DEFAULT_LISTEN,
    other: Annotated[
        str,
        typer.Option(
            metavar="direct|refuse|via:NAME",
            help="Where everything goes that is no .tuunel name and no route.",
            autocompletion=ways_for_others,
        ),
    ] = "direct",
    route: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN|CIDR=NAME",
            help="Send these names or addresses through device NAME. Repeatable.",
            autocompletion=routes,
        ),
    ] = None,
    auth: Annotated[str | None, typer.Option(metavar="USER", help="Ask apps for this user and a password.")] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Serve programs of every user of this machine, not yours alone.")] = False,
    metrics: Metrics = None,
    as_json: AsJsonLines = False,
    log_level: LogLevel = DEFAULT_LEVEL,
    drain: Drain = DEFAULT_DRAIN,
) -> None:
    """Run the proxy for apps: SOCKS5, SOCKS4a and HTTP on one port."""
    from tuunel.address import HostPort
    from tuunel.cli.running import run_role
    from tuunel.proxy import Proxy
    from tuunel.settings import Home

    settings: RunningSettings = context.obj
    home, address = Home.find(), HostPort.parse(listen, DEFAULT_PORT)
    require_auth_beyond_loopback(address, auth)
    credentials = (auth, password_for(auth, home.root / PASSWORD_FILE)) if auth is not None else None
    run_role(
        "proxy",
        lambda emit: Proxy(home, listen=address, other=other, routes=route or [], credentials=credentials, emit=emit, all_users=all_users),
        as_json=as_json,
        log_level=log_level,
        drain=drain,
        metrics=metrics,
        settings=settings,
        reload=lambda role: role.reload(other=settings.value("proxy.other"), routes=settings.value("proxy.route")),
    )


def require_auth_beyond_loopback(listen: "HostPort", auth: str | None) -> None:
    """Refuse an open proxy: UsageError when `listen` is more than this machine's loopback and nobody must log in."""
    if auth is None and not is_loopback(listen.host):
        raise UsageError(
            f"{listen} is not a loopback address: whoever can connect to it could use your devices as you",
            "add --auth USER, or listen on localhost",
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is `localhost` or a literal loopback address. Any other name may point anywhere, now or later."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def password_for(user: str, path: Path) -> str:
    """The proxy's password: from the file at `path`, which only its owner may access, else asked for at the terminal."""
    from tuunel.statefile import read_private

    content = read_private(path)
    password = _first_line(path, content) if content is not None else _ask_password(user, path)
    if not 0 < len(password.encode()) <= MAX_PASSWORD:
        raise UsageError(f"the password must have 1 to {MAX_PASSWORD} bytes", "SOCKS5 can carry no other")
    return password


def _first_line(path: Path, content: bytes) -> str:
    try:
        return content.decode().partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise StateError(f"{path} cannot be read: {error}", "write the password into it as one line of UTF-8") from error


def _ask_password(user: str, path: Path) -> str:
    from getpass import getpass

    if not sys.stdin.isatty():
        raise UsageError("--auth needs a password, and there is no terminal to ask at", f"put it into {path}, then: chmod 600 {path}")
    return getpass(f"password for {user}: ", stream=sys.stderr)
