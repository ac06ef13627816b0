"""Writes docs/reference/cli.md from the command line itself, and its sister pages: `python -m tests.cli.reference`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from tests.cli import manpages, metrics_page, settings_page
from tuunel.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
HEAD = """\
# Commands

Written from the program by `python -m tests.cli.reference`; a test keeps it true.

- `TUUNEL_HOME` names the one directory for all state; else it is the platform's usual place.
- Standard output carries data only; what people read goes to standard error.
- `--json`: a long-running command writes [events](events.md), one JSON object a line; any other one JSON document.
- What a long-running command takes as a flag may stand in the environment or in a file, too: [settings](settings.md).
- `tuunel --version` prints the version; `--help` behind any command says what it takes.
- Exit codes are listed in [errors](errors.md).
- `-` in place of a link or an invite reads it from standard input.
- Ctrl-C or SIGTERM ends every command: listeners close, connections get `--drain` seconds to finish. A second signal ends it at once.

## JSON documents

Times are unix seconds; a time that is not known, or never comes, is `null`.

| command | document |
|---|---|
| `relay link` | `{"link"}` |
| `relay devices` | `{"devices": [DEVICE], "prefixes": [{"prefix", USE}], "limits": {"device": LIMITS, "prefix": LIMITS}}` |
| `relay revoke`, `revoke` | `{"revoked", "cut"}`: the name or device ID, and how many connections were cut |
| `invite` | `{"invite", "expires"}` |
| `clients` | `{"clients": [{"name", "device_id", "targets", "created", "expires"}], "invites": [{"id", "name", "uses", "expires"}]}` |
| `pair`, `devices add` | `{"name", "device_id", "relays"}` |
| `devices` | `{"device_id", "devices": [{"name", "device_id", "relays"}]}`: the first is this machine's own |
| `rename` | `{"renamed", "name"}`: the old and the new name |
| `forget` | `{"forgot"}` |
| `config show` | `{"file", "settings": [{"name", "value", "source", "where", "environment"}]}` |
| `config check` | `{"file", "exists", "ok", "settings", "problems": [{"message", "advice"}], "ignored"}` |
| `ping` | `{"name", "device_id", "sent", "answered", "loss", PARTS, "note", "rounds": [{"number", "path", "relay", PARTS, "error"}]}` |
| `why` | `{"target", "works", "hops": [{"hop", "ok", "said", "seconds"}]}`; `ok` is `null` for what is missing and not needed |
| `bench` | `{"name", "paths": [{"path", "relay", "idle", "busy", "up", "down", "error"}]}` |
| `verify` | `{"name", "kind", "device_id", "own_device_id", "digits"}`; `kind` is `device`, `client` or `unnamed` |
| `status` | `{"home", "running", "silent", "not_running": [{"role", "start", "set_up"}], "devices": [{"name", "device_id", "online"}]}` |
| `demo --once` | `{"ok", "visits": [{"door", "ok", "seconds", "saw"}]}` |
| `doctor` | `{"ok", "checks": [{"check", "state", "what", "fix"}]}`: `state` is `ok`, `warning` or `wrong`; [the checks](doctor.md) |
| any, when it fails | `{"error": {"message", "advice", "exit", "reason", "speaker"}}` |

PARTS are `"proxy_relay", "relay_agent", "end_to_end"`: round trips in seconds, over all rounds as `{"min", "avg", "max", "mdev"}`,
as are those of `bench`. Its rates are `{"bytes", "seconds", "bytes_per_second"}`. `ping`, `why` and `bench` write their document also
when they fail, with `error` beside the rest: when nobody answered, the way does not work, no path works.

DEVICE is `{"device_id", "label", "created", "last_seen", "online", "agent", "banned", "sponsor", USE}`,
USE `"use": {"tunnels", "opens_per_second", "bytes_per_second", "refused", "at_limit"}`, LIMITS `{"tunnels", "opens_per_second",
"bytes_per_second"}`, `null` where there is none; [what they mean](control-socket.md#commands-of-the-relay).

`status`: `running` has the answer of each role to `status` ([control socket](control-socket.md)), and the `name` of its socket; `silent`
has the names of those that do not answer within 5 seconds. `online` of a device is true when a tunnel leads there now, and null when nobody
here can know. It ends with 0 when something runs, all of it answers and every relay that it uses is online; with 61 when nothing runs; with
1 when something does not answer; with 32 when a relay is not online.
"""


def render() -> str:
    """Return the page as it must be."""
    return HEAD + "".join(section(path, command) for path, command in commands("tuunel", get_command(app)))


def commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield path, command
    for name, child in children.items():
        yield from commands(f"{path} {name}", child)


def section(path: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([path, *(shown(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [row(shown(each), each) for each in arguments] + [row(spelt(each), each) for each in options]
    table = "\n| | |\n|---|---|\n" + "".join(rows) if rows else ""
    return f"\n## `{path}`\n\n```\n{usage}\n```\n\n{command.help}\n{table}"


def shown(argument: Any) -> str:
    name = argument.metavar or "|".join(argument.type_descriptor.choices)
    return name if argument.required else f"[{name}]"


def spelt(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return "/".join(option.opts) + value + ("..." if option.multiple else "")


def row(name: str, parameter: Any) -> str:
    default = parameter.default
    note = f" Default: `{default}`." if default not in (None, False, ()) and not callable(default) else ""
    needed = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    return f"| `{name.replace('|', chr(92) + '|')}` | {parameter.help}{needed}{note} |\n"


if __name__ == "__main__":
    PAGE.write_text(render())
    metrics_page.PAGE.write_text(metrics_page.render())
    manpages.write()
    settings_page.PAGE.write_text(settings_page.render())
