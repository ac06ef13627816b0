"""`tuunel status`: what runs on this machine, how it stands, and how to start what does not."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from tuunel.cli.arguments import AsJson
from tuunel.cli.listing import count
from tuunel.cli.report import START, Document, answer, put
from tuunel.errors import ANSWERS, NotRunning, Reason, TuunelError
from tuunel.events import printable

if TYPE_CHECKING:
    from tuunel.settings import Home

PATIENCE: Final = 5.0  #: seconds for a role to answer: one that takes longer is in trouble
INDENT: Final = 15  #: characters before what is said of a role: more than `forward-PID` has


def status(*, as_json: AsJson = False) -> None:
    """Show the parts of tuunel that run on this machine, and how to start the others."""
    document: Document = {}

    def work() -> Document:
        from tuunel.settings import Home

        document.update(survey(Home.find()))
        return document

    answer(work, _show, as_json=as_json)
    raise typer.Exit(exit_code(document))


def exit_code(document: Document) -> int:
    """0: something runs, all of it answers, and every relay is online. Else the code of what is missing, as docs/reference/errors.md."""
    if not document["running"] and not document["silent"]:
        return NotRunning.exit_code
    if document["silent"]:
        return TuunelError.exit_code
    online = all(relay["state"] == "online" for each in document["running"] for relay in each["relays"])
    return 0 if online else ANSWERS[Reason.RELAY_UNREACHABLE].exit


def survey(home: "Home") -> Document:
    """What runs under `home`, what does not, and which devices are known to be there."""
    found = answering(home)
    running = [{"name": name, **each} for name, each in found.items() if each is not None]
    devices = _devices(home, running)
    return {
        "home": str(home.root),
        "running": running,
        "silent": [name for name, each in found.items() if each is None],
        "not_running": [_missing(role, home, knows_devices=bool(devices)) for role in START if role not in found],
        "devices": devices,
    }


def answering(home: "Home") -> dict[str, Document | None]:
    """The roles that run under `home` by the names of their sockets, each with its `status`; None when it does not answer in time."""
    from tuunel.control import call

    order = {role: place for place, role in enumerate(START)}
    names = sorted((path.stem for path in home.run_dir.glob("*.sock")), key=lambda name: (order.get(name, len(order)), name))
    found: dict[str, Document | None] = {}
    for name in names:
        try:
            found[name] = call(home.socket(name), "status", PATIENCE)
        except NotRunning:
            continue  # a crash left the socket
        except TuunelError:
            found[name] = None
    return found


def _missing(role: str, home: "Home", *, knows_devices: bool) -> Document:
    marks = {"relay": (home.relay_dir / "root.pem").exists(), "agent": (home.root / "agent.json").exists(), "proxy": knows_devices}
    set_up = marks[role]
    return {"role": role, "start": START[role] if set_up or role != "agent" else f"{START[role]} LINK", "set_up": set_up}


def _devices(home: "Home", running: Sequence[Document]) -> list[Document]:
    """The devices that this machine can reach: `online` is True when a tunnel leads there now, None when nobody here can know."""
    from tuunel.devices import Devices

    reached = {device["device_id"] for each in running if each["role"] in {"proxy", "forward"} for device in each["devices"]}
    known = Devices(home.devices_file).devices()
    return [{"name": each.name, "device_id": str(each.id), "online": True if str(each.id) in reached else None} for each in known]


def _show(document: Document) -> None:
    for each in document["running"]:
        _put(each["name"], *_said_of(each))
    for name in document["silent"]:
        _put(name, f"runs, and does not answer within {PATIENCE:.0f} s: look at its log, or end it and start it again")
    for each in document["not_running"]:
        never = "" if each["set_up"] else ", and never has"
        _put(each["role"], f"does not run here{never}; start it with:   {each['start']}")
    for device in document["devices"]:
        _put(
            device["name"], "online: a tunnel leads there" if device["online"] else "not in use, so nobody here knows whether it is online"
        )


def _put(name: str, *lines: str) -> None:
    put(*(f"{head:<{INDENT}}{printable(line, 500)}" for head, line in zip((printable(name), *[""] * len(lines)), lines, strict=False)))


def _said_of(role: dict[str, Any]) -> Iterator[str]:
    from tuunel.rows import age, amount, round_trip

    where = f", on {', '.join(role['listen'])}" if role["listen"] else ""
    yield f"runs as process {role['pid']} for {age(time.time() - role['started'])}{where}"
    for place in role.get("forwards", ()):
        yield f"{place['listen']} leads to {place['target']}"
    for relay in role["relays"]:
        trip = f", {round_trip(relay['rtt'])}" if relay["rtt"] is not None else ""
        yield f"relay {relay['relay']} {relay['state']}{trip}{': ' if relay['detail'] else ''}{relay['detail']}"
    carried = role["connections"]
    paths = ", ".join(f"{number} {path}" for path, number in carried["paths"].items() if number)
    failed = f" ({carried['failed']} failed)" if carried["failed"] else ""
    moved = f", after {amount(carried['up'])} up and {amount(carried['down'])} down" if carried["ended"] else ""
    yield f"{carried['open']} open{f' ({paths})' if paths else ''}, {carried['ended']} ended{failed}{moved}"
    for shown in role.get("uses", ()):
        if shown["use"]["at_limit"]:
            yield f"{shown['kind']} {shown['holder']} is at its limit: {', '.join(shown['use']['at_limit'])}"
    for device in role["devices"]:
        agent = " (agent)" if device.get("agent") else ""
        yield f"{device['name'] or device['device_id']}{agent} online, {count(device['tunnels'], 'tunnel')}"
