"""Writes docs/reference/settings.md from the table of settings: `python -m tests.cli.reference`."""

import json
from pathlib import Path

from tests.cli.flags import flag_of
from tuunel.config import ROLES, SETTINGS, Kind, Setting

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
HEAD = """\
# Settings

Written from the program by `python -m tests.cli.reference`; a test keeps it true.

The long-running commands take what their command line leaves open from the environment and from one file. **A flag stands above the
environment, the environment above the file, and the file above the default.** Every setting is a flag of its command and has its name.

- The file is `config.toml` in `TUUNEL_HOME`; without that, in the platform's usual place for settings (`~/.config/tuunel` on Linux,
  `~/Library/Application Support/tuunel` on macOS). It is [TOML](https://toml.io), and need not exist.
- It must be yours or root's, and nobody else may be able to write it: settings open doors.
- In the environment a list has spaces between its items, and a switch is `1` or `0` (`true`, `yes`, `on`; `false`, `no`, `off`). A flag
  that switches something on cannot switch it off: use the environment for that. An empty variable is none.
- `tuunel config show` lists each value and where it comes from; `tuunel config check` names every problem, and ends with 2 if there is one.
- A command does not start with settings that cannot be meant. It says which line, what is allowed, and the nearest known name. A variable
  that merely looks like a setting is not refused, because Kubernetes makes such variables from the names of services; `config check`
  names it.
- **Secrets do not belong in it.** Links and invites are given once; the proxy's password is in the file `proxy-password` of the state
  directory, mode 0600. Whatever looks like a link is refused.

```toml
[proxy]
listen = "localhost:1080"
route = ["*.lab.example.com=home", "192.168.1.0/24=home"]
other = "refuse"

[log]
level = "notice"          # no line for each connection
```

## Changing them while it runs

`SIGHUP` (`systemctl reload`, `kill -HUP`) makes a running command read the file again. Nothing that is connected is dropped. The settings
marked *at once* change then; for the others a notice says that they take effect at the next start. What the command line or the
environment gave stays. When the file cannot be meant, an alarm says why and everything stays as it was.

The same signal has the books read again. Names (`devices.json`) and grants (`grants.json`) are read whenever they are used, so an edited
file counts at once; the signal also brings the relay's list of who may knock up to date, and says when a book is damaged. **A
`grants.json` that is damaged admits nobody**, and cuts who is connected: what cannot be read grants nothing.

A terminal that is closed sends the same signal: a command that ran there ends, as it does at SIGTERM, unless `nohup` has started it.
"""


def render() -> str:
    """Return the page as it must be."""
    return HEAD + "".join(section(table) for table in (*ROLES, "log"))


def section(table: str) -> str:
    command = {"relay": "`tuunel relay serve`", "log": "each of them"}.get(table, f"`tuunel {table}`")
    rows = "".join(row(setting) for setting in SETTINGS if setting.table == table)
    return f"\n## `[{table}]`: {command}\n\n| key | environment | default | SIGHUP | |\n|---|---|---|---|---|\n{rows}"


def row(setting: Setting) -> str:
    default = "" if setting.default is None else f"`{json.dumps(setting.default)}`"
    when = "at once" if setting.live else "at the next start"
    takes = {each: each.value for each in Kind} | {Kind.TEXT: setting.allowed, Kind.LIST: f"a list of {setting.allowed}"}
    return f"| `{setting.key}` | `{setting.environment}` | {default} | {when} | {flag_of(setting).help} Takes {takes[setting.kind]}. |\n"
