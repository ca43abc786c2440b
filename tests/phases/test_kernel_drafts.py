from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fib_tools
from bench_dataset import CPU, Case, make_evidence
from bench_run import HALF_ROW, HONEST, workload, write_dataset
from fib_tools.dataset.store import Dataset
from fib_tools.draft.bench import Bench
from fib_tools.draft.run_folder import RunFolder
from fib_tools.errors import ChildCrashedError, FibError, LockedError, RequestError
from fib_tools.evaluate.engines.items import hash_solution
from fib_tools.host.locks import hold
from fib_tools.model.evidence import Evidence
from fib_tools.model.solution import Solution
from fib_tools.model.trace import EvaluationStatus, Trace
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


def submit(context: Context, source: str, technique: str, author: str = "agent", **options: Any) -> DraftResult:
    chosen = {"language": "python", "device": "cpu", **options}
    return submit_solution(context, NAME, source=source, technique=technique, author=author, **chosen)


def add_size(root: Path, size: int) -> None:
    """Give the dataset's Definition one more Workload."""
    sizes = (3, size)
    Dataset(root).write_workloads("rmsnorm", [Trace(definition=NAME, workload=workload(each)) for each in sizes])


Verdict = Callable[[Solution, int], dict[str, Any]]
"""What comes of a Solution on a batch size: fields of a Case."""


@pytest.fixture
def judge_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Verdict], None]:
    """Have drafts judged by a function, and looked at no closer."""

    def use(verdict: Verdict) -> None:
        def evaluate(bench: Bench, solutions: Sequence[Solution]) -> dict[str, list[Evidence]]:
            return {
                hash_solution(each): [
                    _make_evidence(each, workload.uuid, workload.axes, verdict(each, workload.axes["batch_size"]))
                    for workload in bench.bundle.workloads
                ]
                for each in solutions
            }

        monkeypatch.setattr("fib_tools.draft.bench.Bench.evaluate", evaluate)
        monkeypatch.setattr("fib_tools.draft.inspection.Inspector.__call__", lambda _, attempts, *__: list(attempts))

    return use


def _make_evidence(made: Solution, uuid: str, axes: dict[str, int], said: dict[str, Any]) -> Evidence:
    case = Case(
        definition=NAME, op_type="rmsnorm", author=made.author, solution=made.name, axes=axes, **{"gpu": CPU, **said}
    )
    found = make_evidence(case)
    subject = {"workload": uuid, "solution_hash": hash_solution(made), "workload_hash": uuid}
    return found.model_copy(update={"subject": found.subject.model_copy(update=subject)})


WRONG = {"status": EvaluationStatus.INCORRECT_NUMERICAL, "rule": "wrong-values", "detail": "got 1, want 2"}


def test_a_verdict_on_some_sizes_says_so_and_is_no_verdict_on_all(
    context: Context, tmp_path: Path, judge_by: Callable[[Verdict], None]
) -> None:
    add_size(tmp_path / "dataset", 8)
    sizes = {
        each.uuid: each.axes["batch_size"] for each in Dataset(tmp_path / "dataset").load_workloads("rmsnorm", NAME)
    }
    first = next(iter(sizes.values()))
    judge_by(lambda made, size: WRONG if size != first and "bad" in made.sources[0].content else {})
    source = f"{HONEST}# bad\nbad = 1\n"
    narrow = submit(context, source, "bad", workloads=1)
    assert (narrow.status, narrow.sizes, narrow.solution, narrow.has_errors) == ("right", "1 of 2 sizes", "", False)
    assert narrow.feedback.startswith("Right on 1 of 2 sizes; ")
    assert "times as fast as the reference" in narrow.feedback
    again = submit(context, source, "bad", workloads=1)
    assert (again.status, again.sizes, again.has_errors) == ("right", "1 of 2 sizes", False), "as it was judged before"
    wide = submit(context, source, "bad")
    assert (wide.status, wide.best_attempt, wide.has_errors) == ("wrong", None, True)
    good = submit(context, HONEST, "good")
    assert (good.status, good.best_attempt, good.sizes) == ("right", 3, "")
    assert [each.name for each in Dataset(tmp_path / "dataset").load_solutions("rmsnorm", NAME)] == [good.solution]
    fewer = submit(context, HONEST, "good", workloads=1)
    assert (fewer.status, fewer.sizes) == ("right", ""), "it was judged on more, and is not evaluated again"
    assert "does the same as attempt 3" in fewer.feedback
    told = get_evaluation(context, NAME, language="python", device="cpu")
    assert told.best_attempt == 3
    assert "0. bad: right on 1 of 2 sizes" in told.tried


