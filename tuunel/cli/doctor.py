"""`tuunel doctor`: everything about this machine that can be wrong, and the remedy."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Final

import typer

from tuunel.cli.arguments import AsJson
from tuunel.cli.colours import Colour, painted
from tuunel.cli.listing import count
from tuunel.cli.progress import Progress
from tuunel.cli.report import Document, answer, put, say
from tuunel.events import printable

if TYPE_CHECKING:
    from tuunel.address import HostPort
    from tuunel.finding import Finding

MAX_LINE: Final = 1000  # characters of one finding: paths and a relay's words are longer than other labels
MIN_WIDTH: Final = 20  # columns: in a narrower terminal lines are broken by itself
INKS: Final = {"ok": Colour.GREEN, "warning": Colour.YELLOW, "wrong": Colour.RED}


def doctor(*, as_json: AsJson = False) -> None:
    """Check this machine: keys, files, settings, relays, clock, roles, programs' proxies. Exit code 1 when something is wrong."""
    ended = False

    def work() -> Document:
        nonlocal ended
        with Progress(sys.stderr) as progress:
            progress("looking at this machine, and asking its relays")
            findings = examine()
        ended = any(finding.state == "wrong" for finding in findings)
        return {"ok": not ended, "checks": [finding.document() for finding in findings]}

    answer(work, _show, as_json=as_json)
    if ended:
        raise typer.Exit(1)


def examine() -> list["Finding"]:
    """Every check, in the order in which a person should mend what they find. Without whole encryption nothing else can be looked at."""
    from tuunel.checkmachine import check_environment, check_file_limit, check_versions

    versions = check_versions()
    if any(finding.state == "wrong" for finding in versions):
        return versions

    import anyio

    from tuunel.checkrelay import check_relays
    from tuunel.checkroles import check_port, check_roles, running_roles
    from tuunel.checkstate import check_state
    from tuunel.cli.checkclients import check_clients
    from tuunel.settings import Home

    home = Home.find()
    answers, dead = running_roles(home)
    listen, proxy = proxy_listen(), answers.get("proxy")
    return [
        *versions,
        check_file_limit(),
        *check_state(home),
        *dead,
        *check_roles(home, answers),
        *anyio.run(check_relays, home),
        check_port(listen, proxy),
        *check_clients(proxy_runs=proxy is not None),
        *check_environment(os.environ, proxy["listen"] if proxy else [str(listen)]),
    ]


def proxy_listen() -> "HostPort":
    """Where `tuunel proxy` would listen: by its settings, or by default where these cannot be meant."""
    from tuunel.address import HostPort
    from tuunel.cli.proxy import DEFAULT_LISTEN, DEFAULT_PORT
    from tuunel.config import settings_of
    from tuunel.configfile import load_settings
    from tuunel.errors import TuunelError

    try:
        return HostPort.parse(str(load_settings(settings_of("proxy"))["proxy.listen"].value), DEFAULT_PORT)
    except TuunelError:  # told by the check of the settings
        return HostPort.parse(DEFAULT_LISTEN, DEFAULT_PORT)


def _wrapped(text: str, indent: int) -> list[str]:
    """The text in lines that a terminal has room for beside the indent; in one line where it is no terminal."""
    if not sys.stdout.isatty():
        return [text]
    return textwrap.wrap(text, max(shutil.get_terminal_size().columns - indent, MIN_WIDTH)) or [""]


def _show(document: Document) -> None:
    checks = document["checks"]
    width = max(len(each["check"]) for each in checks)
    gap = " " * (len("warning") + width + 4)
    for each in checks:
        mark = painted(f"{each['state']:<7}", INKS[each["state"]], sys.stdout)
        first, *more = _wrapped(printable(each["what"], MAX_LINE), len(gap))
        put(f"{mark}  {each['check']:<{width}}  {first}", *(gap + line for line in more))
        if each["fix"]:
            put(f"{gap}fix: {printable(each['fix'], MAX_LINE)}")  # in one piece: it may be a command to copy
    bad, doubtful = (sum(each["state"] == state for each in checks) for state in ("wrong", "warning"))
    say(f"{count(bad, 'thing')} wrong, {count(doubtful, 'warning')}" if bad or doubtful else "nothing is wrong")
