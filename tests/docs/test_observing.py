"""The dashboard and the alerts ask for metrics that exist, with labels that they have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from tuunel.metrics import KINDS, PREFIX

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
LABELS = {f"{PREFIX}{kind.name}": {*kind.labels, "job", "instance"} for kind in KINDS}
_METRIC = re.compile(r"\b((?:tuunel|process)_\w+)(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"by \(([^)]*)\)")


def queries() -> Iterator[tuple[str, str]]:
    dashboard: dict[str, Any] = json.loads((HOWTO / "tuunel-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]
    for expression in re.findall(r"^\s+expr: (.*)$", (HOWTO / "observe.md").read_text(), re.MULTILINE):
        yield "alert", expression


QUERIES = list(queries())


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_query_names_metrics_and_labels_that_exist(title: str, query: str) -> None:
    process = {sample.name for family in ProcessCollector(registry=CollectorRegistry()).collect() for sample in family.samples}
    used = _METRIC.findall(query)
    assert used or query.startswith("up{"), title
    for name, selector in used:
        labels = LABELS.get(name) or ({"job", "instance"} if name in process else set())
        assert labels, f"{name} is no metric"
        assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= labels
    for grouped in _GROUPED.findall(query):
        assert set(re.split(r",\s*", grouped)) <= LABELS[used[0][0]]


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for _, query in QUERIES for name, _ in _METRIC.findall(query)}
    assert set(LABELS) <= shown


def test_a_counter_is_never_shown_as_it_is() -> None:
    for _, query in QUERIES:
        for name, _ in _METRIC.findall(query):
            if name.endswith("_total"):
                assert re.search(rf"(rate|increase)\({name}", query), query


def test_the_panels_do_not_cover_each_other() -> None:
    dashboard: dict[str, Any] = json.loads((HOWTO / "tuunel-dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken
        taken |= cells
    assert {x for x, _ in taken} == set(range(24))
