"""No input may break a parser that a stranger reaches: seeds, the kept corpus and what hypothesis makes of them, without a fuzzer."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import CORPUS, Harness
from tests.fuzz.suite import HARNESSES

FINDINGS = Path(__file__).parent / "findings"
ALL = list(HARNESSES.values())


@pytest.fixture(params=ALL, ids=[each.name for each in ALL])
def harness(request: pytest.FixtureRequest) -> Harness:
    each = request.param
    assert isinstance(each, Harness)
    return each


def test_every_harness_states_its_invariant_in_line_one(harness: Harness) -> None:
    assert harness.invariant.endswith(".")
    assert len(harness.invariant) > 40


def test_every_seed_and_kept_input_holds_the_invariant(harness: Harness) -> None:
    for data in [b"", *harness.seeds, *(path.read_bytes() for path in harness.kept())]:
        harness.run(data)


def test_no_input_takes_more_memory_than_its_parser_may(harness: Harness) -> None:
    inputs = [*harness.seeds, *(path.read_bytes() for path in harness.kept())][:: max(1, len(harness.seeds) // 4)]
    harness.run(inputs[0])  # what is made once belongs to nobody's input
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            harness.run(data)
            assert tracemalloc.get_traced_memory()[1] - before < harness.memory
    finally:
        tracemalloc.stop()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_seed_with_a_hole_or_foreign_bytes_holds_the_invariant(harness: Harness, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(harness.seeds))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, min(len(seed), start + 64)))
    spoilt = (seed[:start] + data.draw(st.binary(max_size=16)) + seed[end:])[: harness.max_length]
    harness.run(spoilt)


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_an_invariant_does_so_no_more(path: Path) -> None:
    HARNESSES[path.parent.name].run(path.read_bytes())


def test_the_corpus_is_small_and_of_harnesses_that_there_are() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert len(files) < 500
    assert {path.parent.name for path in files} <= set(HARNESSES)


def test_the_documentation_states_every_invariant(harness: Harness) -> None:
    proofs = Path(__file__).parents[2] / "docs" / "spec" / "proofs.md"
    rows = [line.split(" | ") for line in proofs.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{harness.name}` |")]
    assert [row[2].removesuffix(" |") for row in rows if len(row) == 3] == [harness.invariant]
