"""Results as one picture (SVG): a panel for each quantity, a bar for each system, and a line from the smallest run to the largest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.results import Results
from bench.summary import Summary
from bench.systems.system import System
from bench.systems.tuunel import Tuunel

COLUMNS = 3
PANEL_WIDTH = 400
LABEL_WIDTH, VALUE_WIDTH = 104, 60
ROW, BAR, HEAD, GAP = 22, 14, 54, 24

_OWN, _PEER, _SPREAD, _INK, _QUIET = "#1a7f5a", "#9db4c8", "#333333", "#1d2733", "#66727f"
_FONT = "font-family='system-ui, sans-serif'"


@dataclass(frozen=True)
class Quantity:
    """What one panel shows: a figure of a workload, or with `role` that role's CPU."""

    workload: str
    key: str
    title: str
    more_is_better: bool
    digits: int = 0
    role: str | None = None


QUANTITIES = (
    Quantity("bulk-1", "up_gbit", "1 stream to the service, Gbit/s", more_is_better=True, digits=2),
    Quantity("bulk-1", "down_gbit", "1 stream from the service, Gbit/s", more_is_better=True, digits=2),
    Quantity("bulk-1", "", "relay's CPU seconds per GB", more_is_better=False, digits=2, role="relay"),
    Quantity("bulk-8", "up_gbit", "8 streams to the service, Gbit/s", more_is_better=True, digits=2),
    Quantity("bulk-8", "down_gbit", "8 streams from the service, Gbit/s", more_is_better=True, digits=2),
    Quantity("idle", "up_gbit", "1 stream beside 1,000 idle ones, Gbit/s", more_is_better=True, digits=2),
    Quantity("pingpong", "p50_us", "64-byte round trip p50, µs", more_is_better=False),
    Quantity("pingpong", "p99_us", "64-byte round trip p99, µs", more_is_better=False),
    Quantity("idle", "relay_kb", "KB per idle tunnel at the relay", more_is_better=False, digits=1),
    Quantity("connections", "sequential", "new connections, one by one, per second", more_is_better=True),
    Quantity("connections", "at_once", "new connections, 50 at once, per second", more_is_better=True),
    Quantity("connections", "burst_ms", "the first 50 at once, ms", more_is_better=False),
    Quantity("delay-25", "up_mbit", "1 stream at 100 ms to the service, Mbit/s", more_is_better=True),
    Quantity("delay-25", "first_rtt", "first byte at 100 ms, round trips", more_is_better=False, digits=2),
    Quantity("delay-25", "next_rtt", "the same, later connections", more_is_better=False, digits=2),
    Quantity("delay-50", "up_mbit", "1 stream at 200 ms to the service, Mbit/s", more_is_better=True),
    Quantity("udp-rate", "per_second", "UDP: datagrams per second", more_is_better=True),
    Quantity("udp-latency", "p50_us", "UDP: echo p50, µs", more_is_better=False),
)


def plot(results: Results, systems: Sequence[System], *, limit: str) -> str:
    """Return the picture. `limit` is told beside each title and has no bar: all others would vanish beside it."""
    panels = [(quantity, found) for quantity in QUANTITIES if (found := _found(results, quantity, systems)).keys() - {limit}]
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    parts: list[str] = []
    top = float(GAP)
    for row in rows:
        for column, (quantity, found) in enumerate(row):
            parts += _panel(quantity, found, limit, left=GAP + column * (PANEL_WIDTH + GAP), top=top)
        top += HEAD + ROW * max(len(found.keys() - {limit}) for _, found in row) + GAP
    width, height = GAP + COLUMNS * (PANEL_WIDTH + GAP), top
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height:.0f}' width='{width}' height='{height:.0f}' {_FONT}>"
    return "\n".join([head, f"<rect width='{width}' height='{height:.0f}' fill='white'/>", *parts, "</svg>"]) + "\n"


def _found(results: Results, quantity: Quantity, systems: Sequence[System]) -> dict[str, Summary]:
    summaries = {
        system.name: results.cpu(quantity.workload, system.name).get(quantity.role)
        if quantity.role
        else results.figure(quantity.workload, system.name, quantity.key)
        for system in systems
    }
    return {name: summary for name, summary in summaries.items() if summary}


def _panel(quantity: Quantity, found: Mapping[str, Summary], limit: str, *, left: float, top: float) -> Iterator[str]:
    better = "more" if quantity.more_is_better else "less"
    beside = f" · {limit}: {_number(found[limit].median, quantity)}" if limit in found else ""
    yield _text(quantity.title, left, top + 16, size=15, weight="bold")
    yield _text(f"{better} is better{beside}", left, top + 36, size=12, colour=_QUIET)
    bars = {name: summary for name, summary in found.items() if name != limit}
    longest = max(summary.largest for summary in bars.values()) or 1.0
    scale = (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH) / longest
    for index, (name, summary) in enumerate(bars.items()):
        yield from _bar(name, summary, quantity, scale, left=left, top=top + HEAD + index * ROW)


def _bar(name: str, summary: Summary, quantity: Quantity, scale: float, *, left: float, top: float) -> Iterator[str]:
    colour = _OWN if name.startswith(Tuunel.name) else _PEER
    start, middle = left + LABEL_WIDTH, top + BAR / 2
    smallest, median, largest = (start + max(0.0, value) * scale for value in (summary.smallest, summary.median, summary.largest))
    yield _text(name, start - 8, middle + 4, size=13, anchor="end")
    yield f"<rect x='{start:.1f}' y='{top:.1f}' width='{max(median - start, 1):.1f}' height='{BAR}' fill='{colour}'/>"
    if largest > smallest:
        yield f"<path d='M{smallest:.1f} {middle:.1f}H{largest:.1f}' stroke='{_SPREAD}' stroke-width='2'/>"
    yield _text(_number(summary.median, quantity), max(median, largest) + 6, middle + 4, size=12)


def _number(value: float, quantity: Quantity) -> str:
    return f"{value:,.{quantity.digits}f}"


def _text(words: str, x: float, y: float, *, size: int, weight: str = "normal", colour: str = _INK, anchor: str = "start") -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' fill='{colour}' text-anchor='{anchor}'"
    return f"<text {place}>{escape(words)}</text>"
