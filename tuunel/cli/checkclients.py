"""Do the lines that `tuunel setup` has written still say what it would write now? Source: docs/reference/doctor.md."""

from collections.abc import Iterator

from tuunel.cli.clientconfig import SETUPS, Client
from tuunel.errors import TuunelError, UsageError
from tuunel.finding import Finding, failed, ok, warning


def check_clients(*, proxy_runs: bool) -> list[Finding]:
    """Compare them; those that name the proxy's port only while it runs and can be asked for it."""
    findings = []
    written = []
    for client in Client if proxy_runs else (Client.SSH,):
        for finding in _check(client):
            findings.append(finding)
            written.append(client.value)
    bad = [finding for finding in findings if finding.state != "ok"]
    return bad or ([ok("clients", f"{', '.join(dict.fromkeys(written))}: as 'tuunel setup' would write it now")] if written else [])


def _check(client: Client) -> Iterator[Finding]:
    try:
        for block in SETUPS[client]().blocks():
            found = block.found()
            if not found:
                continue
            if found == block.text().splitlines():
                yield ok("clients", client.value)
            else:
                yield warning(
                    "clients",
                    f"{block.path} names another program, state directory or port than there is now",
                    f"tuunel setup {client} --write",
                )
    except UsageError:
        return  # the client is not here
    except TuunelError as error:
        yield failed("clients", error)
