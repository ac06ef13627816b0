"""The picture of a run."""

from xml.etree import ElementTree

from bench.plot import plot
from bench.results import Results
from bench.systems.system import System
from bench.workloads.workload import Measurement
from tests.bench.doubles import Wire

SVG = "{http://www.w3.org/2000/svg}"
SYSTEMS: list[System] = [Wire("raw"), Wire("tuunel"), Wire("a<b")]


def drawn(runs: int) -> ElementTree.Element:
    made = Results({}, quick=False, rounds=runs, versions={}, skipped={})
    for number in range(runs):
        for name, value in (("raw", 9.0), ("tuunel", 4.0), ("a<b", 2.0)):
            made.add("pingpong", name, Measurement({"p50_us": value + number, "p99_us": None}, {"relay": 1.0}))
    return ElementTree.fromstring(plot(made, SYSTEMS, limit="raw"))


def bars(picture: ElementTree.Element) -> list[float]:
    return [float(bar.attrib["width"]) for bar in picture.iter(f"{SVG}rect")][1:]  # the first is the background


def words(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


def test_bars_are_as_long_as_their_values_and_the_limit_has_none() -> None:
    own, peer = bars(drawn(1))
    assert own == 2 * peer


def test_every_bar_is_named_and_has_its_number() -> None:
    assert words(drawn(1)) == ["64-byte round trip p50, µs", "less is better · raw: 9", "tuunel", "4", "a<b", "2"]


def test_the_spread_is_a_line_where_there_is_one() -> None:
    assert not list(drawn(1).iter(f"{SVG}path"))
    assert len(list(drawn(3).iter(f"{SVG}path"))) == 2


def test_a_run_without_figures_is_an_empty_picture() -> None:
    picture = ElementTree.fromstring(plot(Results({}, quick=True, rounds=1, versions={}, skipped={}), SYSTEMS, limit="raw"))
    assert words(picture) == []
