"""`tuunel top`: the live table of a role that runs in another terminal, by way of its control socket."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tuunel.cli.arguments import AsJsonLines
from tuunel.cli.report import START, Document, put, say
from tuunel.errors import NotRunning, TuunelError, UsageError
from tuunel.events import Emit, Notice, Ready

if TYPE_CHECKING:
    from tuunel.cli.screen import Screen
    from tuunel.display import LiveTable
    from tuunel.settings import Home

INTERVAL: Final = 0.5  #: seconds between two questions
FORWARD: Final = "forward"

Show = Callable[[Document], bool]


def top(
    role: Annotated[
        str | None, typer.Argument(metavar="ROLE", help="relay, agent, proxy, forward or forward-PID; needless where only one runs.")
    ] = None,
    *,
    as_json: AsJsonLines = False,
) -> None:
    """Watch what a running role carries, and end connections of it. Without a terminal: what it carries now, once."""
    from tuunel.cli.screen import Screen, is_screen
    from tuunel.control import call
    from tuunel.settings import Home

    home = Home.find()
    name = choose(role, home)
    path = home.socket(name)
    document = call(path, "connections")  # before the screen is taken: an error is read by itself
    if as_json:
        ended = watch(path, write_lines(), lambda _: None, None)
    elif is_screen():
        from tuunel.display import LiveTable
        from tuunel.view import View

        table = LiveTable(document["status"]["role"], _no_steps, whole=True, view=View(leaves=True))
        with Screen(table) as screen:
            ended = watch(path, follow(table), table, screen)
    else:
        show_once(document)
        return
    if ended:
        say(f"tuunel {name} has ended")


def _no_steps(ready: Ready) -> Sequence[str]:
    """Whoever started the role was told."""
    del ready
    return ()


def choose(role: str | None, home: "Home") -> str:
    """The name of the one role that is meant: NotRunning when it is not here, UsageError when several could be meant."""
    from tuunel.cli.status import answering

    if role is not None and role not in {*START, FORWARD} and not role.startswith(f"{FORWARD}-"):
        raise UsageError(f"{role!r} is no role", f"one of: {', '.join((*START, FORWARD))}")
    names = [name for name in answering(home) if role in {None, name, name.partition("-")[0]}]
    if not names:
        start = START.get(role or "", "tuunel forward PORT:HOST.NAME.tuunel:PORT" if role else "tuunel proxy")
        raise NotRunning(f"no tuunel {role or 'role'} runs here", f"start it with '{start}'")
    if len(names) > 1:
        raise UsageError(f"several roles run here: {', '.join(names)}", f"say which one, like: tuunel top {names[0]}")
    return names[0]


def watch(path: Path, show: Show, emit: Emit, screen: "Screen | None") -> bool:
    """Show what the role at `path` answers until it ends, or the person leaves: whether it was the role."""
    import anyio

    from tuunel.cli.running import Audience, serve

    tops: list[Top] = []

    def build(emit: Emit) -> Top:
        tops.append(Top(path, show, emit))
        return tops[0]

    anyio.run(serve, build, Audience(emit, screen), 0.0)
    return tops[0].ended


class Top:
    """Asks the role at `path` for its connections twice a second, as a `tuunel.cli.running.Role`.

    `show` returns False when nobody looks any more. `emit` hears why a connection could not be ended.
    """

    def __init__(self, path: Path, show: Show, emit: Emit) -> None:
        import anyio

        self.ended = False  #: whether the role has gone; another one in its place is another one
        self._path = path
        self._show = show
        self._emit = emit
        self._scope = anyio.CancelScope()
        self._wishes: list[int] = []
        self._wish = anyio.Event()
        self._pid: int | None = None

    async def run(self) -> None:
        """Ask until the role ends, or `stop`. Raises TuunelError when it does not answer."""
        import anyio

        with self._scope:
            while await self._ask():
                with anyio.move_on_after(INTERVAL):
                    await self._wish.wait()
                await self._pass_on_wishes()

    def stop(self) -> None:
        """Ask no more."""
        self._scope.cancel()

    def kill(self, number: int) -> None:
        """Have the role end a connection."""
        self._wishes.append(number)
        self._wish.set()

    async def _ask(self) -> bool:
        try:
            document = await self._call("connections")
        except NotRunning:
            self.ended = True
            return False
        pid = document["status"]["pid"]
        self.ended = self._pid not in {None, pid}
        self._pid = pid
        return not self.ended and self._show(document)

    async def _pass_on_wishes(self) -> None:
        import anyio

        while self._wishes:
            try:
                await self._call("kill", connection=self._wishes.pop(0))
            except NotRunning:
                return  # the next question tells
            except TuunelError as error:
                self._emit(Notice(str(error)))
        self._wish = anyio.Event()

    async def _call(self, command: str, **arguments: int) -> Document:
        from anyio import to_thread

        from tuunel.control import call

        return await to_thread.run_sync(partial(call, self._path, command, **arguments), abandon_on_cancel=True)


def follow(table: "LiveTable") -> Show:
    """Show each document on `table`."""
    from tuunel.follow import Follower, totals, unseen

    follower = Follower(table)

    def show(document: Document) -> bool:
        follower.take(document)
        table.totals, table.unseen = totals(document), unseen(document)
        return True

    return show


def write_lines() -> Show:
    """Write each document as an event on stdout, behind the one that says who is watched; False when the reader has gone."""
    from tuunel.follow import ready
    from tuunel.journal import JsonJournal, utc_now

    begun = False

    def show(document: Document) -> bool:
        nonlocal begun
        if not begun:
            begun = True
            JsonJournal(sys.stdout)(ready(document))
        stamp = utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return _put_line(json.dumps({"event": "connections", "time": stamp, **document}))

    return show


def _put_line(line: str) -> bool:
    try:
        put(line)
    except BrokenPipeError:
        with suppress(OSError):  # what waits there can be written nowhere, and Python would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def show_once(document: Document) -> None:
    """Write what the role carries now, as a list on stdout."""
    from tuunel.cli.listing import table
    from tuunel.rows import age, amount, round_trip

    rows = [
        (
            str(each["id"]),
            each["target"],
            each["device"],
            each["door"],
            each["path"],
            each.get("reason") or each["state"],
            *(amount(each[name]) for name in ("up", "down")),
            round_trip(each["rtt"]),
            age(each["age"]),
        )
        for each in document["connections"]
    ]
    put(*table(("ID", "TARGET", "DEVICE", "DOOR", "PATH", "STATE", "UP", "DOWN", "RTT", "AGE"), rows))
