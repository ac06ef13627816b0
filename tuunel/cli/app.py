"""The command line, put together: `app` holds every command, `main` runs one and turns errors into exit codes."""

from collections.abc import Sequence
from typing import Annotated

import typer

from tuunel.cli import agent, completion, config, demo, doctor, forward, pairing, probe, proxy, relay, service, setup, status, top, verify
from tuunel.cli.configured import configured
from tuunel.cli.report import first_error, put, say_error

app = typer.Typer(
    name="tuunel",
    help="Reach any port of a machine behind NAT through a relay that cannot read what it carries.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - this option only

        put(f"tuunel {version('tuunel')}")
        raise typer.Exit


@app.callback()
def tuunel(
    *,
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")] = False,
) -> None:
    """What stands before every command."""


app.add_typer(relay.app, name="relay")
app.command(cls=configured("agent"))(agent.agent)
app.command()(agent.invite)
app.command()(agent.clients)
app.command()(agent.revoke)
app.command()(pairing.pair)
app.add_typer(pairing.app, name="devices")
app.command()(pairing.rename)
app.command()(pairing.forget)
app.command(cls=configured("proxy"))(proxy.proxy)
app.command(cls=configured("forward"))(forward.forward)
app.add_typer(config.app, name="config")
app.command()(probe.ping)
app.command()(probe.why)
app.command()(probe.bench)
app.command()(verify.verify)
app.command()(status.status)
app.command()(top.top)
app.command()(setup.setup)
app.command()(doctor.doctor)
app.add_typer(service.app, name="service")
app.command()(demo.demo)
app.command()(completion.completion)


@app.command()
def nc(
    host: Annotated[
        str,
        typer.Argument(
            metavar="HOST",
            help="A .tuunel name, the bare name of a device, or HOST:PORT.",
            autocompletion=completion.device_names,
        ),
    ],
    port: Annotated[
        str | None,
        typer.Argument(metavar="PORT", help="The port, unless HOST:PORT is given; unix:/PATH is a unix socket of the device's machine."),
    ] = None,
    *,
    udp: Annotated[bool, typer.Option("-u", help="UDP: a read of stdin is a datagram, and each datagram goes to stdout.")] = False,
) -> None:
    """Connect stdin and stdout to a target behind a device: ssh's ProxyCommand."""
    from tuunel import netcat  # noqa: PLC0415 - this command only

    raise typer.Exit(netcat.main([*(["-u"] if udp else []), *([host] if port is None else [host, port])]))


def main(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name; returns its exit code and has told the person about errors."""
    completion.prepare()
    try:
        app(list(arguments), prog_name="tuunel")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as error:
        told = first_error(error)
        if told is None:
            raise
        say_error(told)
        return told.exit_code
    return 0
