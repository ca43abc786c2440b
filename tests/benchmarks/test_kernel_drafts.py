from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from bench_run import norm
from fib_tools.evaluate.rules.source_python import check_python

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAME = "rmsnorm_h7168"


@pytest.fixture
def kernel_drafts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernel_drafts")


def make_evidence(author: str, milliseconds: float, size: int) -> dict[str, Any]:
    return {
        "subject": {"author": author, "solution": f"{author}_1", "definition": NAME, "workload": str(size)},
        "status": "PASSED",
        "axes": {"batch_size": size},
        "kernels": ["one"],
        "series": [{"milliseconds": milliseconds, "launch": "graph", "l2": "cold", "samples": [milliseconds]}],
    }


def test_what_the_time_did_not_suffice_for_is_said_and_the_rest_is_tabulated(kernel_drafts: Any) -> None:
    found = {
        (NAME, "1"): [make_evidence("baseline", 0.003, 1), make_evidence("fib-tools", 0.002, 1)],
        (NAME, "64"): [make_evidence("baseline", 0.003, 64)],
        ("rmsnorm_h128", "1"): [make_evidence("baseline", 0.003, 1)],
    }
    _, other, first, second, _, median, *totals = kernel_drafts.tabulate(found)
    assert first.split()[:5] == [NAME, "1", "2", "3", "1.500"]
    assert [line.split(maxsplit=2)[2] for line in (second, other)] == ["no draft was measured in time"] * 2
    assert median.split(maxsplit=1) == [NAME, "median 1.500, least 1.500, fib-tools_1, 1 of 4 sizes"]
    assert totals[0] == "1 of 1 Definitions at least as fast, median 1.500"


def test_every_draft_is_measured_and_keeps_the_rules(kernel_drafts: Any) -> None:
    drafts = {path.stem: path.read_text(encoding="utf-8") for path in (BENCHMARKS / "drafts").glob("*.py")}
    assert {draft for names, _ in kernel_drafts.PLAN.values() for draft in names.split()} == set(drafts)
    for name, text in drafts.items():
        assert check_python(name, text, own_modules=frozenset(), may_use_library=False) == []


def test_a_draft_is_for_the_gpu_that_it_is_measured_on_and_no_other(
    kernel_drafts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_drafts, "find_hardware", {"cuda": ("NVIDIA H200", 90)}.__getitem__)
    spec = kernel_drafts.make_solution(norm(), "rmsnorm_wide").spec
    assert spec.target_hardware == ["sm90"]
    assert (spec.fits(90), spec.fits(100), spec.fits_cpu) == (True, False, False)
