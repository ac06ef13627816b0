"""`tuunel agent`, and what is asked of a running one: invite, clients, revoke."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tuunel.cli.arguments import DEFAULT_DRAIN, DEFAULT_LEVEL, AsJson, AsJsonLines, Drain, LogLevel, Metrics, seconds, typed
from tuunel.cli.completion import client_names
from tuunel.cli.listing import count, duration, table, when
from tuunel.cli.nextsteps import after_invite
from tuunel.cli.qr import AsQr, next_steps, qr_lines, require_eyes
from tuunel.cli.report import Document, answer, ask_role, put, say

if TYPE_CHECKING:
    from tuunel.configfile import RunningSettings
    from tuunel.identity import DeviceID

ENROLLED = "enrolled"


def agent(
    context: typer.Context,
    link: Annotated[
        str | None,
        typer.Argument(
            metavar="LINK", help="The relay's link, needed once on a machine that is enrolled nowhere; '-' reads it from stdin."
        ),
    ] = None,
    *,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="CLIENT-ID|enrolled", help="Admit this client, or every device enrolled at the relay. Repeatable."),
    ] = None,
    qr: AsQr = False,
    metrics: Metrics = None,
    as_json: AsJsonLines = False,
    log_level: LogLevel = DEFAULT_LEVEL,
    drain: Drain = DEFAULT_DRAIN,
) -> None:
    """Make this machine reachable through a relay."""
    from tuunel.links import parse_link
    from tuunel.settings import Home

    require_eyes(qr=qr, as_json=as_json)
    settings: RunningSettings = context.obj
    home = Home.find()
    relay = parse_link(typed(link)) if link is not None else None
    clients, admit_enrolled = admitted(allow or ())

    from tuunel.agent import Agent  # after the check of what was typed: a typo is told at once
    from tuunel.cli.running import run_role

    run_role(
        "agent",
        lambda emit: Agent(home, link=relay, allow=clients, admit_enrolled=admit_enrolled, emit=emit),
        as_json=as_json,
        log_level=log_level,
        drain=drain,
        metrics=metrics,
        settings=settings,
        reload=lambda role: role.reload(*admitted(settings.value("agent.allow") or ())),
        next_steps=next_steps(qr=qr),
    )


def admitted(allow: Sequence[str]) -> tuple[list["DeviceID"], bool]:
    """The clients that `--allow` names, and whether it says `enrolled`. Raises UsageError for anything else."""
    from tuunel.identity import DeviceID

    clients = [DeviceID.parse(each) for each in allow if each.lower() != ENROLLED]
    return clients, len(clients) < len(allow)


def invite(
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="What it opens: '*', 'internet', HOST:PORT, a CIDR or a port range. Repeatable."),
    ] = None,
    access: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="How long the access lasts, like 8h; without it, until revoked.")
    ] = None,
    uses: Annotated[int, typer.Option(metavar="N", min=1, help="How many machines may pair with it.")] = 1,
    name: Annotated[str | None, typer.Option(metavar="WHO", help="What this machine calls the client.")] = None,
    qr: AsQr = False,
    as_json: AsJson = False,
) -> None:
    """Make an invite with which another machine can pair with this one, while the agent runs."""
    require_eyes(qr=qr, as_json=as_json)

    def work() -> Document:
        lasting = seconds(access) if access is not None else None
        return ask_role("agent", "invite", targets=checked(target or ["*"]), uses=uses, name=name or "", **{"for": lasting})

    answer(work, partial(_show_invite, qr=qr), as_json=as_json)


def checked(patterns: Sequence[str]) -> list[str]:
    """The target patterns as they are. Raises UsageError at the first that cannot be meant."""
    from tuunel.policy import parse_target_pattern

    for pattern in patterns:
        parse_target_pattern(pattern)
    return list(patterns)


def _show_invite(document: Document, *, qr: bool) -> None:
    put(document["invite"])
    lasting = "until revoked" if document["access"] is None else f"for {duration(document['access'])}"
    say(
        f"opens {' '.join(document['targets'])} {lasting}",
        f"to be used until {when(document['expires'])}",
        *(qr_lines(document["invite"], sys.stderr) if qr else []),
        *after_invite(document["invite"]),
    )


def clients(*, as_json: AsJson = False) -> None:
    """List who may connect to this machine, and until when."""
    answer(lambda: ask_role("agent", "clients"), _show_clients, as_json=as_json)


def _show_clients(document: Document) -> None:
    if not document["clients"] and not document["invites"]:
        say("nobody may connect to this machine yet", "next:   tuunel invite")
    if document["clients"]:
        rows = [(each["name"], each["device_id"], " ".join(each["targets"]), _until(each["expires"])) for each in document["clients"]]
        put(*table(("CLIENT", "DEVICE", "TARGETS", "UNTIL"), rows))
    if document["invites"]:
        rows = [(each["id"], each["name"], str(each["uses"]), _until(each["expires"])) for each in document["invites"]]
        put(*table(("OPEN INVITE", "FOR", "USES", "UNTIL"), rows))


def _until(expires: int | None) -> str:
    return when(expires) if expires else "no limit"


def revoke(
    who: Annotated[str, typer.Argument(metavar="WHO", help="The client's name or device ID.", autocompletion=client_names)],
    *,
    as_json: AsJson = False,
) -> None:
    """Take back a client's access to this machine, and cut its live tunnels."""
    answer(lambda: ask_role("agent", "revoke", who=who), _show_revoked, as_json=as_json)


def _show_revoked(document: Document) -> None:
    say(f"revoked {document['revoked']}; {count(document['cut'], 'live tunnel')} cut")
