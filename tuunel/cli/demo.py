"""`tuunel demo`: the whole system on this machine, with throw-away state."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import sys
from typing import Annotated

import typer

from tuunel.cli.arguments import DEFAULT_DRAIN, AsJsonLines, Drain
from tuunel.cli.colours import Colour, painted
from tuunel.cli.progress import Progress
from tuunel.cli.report import Document, answer, put, say


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Fetch through every front door, print what was seen, and exit.")] = False,
    as_json: AsJsonLines = False,
    drain: Drain = DEFAULT_DRAIN,
) -> None:
    """Run relay, agent, proxy and a sample site on this machine."""
    from tuunel.demo import Demo

    if not once:
        from tuunel.cli.running import run_role

        run_role("demo", Demo, as_json=as_json, drain=drain)
        return
    failed = False

    def work() -> Document:
        nonlocal failed
        import anyio

        from tuunel.demo import visit_every_door

        with Progress(sys.stderr) as progress:
            visits = anyio.run(visit_every_door, progress)
        failed = not all(visit.ok for visit in visits)
        return {"ok": not failed, "visits": [visit.document() for visit in visits]}

    answer(work, _show_visits, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _show_visits(document: Document) -> None:
    for visit in document["visits"]:
        mark = painted("ok    ", Colour.GREEN, sys.stdout) if visit["ok"] else painted("FAILED", Colour.RED, sys.stdout)
        put(f"{mark}  {visit['door']:<14}{visit['seconds'] * 1000:6.0f} ms   {visit['saw']}")
    say("every front door works" if document["ok"] else "some front doors do not work")
