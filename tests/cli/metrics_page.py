"""Writes docs/reference/metrics.md from the table of metrics: `python -m tests.cli.reference`."""

from pathlib import Path

from tuunel.metrics import KINDS, PREFIX, Kind

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
HEAD = """\
# Metrics

Written from the program by `python -m tests.cli.reference`; a test keeps it true.

`tuunel relay serve`, `tuunel agent` and `tuunel proxy` serve metrics for Prometheus at `/metrics` where `--metrics [HOST:]PORT` says.
Nothing is served without it. [How to observe a running tuunel](../howto/observe.md) has a scrape configuration, alerts and a dashboard.

- **Loopback is the default**: a bare port listens on both loopbacks, so every program of this machine can read it, and nothing else. A web
  page cannot: a request whose `Host` is no loopback address is refused there.
- **Any other address is open to whoever can connect to it**: there is no password and no encryption. They learn how much is carried, when,
  and how it fails; not who carries it and where to. The command says so when it starts. A firewall, or a port that only the
  monitor's network reaches, is the least that it needs.
- **Guests of an agent never reach it**: like every listener of tuunel it is announced to the agent of the same `TUUNEL_HOME`
  ([policy](../spec/policy.md)).
- **No label names a device, a target or a person.** Each such name would be a new time series for ever, and whoever reads the metrics
  would learn who talks to whom, which not even the relay's operator needs to know. The only name among them is the address of
  the relay, at its devices. Single connections are in the log.
- The text format and OpenMetrics are spoken. `GET` only; one request a connection; at most 32 at once.

| metric | type | labels | at | |
|---|---|---|---|---|
"""
TAIL = """\
| `process_...` | | | relay, agent, proxy | CPU seconds, memory, file descriptors and start time of the process (Linux). |

Counters count since the process started. A byte counter never goes back: where datagrams that were counted are dropped after all, it stands
still until it is right again.

## Causes of a refused handshake

| `cause` | the connection |
|---|---|
| `crowded` | came while too many had not proved who they are: in all, or from one address |
| `rate` | was one too many from its address in a short time |
| `broken` | was given up: it was silent, spoke something else, or went away. Scanners look like this |
| a reason | was told this reason: [errors](errors.md) |
"""


def render() -> str:
    """Return the page as it must be."""
    return HEAD + "".join(row(kind) for kind in KINDS) + TAIL


def row(kind: Kind) -> str:
    labels = ", ".join(f"`{label}`" for label in kind.labels)
    return f"| `{PREFIX}{kind.name}` | {kind.type} | {labels} | {', '.join(kind.roles)} | {kind.help} |\n"
