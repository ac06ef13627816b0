"""`tuunel forward`: static forwards for apps that know no proxy."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

from typing import TYPE_CHECKING, Annotated

import typer

from tuunel.cli.arguments import DEFAULT_DRAIN, DEFAULT_LEVEL, AsJsonLines, Drain, LogLevel

if TYPE_CHECKING:
    from tuunel.configfile import RunningSettings


def forward(
    context: typer.Context,
    *,
    forwards: Annotated[
        list[str],
        typer.Argument(
            metavar="[BIND:]PORT:HOST.NAME.tuunel:PORT[/udp]",
            help="Where to listen (127.0.0.1 without BIND), and where it leads. A unix socket is /PATH here, unix:/PATH there.",
        ),
    ],
    http_hosts: Annotated[
        str | None,
        typer.Option("--http-hosts", metavar="HOST,...", help="Carry HTTP requests for these hosts only: no web page can get through."),
    ] = None,
    as_json: AsJsonLines = False,
    log_level: LogLevel = DEFAULT_LEVEL,
    drain: Drain = DEFAULT_DRAIN,
) -> None:
    """Lead ports of this machine to services behind a device, for apps that know no proxy."""
    from tuunel.cli.running import run_role
    from tuunel.forward import Forward
    from tuunel.forwarding import parse_forwardings
    from tuunel.hostguard import parse_hosts
    from tuunel.settings import Home

    settings: RunningSettings = context.obj
    home, forwardings = Home.find(), parse_forwardings(forwards)
    hosts = frozenset[str]() if http_hosts is None else parse_hosts(http_hosts)
    run_role(
        "forward",
        lambda emit: Forward(home, forwardings=forwardings, http_hosts=hosts, emit=emit),
        as_json=as_json,
        log_level=log_level,
        drain=drain,
        settings=settings,
        reload=lambda role: role.reload(),
    )
