"""`tuunel verify`: digits for two people to compare."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

from typing import Annotated

import typer

from tuunel.cli.arguments import AsJson
from tuunel.cli.completion import peer_names
from tuunel.cli.report import Document, answer, put, say
from tuunel.events import printable


def verify(
    who: Annotated[
        str, typer.Argument(metavar="NAME", help="A device or a client, by its name here or by its device ID.", autocompletion=peer_names)
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Show digits that are the same on both machines exactly when both know each other's true key."""

    def work() -> Document:
        from tuunel.probe.verify import verify
        from tuunel.settings import Home

        done = verify(Home.find(), who)
        peer = {"name": done.peer.name, "kind": done.peer.kind, "device_id": str(done.peer.device)}
        return {**peer, "own_device_id": str(done.own), "digits": done.digits}

    answer(work, _show_verification, as_json=as_json)


def _show_verification(document: Document) -> None:
    put(document["digits"])
    whom = {"device": "the device", "client": "the client", "unnamed": "a machine without a name here:"}[document["kind"]]
    say(
        f"for this machine and {whom} {printable(document['name'])}",
        "next, on the other machine:   tuunel verify NAME   (what it calls this one)",
        "equal digits: nobody is in between. If not: pair again, over a way you trust",
    )
