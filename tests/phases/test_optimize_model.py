from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from bench_dataset import Case, write_cases
from bench_run import HALF_ROW, HONEST, write_dataset
from fib_tools.errors import RequestError, SourceError
from fib_tools.model.manifest import Manifest
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import manifest_name, save_manifest
from fib_tools.phases.optimize_model import ModelSearchResult, optimize_model
from fib_tools.phases.search_options import SearchOptions
from manifest_kernels import make_kernel
from scripted_anthropic import Fault, ScriptedAnthropic, Text, Turn

NAME = "rmsnorm_h64"
OPTIONS = SearchOptions(language="python", device="cpu")

Run = Callable[..., ModelSearchResult]


def answer(technique: str, source: str) -> Turn:
    return Turn(Text(f"TECHNIQUE: {technique}\nWHY: it may be faster.\n```python\n{source}```\n"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    workspace = Workspace(root=tmp_path)
    kernels = tuple(make_kernel(*each, (8,)) for each in ((NAME, 60), ("second", 20), ("once", 0)))
    save_manifest(workspace, manifest_name("tiny", date(2026, 11, 21)), Manifest(model="tiny", kernels=kernels))
    write_dataset(workspace.dataset_root, {}, sizes=(3,))
    own = {"op_type": "rmsnorm", "author": "baseline", "solution": "s", "axes": {"n": 1}}
    write_cases(workspace.dataset_root, [Case(definition=name, percent=40.0, **own) for name in (NAME, "second")])
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    context = Context(workspace=workspace, offline=True)

    def search(script: list[Any], **options: Any) -> ModelSearchResult:
        with ScriptedAnthropic(script) as server:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            return optimize_model(context, "tiny", OPTIONS, **options)

    return search


def test_the_budget_is_divided_by_what_can_be_gained(run: Run) -> None:
    result = run([], dry_run=True, max_usd=8.0, max_evals=80)
    assert [(row.definition, round(row.usd, 3), row.evaluations) for row in result.searches] == [
        (NAME, 6.0, 60),
        ("second", 2.0, 20),
    ]
    assert run([], dry_run=True, kernels=1, max_usd=8.0).searches[0].usd == pytest.approx(8.0)


def test_a_search_that_was_cut_off_goes_on_and_is_not_begun_again(run: Run) -> None:
    few = {"kernels": 1, "max_evals": 3, "max_usd": 1.0}
    with pytest.raises(SourceError):
        run([answer("half the row", HALF_ROW), *[Fault(529)] * 6], **few)
    result = run([answer("plain torch", HONEST), answer("again", HONEST + "\nX = 1\n")], **few, resume=True)
    (row,) = result.searches
    assert (row.ending, row.evaluations) == ("evaluations", 3)
    assert row.score is not None
    assert result.usd == pytest.approx(row.usd)
    assert run([], **few, resume=True).searches == result.searches
    assert "of the kernels' time saved" in result.summary().lines[0]


def test_nothing_measured_is_nothing_to_search_for(run: Run, tmp_path: Path) -> None:
    for path in tmp_path.rglob("traces/**/*.jsonl"):
        path.unlink()
    with pytest.raises(RequestError, match="nothing of tiny is known to be worth a search"):
        run([])
