"""How good the way to a device is, and which part of it is broken: ping, why, bench."""
# ruff: noqa: PLC0415 - a command imports what it uses when it runs: start-up time is what people feel

import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from tuunel.cli.arguments import AsJson
from tuunel.cli.completion import device_names
from tuunel.cli.listing import milliseconds, scaled
from tuunel.cli.report import Document, error_document, put, say_error, what_happened
from tuunel.errors import TuunelError
from tuunel.events import printable

if TYPE_CHECKING:
    from tuunel.address import HostPort
    from tuunel.devices import Device
    from tuunel.probe.bench import PathResult, Phase, Rate
    from tuunel.probe.ping import Ping, Round
    from tuunel.probe.why import Hop
    from tuunel.settings import Home

DRAW_INTERVAL: Final = 0.2  # seconds between two drawings of what bench is at
DeviceName = Annotated[
    str, typer.Argument(metavar="NAME", help="The device: its name here, or its device ID.", autocompletion=device_names)
]
MAX_SAID: Final = 500  # characters: as of any error
MARKS: Final = {True: "ok", False: "FAIL", None: "note"}

T = TypeVar("T")


def ping(
    name: DeviceName,
    *,
    number: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="How many rounds; without it, until Ctrl-C.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how long a round trip takes over each part of the way to a device, once a second."""
    from tuunel.probe.ping import Ping

    def build() -> "Ping":
        home, device = _device(name)
        if not as_json:
            put(f"PING {device.name}, {device.id}")
        return Ping(home, device, (lambda _: None) if as_json else _put_round)

    probe = _or_error(build, as_json=as_json)
    _until_interrupted(lambda: probe.run(number))
    if not probe.rounds:
        raise typer.Exit(128 + signal.SIGINT)
    answered = any(each.end_to_end is not None for each in probe.rounds)
    last = None if answered else probe.rounds[-1].failure
    if as_json:
        put(json.dumps(_ping_document(probe) | (error_document(last) if last else {})))
    else:
        put(*_summary(probe))
    _end(last, as_json=as_json)


def _put_round(asked: "Round") -> None:
    parts = (("proxy-relay", asked.proxy_relay), ("relay-agent", asked.relay_agent), ("end-to-end", asked.end_to_end))
    known = [f"{part}={milliseconds(seconds)}" for part, seconds in parts if seconds is not None]
    found = f"path={asked.path}" if asked.failure is None else f"no answer: {what_happened(asked.failure)}"
    put(" ".join([f"seq={asked.number}", *known, *(["ms"] if known else []), found]))


def _summary(probe: "Ping") -> list[str]:
    answered = sum(each.end_to_end is not None for each in probe.rounds)
    sent = len(probe.rounds)
    relays = " ".join(dict.fromkeys(each.relay for each in probe.rounds if each.relay))
    lines = ["", f"--- {sent} sent, {answered} answered, {100 * (sent - answered) / sent:.0f}% lost; by the relay {relays}"]
    for part, figures in _figures(probe).items():
        if figures is not None:
            shown = "/".join(milliseconds(figures[key]) for key in ("min", "avg", "max", "mdev"))
            lines.append(f"{part.replace('_', '-'):<12} min/avg/max/mdev = {shown} ms")
    return [*lines, f"relay-agent  not known: {printable(probe.note)}"] if probe.note else lines


def _figures(probe: "Ping") -> dict[str, dict[str, float] | None]:
    parts = ("proxy_relay", "relay_agent", "end_to_end")
    return {part: _figures_of([getattr(each, part) for each in probe.rounds]) for part in parts}


def _figures_of(samples: "Sequence[float | None]") -> dict[str, float] | None:
    from dataclasses import asdict

    from tuunel.probe.way import Figures

    figures = Figures.of([sample for sample in samples if sample is not None])
    return None if figures is None else asdict(figures)


def _ping_document(probe: "Ping") -> Document:
    answered = sum(each.end_to_end is not None for each in probe.rounds)
    rounds = [
        {
            "number": each.number,
            "path": each.path,
            "relay": each.relay,
            "proxy_relay": each.proxy_relay,
            "relay_agent": each.relay_agent,
            "end_to_end": each.end_to_end,
            "error": None if each.failure is None else error_document(each.failure)["error"],
        }
        for each in probe.rounds
    ]
    counted = {"sent": len(rounds), "answered": answered, "loss": 1 - answered / len(rounds)}
    return {
        "name": probe.device.name,
        "device_id": str(probe.device.id),
        **counted,
        **_figures(probe),
        "note": probe.note,
        "rounds": rounds,
    }


def why(
    host: Annotated[
        str,
        typer.Argument(
            metavar="HOST", help="A .tuunel name, the bare name of a device, any other host, or HOST:PORT.", autocompletion=device_names
        ),
    ],
    port: Annotated[str | None, typer.Argument(metavar="PORT", help="The port, unless HOST:PORT is given.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Walk from an app to a target, part by part, and tell the first that is broken, who says so, and what to do."""
    import anyio

    from tuunel.probe.why import Why
    from tuunel.settings import Home

    def build() -> Why:
        home = Home.find()
        home.ensure()
        return Why(home, _target(host, port), (lambda _: None) if as_json else _put_hop)

    probe = _or_error(build, as_json=as_json)
    broken = anyio.run(probe.walk)
    if as_json:
        hops = [{"hop": each.name, "ok": each.ok, "said": each.said, "seconds": each.seconds} for each in probe.hops]
        document = {"target": str(probe.target), "works": broken is None, "hops": hops}
        put(json.dumps(document | (error_document(broken) if broken else {})))
    elif broken is None:
        put("all of the way works")
    if broken is not None:
        raise typer.Exit(broken.exit_code)


def _put_hop(hop: "Hop") -> None:
    said = hop.said if hop.error is None or hop.ok is None else what_happened(hop.error)
    taken = "" if hop.seconds is None else f"{milliseconds(hop.seconds)} ms"
    put(f"{MARKS[hop.ok]:<4} {hop.name:<9} {taken:>8}  {printable(said, MAX_SAID)}")
    if hop.error is not None and hop.error.advice:
        put(f"{'':<25}{printable(hop.error.advice, MAX_SAID)}")


def _target(host: str, port: str | None) -> "HostPort":
    """What `HOST PORT` or `HOST:PORT` means; a bare NAME is NAME.tuunel, as for nc. Raises UsageError."""
    from tuunel.address import HostPort
    from tuunel.errors import UsageError

    bracketed = f"[{host}]" if port is not None and ":" in host else host
    target = HostPort.parse(bracketed if port is None else f"{bracketed}:{port}")
    if target.port == 0:
        raise UsageError("nothing listens on port 0", "name the port of the service, for example 22")
    bare = not {".", ":"} & set(target.host) and target.host.lower() != "localhost"
    return HostPort(f"{target.host}.tuunel", target.port) if bare else target


def bench(
    name: DeviceName,
    *,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=10, help="How long each direction is measured.")] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Measure how fast the way to a device is, up and down, and its round trip while idle and while busy."""
    import anyio

    from tuunel.probe.bench import Bench

    progress = _Progress()

    def build() -> Bench:
        home, device = _device(name)
        return Bench(home, device, seconds, progress.tell)

    probe = _or_error(build, as_json=as_json)
    try:
        results = anyio.run(probe.run)
    finally:
        progress.clear()
    failures = [result.failure for result in results if result.failure is not None]
    broken = failures[0] if len(failures) == len(results) else None
    if as_json:
        document = {"name": name, "paths": [_path_document(result) for result in results]}
        put(json.dumps(document | (error_document(broken) if broken else {})))
    else:
        put(*(line for result in results for line in _path_lines(result)))
    _end(broken, as_json=as_json)


class _Progress:
    """One line at a terminal that says what is being measured; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._drawn = 0.0

    def tell(self, result: "PathResult", phase: "Phase", elapsed: float, size: int) -> None:
        """See `tuunel.probe.bench.Progress`. Cheap when there is nothing new to draw."""
        now = time.monotonic()
        if self._shown and now - self._drawn > DRAW_INTERVAL:
            self._drawn = now
            rate = f"  {scaled(size / elapsed, 'B')}/s" if size and elapsed else ""
            sys.stderr.write(f"\r\x1b[Kmeasuring {phase:<4} {elapsed:4.1f} s{rate}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _path_lines(result: "PathResult") -> list[str]:
    lines = [f"by the {result.path} {result.relay}"]
    for what, samples in (("idle", result.idle), ("busy", result.busy)):
        figures = _figures_of(samples)
        if figures is not None:
            lines.append(f"  round trip, {what}  {milliseconds(figures['avg'])} ms  (at most {milliseconds(figures['max'])} ms)")
    for what, rate in (("up", result.up), ("down", result.down)):
        if rate is not None:
            per_second = f"{scaled(rate.per_second, 'B')}/s, {scaled(8 * rate.per_second, 'bit')}/s"
            lines.append(f"  {what:<16}  {per_second}  ({scaled(rate.size, 'B')} in {rate.seconds:.2f} s)")
    if result.failure is not None:
        lines.append(f"  {what_happened(result.failure)}")
    return lines


def _path_document(result: "PathResult") -> Document:
    return {
        "path": result.path,
        "relay": result.relay,
        "idle": _figures_of(result.idle),
        "busy": _figures_of(result.busy),
        "up": _rate_document(result.up),
        "down": _rate_document(result.down),
        "error": None if result.failure is None else error_document(result.failure)["error"],
    }


def _rate_document(rate: "Rate | None") -> Document | None:
    return None if rate is None else {"bytes": rate.size, "seconds": rate.seconds, "bytes_per_second": rate.per_second}


# what the commands share


def _device(name: str) -> "tuple[Home, Device]":
    """The device that NAME or NAME.tuunel means. Raises Failure UNKNOWN_NAME or NOT_PAIRED."""
    from tuunel.devices import Devices
    from tuunel.settings import Home

    home = Home.find()
    home.ensure()
    return home, Devices(home.devices_file).resolve(name.lower().removesuffix(".tuunel"))


def _or_error(build: Callable[[], T], *, as_json: bool) -> T:
    """What `build` makes; its error is told as a one-shot command tells one."""
    try:
        return build()
    except TuunelError as error:
        if as_json:
            put(json.dumps(error_document(error)))
        raise


def _end(broken: TuunelError | None, *, as_json: bool) -> None:
    """End the command as `broken` demands; its document was written."""
    if broken is not None:
        say_error(broken)
        raise typer.Exit(broken.exit_code)


def _until_interrupted(run: Callable[[], Awaitable[Any]]) -> None:
    """Run to the end, or to Ctrl-C or SIGTERM: what has been found so far is still to be shown."""
    import anyio

    async def watched() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_signal, tasks.cancel_scope)
            await run()
            tasks.cancel_scope.cancel()

    reader_gone: BrokenPipeError | None = None
    try:
        anyio.run(watched)
    except* BrokenPipeError as group:
        reader_gone = next(error for error in group.exceptions if isinstance(error, BrokenPipeError))
    if reader_gone is not None:
        raise reader_gone  # alone, as the command line knows it: whoever read the output has seen enough


async def _cancel_on_signal(scope: Any) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async for _ in received:
            scope.cancel()
