"""What this machine can reach: pair, devices, devices add, rename, forget."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

from typing import TYPE_CHECKING, Annotated

import typer

from tuunel.cli.arguments import AsJson, typed
from tuunel.cli.completion import device_names
from tuunel.cli.listing import table
from tuunel.cli.nextsteps import after_pairing
from tuunel.cli.report import Document, answer, put, say

if TYPE_CHECKING:
    from tuunel.devices import Device, Devices

app = typer.Typer(rich_markup_mode=None)


def pair(
    invite: Annotated[str, typer.Argument(metavar="INVITE", help="The invite that the agent printed; '-' reads it from stdin.")],
    *,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the device: NAME.tuunel.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pair this machine with a device, and enrol it at the relay if need be."""

    def work() -> Document:
        from tuunel.links import parse_invite
        from tuunel.settings import Home

        home, parsed = Home.find(), parse_invite(typed(invite))

        import anyio  # after the check of what was typed: a typo is told at once

        from tuunel.pairing import pair

        return device_document(anyio.run(pair, home, parsed, name))

    answer(work, _show_paired, as_json=as_json)


def _show_paired(document: Document) -> None:
    say(f"paired with {document['name']}, verified end to end", f"device {document['device_id']}", *after_pairing(document["name"]))


@app.callback(invoke_without_command=True)
def devices(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the devices that this machine can reach, and this machine's own device ID."""
    if context.invoked_subcommand is None:
        answer(known_devices, _show_devices, as_json=as_json)


def known_devices() -> Document:
    """This machine's device ID (its key is made if it has none yet) and the devices that it knows."""
    from tuunel.identity import IdentityKey
    from tuunel.settings import Home

    home = Home.find()
    home.ensure()
    identity = IdentityKey.load_or_create(home.identity_key)
    return {"device_id": str(identity.device_id), "devices": [device_document(each) for each in book().devices()]}


def device_document(device: "Device") -> Document:
    """A known device as JSON shows it."""
    return {"name": device.name, "device_id": str(device.id), "relays": [str(relay.address) for relay in device.relays]}


def _show_devices(document: Document) -> None:
    say(f"this machine is {document['device_id']}")
    if not document["devices"]:
        say("no device is known here yet", "next:   tuunel pair INVITE --name NAME   (the agent prints the invite)")
        return
    rows = [(each["name"], each["device_id"], " ".join(each["relays"])) for each in document["devices"]]
    put(*table(("NAME", "DEVICE", "RELAY"), rows))


@app.command()
def add(
    device_id: Annotated[str, typer.Argument(metavar="DEVICE-ID", help="The device ID that its agent shows.")],
    *,
    relay: Annotated[str, typer.Option(metavar="LINK", help="The link of the relay where it waits; '-' reads it from stdin.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the device: NAME.tuunel.")],
    as_json: AsJson = False,
) -> None:
    """Remember a device that admits this machine already, without an invite."""

    def work() -> Document:
        from tuunel.identity import DeviceID
        from tuunel.links import parse_link
        from tuunel.settings import Home

        home, device, link = Home.find(), DeviceID.parse(device_id), parse_link(typed(relay))

        import anyio

        from tuunel.pairing import add_device

        return device_document(anyio.run(add_device, home, device, link, name))

    answer(work, _show_added, as_json=as_json)


def _show_added(document: Document) -> None:
    say(f"added {document['name']}", *after_pairing(document["name"]))


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Its name now.", autocompletion=device_names)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its name from now on.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Give a device another name on this machine."""

    def work() -> Document:
        book().rename(old, new)
        return {"renamed": old, "name": new}

    answer(work, lambda document: say(f"{document['renamed']} is now {document['name']}"), as_json=as_json)


def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device's name.", autocompletion=device_names)],
    *,
    as_json: AsJson = False,
) -> None:
    """Forget a device on this machine. Its agent keeps the grant until it revokes it."""

    def work() -> Document:
        book().forget(name)
        return {"forgot": name}

    answer(work, lambda document: say(f"forgot {document['forgot']}"), as_json=as_json)


def book() -> "Devices":
    """The devices file of this machine."""
    from tuunel.devices import Devices
    from tuunel.settings import Home

    return Devices(Home.find().devices_file)
