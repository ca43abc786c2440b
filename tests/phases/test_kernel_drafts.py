from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench_run import HALF_ROW, HONEST, workload, write_dataset
from fib_tools.dataset.store import Dataset
from fib_tools.errors import ChildCrashedError, FibError, LockedError, RequestError
from fib_tools.model.trace import Trace
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.kernel_drafts import DraftResult, get_evaluation, get_kernel_brief, submit_solution

NAME = "rmsnorm_h64"
SLOW = HONEST.replace(
    "    x = hidden_states.float()", "    for _ in range(40):\n        x = hidden_states.float() * 1.0"
)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    write_dataset(tmp_path / "dataset", {}, sizes=(3,))
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True, dataset_override=tmp_path / "dataset")


def submit(context: Context, source: str, technique: str, author: str = "agent") -> DraftResult:
    return submit_solution(
        context, NAME, source=source, technique=technique, language="python", device="cpu", author=author
    )


def test_drafts_are_judged_kept_and_told_of(context: Context, tmp_path: Path) -> None:
    wrong = submit(context, HALF_ROW, "Half the row")
    assert (wrong.attempt, wrong.status, wrong.solution) == (0, "wrong", "")
    assert "wrong-values" in wrong.feedback
    assert "max abs error vs FP64" in wrong.feedback
    slow = submit(context, SLOW, "plain torch", author="ada")
    assert (slow.status, slow.best_attempt) == ("right", 1)
    assert "No counters of NCU: there is no GPU." in slow.feedback
    assert "NCU" not in wrong.feedback
    same = submit(context, SLOW + "# again\n", "plain torch")
    assert same.status == "not evaluated"
    assert "does the same as attempt 1" in same.feedback
    source = tmp_path / "kernel.py"
    source.write_text(HONEST, encoding="utf-8")
    fast = submit(context, str(source), "one pass")
    assert (fast.status, fast.best_attempt) == ("right", 3)
    assert fast.files == ("traces/agent/rmsnorm/rmsnorm_h64.jsonl",)
    kept = Dataset(tmp_path / "dataset").load_solutions("rmsnorm", NAME)
    assert sorted((solution.author, solution.name) for solution in kept) == [
        ("ada", slow.solution),
        ("agent", fast.solution),
    ]
    told = get_evaluation(context, NAME, language="python", device="cpu")
    assert (told.attempts, told.best_attempt) == (4, 3)
    assert "0. half the row: INCORRECT_NUMERICAL (wrong-values)" in told.tried
    one = get_evaluation(context, NAME, attempt=1, language="python", device="cpu")
    assert one.source == SLOW
    assert "us" in one.feedback
    assert "max abs error vs FP64" in one.feedback
    brief = get_kernel_brief(context, NAME, language="python", device="cpu")
    assert brief.tried == told.tried
    assert brief.failures == (
        "- half the row: INCORRECT_NUMERICAL (wrong-values): " + brief.failures[0].split(": ", 2)[2],
    )


def test_a_brief_measures_nothing_and_says_what_comes_next(context: Context, tmp_path: Path) -> None:
    brief = get_kernel_brief(context, NAME, language="python", device="cpu")
    assert "def run(" in brief.brief
    assert "Define `run(hidden_states, weight)`" in brief.contract
    assert "fib_submit_solution" in brief.next
    assert not (tmp_path / "work").exists()
    assert get_evaluation(context, NAME, language="python", device="cpu").attempts == 0


def test_what_is_not_there_is_refused(context: Context) -> None:
    with pytest.raises(RequestError, match="no Definition 'other'"):
        get_kernel_brief(context, "other", device="cpu")
    with pytest.raises(RequestError, match=f"no draft 3 of {NAME}"):
        get_evaluation(context, NAME, attempt=3, device="cpu")
    with pytest.raises(RequestError, match="characters"):
        submit(context, "def run(): pass\n" + "#" * 200_001, "long")


def test_a_workload_that_came_after_the_first_draft_counts_too(context: Context, tmp_path: Path) -> None:
    assert submit(context, SLOW, "plain torch").status == "right"
    later = Trace(definition=NAME, workload=workload(8))
    Dataset(tmp_path / "dataset").write_workloads("rmsnorm", [Trace(definition=NAME, workload=workload(3)), later])
    judged = submit(context, HONEST, "one pass")
    assert judged.status == "right"
    assert "batch_size=8: " in judged.feedback


@pytest.mark.parametrize(
    "error", [ChildCrashedError("the warm process of the sandbox died"), LockedError("no GPU came free")]
)
def test_a_verdict_stands_where_no_closer_look_is_possible(
    context: Context, monkeypatch: pytest.MonkeyPatch, error: FibError
) -> None:
    def crash(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr("fib_tools.draft.inspection.measure_exactness", crash)
    judged = submit(context, HONEST, "one pass")
    assert (judged.status, judged.best_attempt) == ("right", 0)
    assert "FP64" not in judged.feedback
