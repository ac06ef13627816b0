"""`tuunel relay`: serve, link, devices, revoke."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tuunel.cli.arguments import DEFAULT_DRAIN, DEFAULT_LEVEL, AsJson, AsJsonLines, Drain, LogLevel, Metrics, seconds
from tuunel.cli.configured import configured
from tuunel.cli.listing import count, table, when
from tuunel.cli.nextsteps import after_link
from tuunel.cli.qr import AsQr, next_steps, qr_lines, require_eyes
from tuunel.cli.report import Document, answer, ask_role, put, say

if TYPE_CHECKING:
    from tuunel.configfile import RunningSettings
    from tuunel.events import Emit

app = typer.Typer(help="The relay: run it on a machine that both sides can reach.", no_args_is_help=True, rich_markup_mode=None)

DEFAULT_PORT = 7443
USED: Final = {"tunnels": "tunnels", "opens_per_second": "opens", "bytes_per_second": "rate"}  #: a figure, and its limit's name
USE_TITLES: Final = ("TUNNELS", "OPENS/S", "BYTES/S", "REFUSED")


@app.command(cls=configured("relay"))
def serve(
    context: typer.Context,
    *,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = f"[::]:{DEFAULT_PORT}",
    advertise: Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="The public name that links carry.")] = None,
    open_enrolment: Annotated[bool, typer.Option("--open-enrolment", help="Enrol every device that asks, without a link.")] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT=VALUE", help="Limit each device, or address prefix: device-opens=50/s, prefix-rate=20MB/s. Repeatable."),
    ] = None,
    qr: AsQr = False,
    metrics: Metrics = None,
    as_json: AsJsonLines = False,
    log_level: LogLevel = DEFAULT_LEVEL,
    drain: Drain = DEFAULT_DRAIN,
) -> None:
    """Run the relay. It joins tunnels and cannot read them."""
    from tuunel.address import HostPort
    from tuunel.cli.running import run_role
    from tuunel.relay.limits import Allowances
    from tuunel.relay.server import RelayServer
    from tuunel.settings import Home

    require_eyes(qr=qr, as_json=as_json)
    settings: RunningSettings = context.obj
    home, address, allowances = Home.find(), HostPort.parse(listen, DEFAULT_PORT), Allowances.parse(limit or ())

    def build(emit: "Emit") -> RelayServer:
        return RelayServer(home, listen=address, advertise=advertise, open_enrolment=open_enrolment, allowances=allowances, emit=emit)

    async def reload(role: RelayServer) -> None:
        await role.reload(
            advertise=settings.value("relay.advertise"),
            open_enrolment=settings.value("relay.open-enrolment"),
            allowances=Allowances.parse(settings.value("relay.limit")),
        )

    run_role(
        "relay",
        build,
        as_json=as_json,
        log_level=log_level,
        drain=drain,
        metrics=metrics,
        settings=settings,
        reload=reload,
        next_steps=next_steps(qr=qr),
    )


@app.command()
def link(
    *,
    uses: Annotated[int, typer.Option(metavar="N", min=1, help="How many devices may enrol with it.")] = 1,
    lifetime: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long it is valid.")] = "24h",
    qr: AsQr = False,
    as_json: AsJson = False,
) -> None:
    """Make a link with which a device can enrol at this relay."""
    require_eyes(qr=qr, as_json=as_json)

    def show(document: Document) -> None:
        made = document["link"]
        put(made)
        say(*(qr_lines(made, sys.stderr) if qr else []), *after_link(made))

    answer(lambda: ask_role("relay", "link", uses=uses, **{"for": seconds(lifetime)}), show, as_json=as_json)


@app.command()
def devices(*, as_json: AsJson = False) -> None:
    """List the devices that are enrolled at this relay."""
    answer(lambda: ask_role("relay", "devices"), _show_devices, as_json=as_json)


def _show_devices(document: Document) -> None:
    if not document["devices"]:
        say("no device is enrolled yet", "next:   tuunel relay link")
        return
    limits, prefixes = document.get("limits"), document.get("prefixes")  # a relay that was started before an update has none
    titles = USE_TITLES if limits else ()
    rows = [
        (each["device_id"], _state(each), when(each["last_seen"]), *(_used(each["use"], limits["device"]) if limits else ()), each["label"])
        for each in document["devices"]
    ]
    put(*table(("DEVICE", "STATE", "LAST SEEN", *titles, "LABEL"), rows))
    if limits and prefixes:
        put("", *table(("PREFIX", *titles), [(each["prefix"], *_used(each["use"], limits["prefix"])) for each in prefixes]))


def _used(use: Document, limits: Document) -> Iterator[str]:
    """A device's or prefix's figures beside their limits; what is at its limit has an exclamation mark."""
    from tuunel.rows import amount

    for name, limit in USED.items():
        figures = [amount(each) if limit == "rate" else f"{each:g}" for each in (use[name], limits[name]) if each is not None]
        yield f"{'/'.join(figures)}{'!' if limit in use['at_limit'] else ''}"
    yield str(use["refused"])


def _state(device: Document) -> str:
    if device["banned"]:
        return "banned"
    role = "agent" if device["agent"] else "forward"
    return f"{role}, online" if device["online"] else "offline"


@app.command()
def revoke(
    device: Annotated[str, typer.Argument(metavar="ID", help="The device ID.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Ban a device from this relay, and close everything that it has open."""
    from tuunel.identity import DeviceID

    answer(lambda: ask_role("relay", "revoke", device=str(DeviceID.parse(device))), _show_revoked, as_json=as_json)


def _show_revoked(document: Document) -> None:
    say(f"banned {document['revoked']}; {count(document['cut'], 'connection')} closed")
