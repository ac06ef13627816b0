"""What a run leaves behind: the table and the JSON document."""

import json

from bench.document import document
from bench.results import Results
from bench.table import grid, render
from bench.turns import take_turns
from bench.workloads.workload import Measurement
from tests.bench.doubles import Counting, Wire, results

WORKLOAD = Counting()
SYSTEMS = [Wire("raw"), Wire("tuunel"), Wire("broken")]


def measured(rounds: int = 3) -> Results:
    made = results(rounds)
    take_turns(made, [Counting()], SYSTEMS, lambda _: None)
    made.others_cores = 0.25
    return made


def cells(table: str, first: str) -> list[list[str]]:
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|"))
    return [row for row in rows if row[0] == first]


def test_a_row_has_the_median_the_spread_the_ratio_and_the_cpu_of_each_role() -> None:
    table = render(measured(), [WORKLOAD], SYSTEMS, limit="raw")
    assert cells(table, "tuunel") == [
        ["tuunel", "1.0", "app - service", "nobody"],
        ["tuunel", "12,000 (6,000 - 18,000)", "0.50 (0.50 - 0.50)", "2.00", "relay 12.00, agent 0.25"],
    ]


def test_one_round_has_no_spread() -> None:
    assert cells(render(measured(1), [WORKLOAD], SYSTEMS, limit="raw"), "raw")[1][:3] == ["raw", "3,000", "0.50"]


def test_the_first_line_tells_the_machine_and_what_else_ran_on_it() -> None:
    table = render(measured(), [WORKLOAD], SYSTEMS, limit="raw")
    assert table.startswith("processor abacus, cores 7; 3 rounds; other processes used 0.25 cores meanwhile\n")


def test_what_failed_and_what_is_missing_is_named() -> None:
    table = render(measured(1), [WORKLOAD], SYSTEMS, limit="raw")
    assert cells(table, "broken")[1] == ["broken", "-", "-", "-", "-"]
    assert "failed: counting with broken: it broke" in table
    assert "skipped: gost: gone" in table


def test_without_the_limit_there_is_no_ratio() -> None:
    made = results(1)
    take_turns(made, [Counting()], [Wire("tuunel")], lambda _: None)
    assert cells(render(made, [WORKLOAD], [Wire("tuunel")], limit="raw"), "tuunel")[1][3] == "-"


def test_the_document_is_json_and_holds_every_run() -> None:
    made = json.loads(json.dumps(document(measured(), [WORKLOAD], SYSTEMS), allow_nan=False))
    row = made["workloads"]["counting"]["systems"]["tuunel"]
    assert row["figures"]["count"] == {"median": 12_000, "smallest": 6_000, "largest": 18_000, "runs": [6_000, 12_000, 18_000]}
    assert row["cpu"]["relay"]["median"] == 12
    assert made["systems"]["tuunel"] == {"version": "1.0", "hops": "app - service", "readable_by": "nobody", "socks": False}
    assert made["skipped"] == {"gost": "gone"}
    assert made["failures"][0] == {"workload": "counting", "system": "broken", "error": "it broke"}
    assert made["machine"] == {"processor": "abacus", "cores": 7}
    assert made["others_cores"] == 0.25
    assert made["workloads"]["counting"]["systems"]["broken"] == {"figures": {}, "cpu": {}}


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert list(grid(["a", "long"], [["wide one", "b"]])) == [
        "| a        | long |",
        "| -------- | ---- |",
        "| wide one | b    |",
    ]


def test_the_goals_that_this_run_can_judge_stand_above_the_workloads() -> None:
    made = results(1)
    made.add("idle", "tuunel", Measurement({"relay_kb": 20.0}, {}))
    table = render(made, [WORKLOAD], SYSTEMS, limit="raw")
    assert cells(table, "idle tunnel at the relay") == [["idle tunnel at the relay", "20.0 KB", "met: 24 KB", "MISSED: 12 KB"]]
    assert "**goals**" not in render(results(1), [WORKLOAD], SYSTEMS, limit="raw")


def test_a_system_that_a_workload_is_not_about_has_no_row_there() -> None:
    class OfTuunel(Counting):
        only = "tuunel"

    made = results(1)
    take_turns(made, [OfTuunel()], SYSTEMS, lambda _: None)
    assert len(cells(render(made, [OfTuunel()], SYSTEMS, limit="raw"), "raw")) == 1
    assert list(document(made, [OfTuunel()], SYSTEMS)["workloads"]["counting"]["systems"]) == ["tuunel"]
