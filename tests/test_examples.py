"""The Solutions that are shipped: with the Traces that say they are faster, and the evidence behind each figure."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pytest

import fib_tools
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.rules.source_rules import check_sources
from fib_tools.model.solution import BASELINE
from fib_tools.phases.bench_report import report_benchmarks
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.validate import validate_dataset

EXAMPLES = Path(fib_tools.__file__).parent / "examples" / "dataset"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(root=tmp_path), offline=True, dataset_override=EXAMPLES)


def test_the_examples_are_a_dataset_without_a_finding(context: Context) -> None:
    result = validate_dataset(context)
    assert not result.has_errors
    assert result.findings == ()


def test_each_figure_has_its_evidence_and_each_solution_is_faster_than_the_baseline(context: Context) -> None:
    result = report_benchmarks(context)
    assert result.problems == ()
    gains: dict[str, float] = defaultdict(float)
    for each in result.report.measurements:
        assert each.status == "PASSED"
        assert each.milliseconds is not None
        gains[each.definition] += math.log(each.milliseconds) * (1 if each.author == BASELINE else -1)
    assert set(gains) == set(Dataset.open(EXAMPLES).load_definitions()[0])
    assert all(gain > 0 for gain in gains.values())
    evidence = {path.stem for path in EXAMPLES.glob("evidence/*/*.json")}
    assert len(evidence) == len(result.report.measurements)


def test_the_examples_keep_the_rules_for_sources() -> None:
    dataset = Dataset.open(EXAMPLES)
    for name, definition in dataset.load_definitions()[0].items():
        for solution in dataset.load_solutions(definition.op_type, name):
            assert not check_sources(solution)