@pytest.mark.parametrize(
    "said",
    [
        {"status": EvaluationStatus.COMPILE_ERROR, "detail": "ModuleNotFoundError: No module named 'triton'"},
        {"status": EvaluationStatus.COMPILE_ERROR, "detail": "OSError: CUDA_HOME environment variable is not set"},
        {"status": EvaluationStatus.TIMEOUT, "rule": "timeout", "detail": "no answer within 30 s"},
    ],
)
def test_what_the_machine_could_not_judge_is_judged_when_it_can(
    context: Context, judge_by: Callable[[Verdict], None], said: dict[str, Any]
) -> None:
    judge_by(lambda *_: said)
    assert submit(context, HONEST, "plain").status == "wrong"
    judge_by(lambda *_: {})
    assert submit(context, HONEST, "plain", time_limit=60).status == "right"


def test_a_draft_that_was_interrupted_is_told_of_and_judged_before_the_next(
    context: Context, judge_by: Callable[[Verdict], None]
) -> None:
    def interrupt(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    judge_by(interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit(context, SLOW, "slowly", time_limit=5)
    told = get_evaluation(context, NAME, language="python", device="cpu")
    line = "- 0. slowly: no verdict yet; if it was interrupted, the next draft is judged after it"
    assert (told.attempts, told.summary().lines) == (0, (line,))
    with pytest.raises(RequestError, match="no verdict on a draft 0") as refused:
        get_evaluation(context, NAME, attempt=0, language="python", device="cpu")
    assert refused.value.todo == line
    judge_by(lambda *_: {})
    assert submit(context, HONEST, "one pass", time_limit=2).attempt == 1
    (place,) = context.workspace.root.rglob("attempts.jsonl")
    assert [each.time_limit for each in RunFolder(place.parent).attempts] == [5, 2], (
        "each has the time that it was given"
    )
    told = get_evaluation(context, NAME, language="python", device="cpu")
    assert [each[: each.index(":")] for each in told.tried.splitlines()] == ["- 0. slowly", "- 1. one pass"]
    assert "no verdict" not in told.tried


def test_what_was_not_evaluated_at_all_is_no_duplicate(
    context: Context, judge_by: Callable[[Verdict], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fib_tools.draft.bench.Bench.evaluate", lambda *_: {})
    assert "could not evaluate it" in submit(context, HONEST, "plain").feedback
    judge_by(lambda *_: {})
    assert submit(context, HONEST, "plain").status == "right"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def run(x:\n", "COMPILE_ERROR on 1 of 1 sizes\n"),
        (f"import subprocess\n{HONEST}", "by the rule `source-import`"),
    ],
)
def test_what_follows_from_the_text_alone_starts_no_engine(
    context: Context, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    monkeypatch.setattr("fib_tools.draft.bench.LocalEngine", None)
    judged = submit(context, source, "plain")
    assert (judged.status, judged.attempt) == ("wrong", 0)
    assert said in judged.feedback


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def go(a, b):\n    return a\n", "main.py has no function 'run'"),
        (
            HONEST.replace(", weight)", ")"),
            "main.py::run is (hidden_states), and is called with (hidden_states, weight)",
        ),
    ],
)
def test_a_function_that_cannot_be_called_is_told_in_the_words_of_the_contract(
    context: Context, source: str, found: str
) -> None:
    feedback = submit(context, source, "plain").feedback
    assert feedback.splitlines()[1] == f"{found}; define `run(hidden_states, weight)`, which returns output"
    assert "spec." not in feedback
    assert "File" not in feedback


@pytest.mark.parametrize("author", ["baseline", "Baseline", "baseline-", "baseline.."])
def test_nobody_drafts_as_the_baseline(context: Context, author: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot draft"):
        submit(context, HONEST, "plain", author=author)
    assert not (tmp_path / "work").exists()


def test_a_source_that_stands_in_the_dataset_is_not_written_twice(
    context: Context, tmp_path: Path, judge_by: Callable[[Verdict], None]
) -> None:
    judge_by(lambda *_: {})
    first = submit(context, HONEST, "plain", author="ada")
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    second = submit(context, HONEST, "plain", author="bob")
    assert (second.solution, second.author) == (first.solution, "ada")
    assert [each.author for each in Dataset(tmp_path / "dataset").load_solutions("rmsnorm", NAME)] == ["ada"]
    assert f"kept as {first.solution} by ada" in second.summary().lines
    assert not (tmp_path / "dataset" / "traces" / "bob").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"language": "triton"}, "triton does not run on a CPU"), ({"device": "cuda"}, "there is no GPU here")],
)
def test_what_no_machine_here_can_judge_is_refused_at_once(
    context: Context, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        submit(context, HONEST, "plain", **options)
    assert not (tmp_path / "work").exists()


def test_a_brief_for_what_no_draft_may_be_is_refused_in_the_same_words(context: Context) -> None:
    with pytest.raises(RequestError) as of_draft:
        submit(context, HONEST, "plain", language="triton")
    with pytest.raises(RequestError) as of_brief:
        get_kernel_brief(context, NAME, language="triton", device="cpu")
    assert str(of_brief.value) == str(of_draft.value)


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
    assert (same.attempt, same.status, same.score) == (2, "right", slow.score)
    assert same.feedback == f"It does the same as attempt 1.\n{slow.feedback}"
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
    assert "0. Half the row: INCORRECT_NUMERICAL (wrong-values)" in told.tried
    one = get_evaluation(context, NAME, attempt=1, language="python", device="cpu")
    assert one.source == SLOW
    assert "us" in one.feedback
    assert "max abs error vs FP64" in one.feedback
    brief = get_kernel_brief(context, NAME, language="python", device="cpu")
    lines = told.tried.splitlines()
    assert lines[2] == "- 2. plain torch: it does the same as attempt 1"
    assert brief.tried.splitlines() == [*lines[:2], *lines[3:]], "who drafts has no use for it"
    assert brief.failures == (), "each once: it stands in what was tried"
    assert re.search(r"batch_size=3 \| 100.0% \| 0.000896 \| 0 \| - \| - \| [0-9.]+$", brief.brief, re.MULTILINE)


def test_a_source_that_is_no_text_is_refused(context: Context, tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_bytes(b"# \xff\n")
    with pytest.raises(RequestError, match="not UTF-8"):
        submit(context, str(tmp_path / "kernel.py"), "plain")


def test_a_source_of_one_line_is_no_file(context: Context, judge_by: Callable[[Verdict], None]) -> None:
    judge_by(lambda *_: {})
    line = "def run(hidden_states, weight): return hidden_states.clone()"
    submit(context, line, "none at all")
    assert get_evaluation(context, NAME, attempt=0, language="python", device="cpu").source == line
    with pytest.raises(FibError, match=r"kernel\.py"):
        submit(context, "kernel.py", "a file that is not there")
    (context.workspace.root / "k(1).py").write_text(f"{line} * 1\n", encoding="utf-8")
    submit(replace(context, is_confined=True), "k(1).py", "a file called like a call")
    assert get_evaluation(context, NAME, attempt=1, language="python", device="cpu").source == f"{line} * 1\n"


def test_drafts_in_another_language_are_told_of(context: Context, judge_by: Callable[[Verdict], None]) -> None:
    judge_by(lambda *_: {})
    made = submit(context, HONEST, "F.rms_norm")
    assert made.technique == "F.rms_norm"
    again = submit(context, HONEST + "\nA = 1\n", "the same speed")
    assert (again.best_attempt, again.rivals) == (0, (1,))
    assert again.summary().lines[2].endswith("x, not told apart from 1")
    told = get_evaluation(context, NAME, language="triton", device="cpu")
    assert re.fullmatch("none for triton on .+; 2 for python on .+", told.summary().lines[0])
    with pytest.raises(RequestError, match="take one from 0 to 1"):
        get_evaluation(context, NAME, attempt=3, language="python", device="cpu")
    one = get_evaluation(context, NAME, attempt=0, language="python", device="cpu")
    assert (one.tried, one.source) == ("", HONEST)


def test_a_definition_without_workloads_names_the_file_for_them(context: Context, tmp_path: Path) -> None:
    (tmp_path / "dataset" / "workloads" / "rmsnorm" / f"{NAME}.jsonl").unlink()
    with pytest.raises(RequestError, match=f"collect some in workloads/rmsnorm/{NAME}.jsonl"):
        get_kernel_brief(context, NAME, language="python", device="cpu")


def test_a_brief_measures_nothing_and_says_what_comes_next(context: Context, tmp_path: Path) -> None:
    brief = get_kernel_brief(context, NAME, language="python", device="cpu")
    assert "def run(" in brief.brief
    assert "Define `run(hidden_states, weight)`" in brief.contract
    for word in ("GPU", "stream", "CUDA graph", "cold L2", "baseline)"):
        assert word not in brief.contract, word
    assert "batch_size=3 | 100.0% | 0.000896 | 0 | - | - | -" in brief.brief
    assert "no baseline was measured on it, the reference counts" in brief.brief
    assert "ratios to the reference" in brief.brief
    assert "fib draft" in brief.next
    assert not (tmp_path / "work").exists()
    assert get_evaluation(context, NAME, language="python", device="cpu").attempts == 0


def test_a_brief_says_what_was_measured_on_another_gpu(tmp_path: Path) -> None:
    examples = Path(fib_tools.__file__).parent / "examples" / "dataset"
    context = Context(workspace=Workspace(root=tmp_path), offline=True, dataset_override=examples)
    brief = get_kernel_brief(context, "rmsnorm_h7168", language="python", device="cpu").brief
    _, section = brief.split("## Measured on NVIDIA H200: ")
    head, _, *rows = section.splitlines()
    assert re.fullmatch(r"baseline \(.+\); best Solution \(fib-tools/.+\)", head)
    assert [row.split(" | ")[0] for row in rows] == [f"batch_size={size}" for size in (8192, 1024, 64, 1)]
    assert all(re.fullmatch(r"batch_size=\d+( \| [\d.]+, \d+%){2}", row) for row in rows)


def test_what_is_not_there_is_refused(context: Context) -> None:
    with pytest.raises(RequestError, match="no Definition 'other'"):
        get_kernel_brief(context, "other", language="python", device="cpu")
    with pytest.raises(RequestError, match=f"no verdict on a draft 3 of {NAME}"):
        get_evaluation(context, NAME, attempt=3, device="cpu")
    with pytest.raises(RequestError, match=f"did you mean {NAME}"):
        get_evaluation(context, "rmsnorm_h65", device="cpu")
    for source, said in (("x" * 300_000, "300000 characters"), ("\n \n", "is empty"), ("a\0\n", "holds a NUL")):
        with pytest.raises(RequestError, match=said):
            submit(context, source, "long")
    with pytest.raises(RequestError, match="characters"):
        submit(context, "def run(): pass\n" + "#" * 200_001, "long")


def test_a_workload_that_came_after_the_first_draft_counts_too(context: Context, tmp_path: Path) -> None:
    assert submit(context, SLOW, "plain torch").status == "right"
    add_size(tmp_path / "dataset", 8)
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


def test_a_first_draft_stands_in_the_way_of_those_of_its_definition_only(
    context: Context, monkeypatch: pytest.MonkeyPatch, judge_by: Callable[[Verdict], None]
) -> None:
    judge_by(lambda *_: {})
    held: list[Path] = []

    def look(path: Path, *, purpose: str) -> AbstractContextManager[None]:
        held.append(path)
        return hold(path, purpose=purpose)

    monkeypatch.setattr("fib_tools.phases.kernel_drafts.hold", look)
    submit(context, HONEST, "one pass")
    assert NAME in held[0].name
    with hold(held[0], purpose="a draft"), pytest.raises(LockedError, match="must wait"):
        submit(context, SLOW, "slowly")
