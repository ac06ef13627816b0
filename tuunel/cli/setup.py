"""`tuunel setup`: the configuration that makes other programs use tuunel."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

from typing import TYPE_CHECKING, Annotated

import typer

from tuunel.cli.clientconfig import Client
from tuunel.cli.report import put, say
from tuunel.errors import UsageError

if TYPE_CHECKING:
    from tuunel.cli.ownblock import Block


def setup(
    client: Annotated[
        Client,
        typer.Argument(
            help="ssh; git over HTTP; curl; firefox and chromium; pac: a browser's proxy script; env: a shell's variables.",
        ),
    ],
    *,
    write: Annotated[bool, typer.Option("--write", help="Write it to its file instead of printing it.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take out what --write has written.")] = False,
) -> None:
    """Print, or write with --write, the configuration of a client."""
    from tuunel.cli.clientconfig import SETUPS

    if write and undo:
        raise UsageError("--write and --undo exclude each other", "give one of them")
    chosen = SETUPS[client]()
    if undo:
        for block in chosen.blocks():
            say(f"taken out of {block.path}" if take(client, block) else f"nothing of tuunel is in {block.path}")
    elif write:
        for block in chosen.blocks():
            say(f"written to {block.path}" if block.put() else f"{block.path} has it already")
        say(*chosen.next_steps())
    else:
        put(chosen.printed().rstrip("\n"))


def take(client: Client, block: "Block") -> bool:
    """Take one block of a client out; whether there was one."""
    if client is Client.FIREFOX:
        from tuunel.cli import firefox

        return firefox.undo(block.path.parent, block)
    return block.take()
