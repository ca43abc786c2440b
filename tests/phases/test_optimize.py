from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench_run import HALF_ROW, HONEST, REMEMBERS, workload, write_dataset
from fib_tools.dataset.store import Dataset
from fib_tools.draft.bench import Bench
from fib_tools.draft.run_folder import RunFolder
from fib_tools.errors import RequestError, SourceError
from fib_tools.model.trace import Trace
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.kernel_drafts import get_evaluation
from fib_tools.phases.optimize import optimize_kernel
from fib_tools.phases.optimize_result import OptimizeResult
from fib_tools.phases.search_options import SearchOptions
from scripted_anthropic import Fault, ScriptedAnthropic, Text, Turn
from scripted_batches import Batches, serve_batches
from scripted_chat import serve_chat

NAME = "rmsnorm_h64"
SLOW = HONEST.replace(
    "    x = hidden_states.float()", "    for _ in range(40):\n        x = hidden_states.float() * 1.0"
)
SAME = HONEST.replace("x = ", "y = ").replace("x * ", "y * ").replace("x.square", "y.square") + "# faster\n"
FUSED = """
import torch
import torch.nn.functional as F

def run(hidden_states, weight):
    return F.rms_norm(hidden_states.float(), (hidden_states.shape[-1],), weight.float(), 1e-6).to(hidden_states.dtype)
"""
SEARCHES_HEAP = "import gc\n" + HONEST.replace("    x = ", "    gc.get_objects()\n    x = ", 1)
WRITES_INPUT = HONEST.replace("    return", "    hidden_states.add_(1)\n    return")

Optimize = Callable[..., OptimizeResult]


def answer(technique: str, source: str, *, output: int = 400) -> Turn:
    text = f"TECHNIQUE: {technique}\nWHY: it may be faster.\n```python\n{source}```\n"
    return Turn(Text(text), usage={"output_tokens": output})


@pytest.fixture
def optimize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Optimize:
    write_dataset(tmp_path / "dataset", {}, sizes=(3,))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    context = Context(workspace=Workspace(root=tmp_path / "work"), offline=True, dataset_override=tmp_path / "dataset")

    def run(script: Any, **options: Any) -> OptimizeResult:
        with ScriptedAnthropic(script) as server:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            run.requests = server.requests  # type: ignore[attr-defined]
            own = {name: options.pop(name) for name in list(options) if name in SearchOptions.model_fields}
            chosen = SearchOptions(**{"language": "python", "device": "cpu", **own})
            return optimize_kernel(context, NAME, chosen, **options)

    return run


def test_a_search_ends_with_the_good_one_and_names_the_cheat(optimize: Optimize, tmp_path: Path) -> None:
    script = [
        answer("half the row", HALF_ROW),
        answer("cached output", REMEMBERS),
        answer("plain torch", SLOW),
        Turn(Text("I have no code today.")),
        answer("plain torch", SLOW + "\n# the same again\n"),
        answer("fused rms_norm", FUSED),
        answer("searched heap", SEARCHES_HEAP),
        answer("written input", WRITES_INPUT),
    ]
    result = optimize(script, max_evals=8)
    verdicts = [(row.technique, row.status, row.rule) for row in result.attempts]
    assert verdicts == [
        ("half the row", "INCORRECT_NUMERICAL", "wrong-values"),
        ("cached output", "INCORRECT_NUMERICAL", "stale-result"),
        ("plain torch", "PASSED", ""),
        ("unnamed", "NOT EVALUATED", ""),
        ("plain torch", "NOT EVALUATED", ""),
        ("fused rms_norm", "PASSED", ""),
        ("searched heap", "RUNTIME_ERROR", "source-import"),
        ("written input", "RUNTIME_ERROR", "inputs-changed"),
    ]
    assert (result.technique, result.ending) == ("fused rms_norm", "evaluations")
    assert result.score is not None
    assert result.score > max(row.score or 0.0 for row in result.attempts if row.attempt != 5)
    assert "does the same as attempt 2" in result.attempts[4].detail
    assert not result.has_errors
    (solution,) = Dataset(tmp_path / "dataset").load_solutions("rmsnorm", NAME)
    assert (solution.name, solution.author) == (result.best, "claude-sonnet-5-5")
    assert f"in the run {result.run}" in (solution.description or "")
    assert "attempt 5" in (solution.description or "")
    assert result.files == ("traces/claude-sonnet-5-5/rmsnorm/rmsnorm_h64.jsonl",)
    card = Path(result.card).read_text(encoding="utf-8")
    assert result.best in card
    assert "What made the difference, as its author says: it may be faster." in card
    for verdict in ("INCORRECT_NUMERICAL (wrong-values)", "RUNTIME_ERROR (source-import)", "(inputs-changed)"):
        assert verdict in card
    assert result.tokens_out == 7 * 400 + 20
    context = Context(workspace=Workspace(root=tmp_path / "work"), dataset_override=tmp_path / "dataset")
    (line,) = get_evaluation(context, NAME, language="python", device="cpu").summary().lines
    assert line.startswith(f"fib optimize, run {result.run}: 8 for python on ")
    assert f"; the best is attempt 5, fused rms_norm, {result.score:.3f} x; " in line
    broken = context.workspace.root / "optimize" / f"19990101-000000-{NAME}-x"
    broken.mkdir()
    (broken / "run.json").write_text("{}")
    first, *_ = get_evaluation(context, NAME, language="python", device="cpu").searches
    assert first.startswith(f"fib optimize, run {broken.name}: it cannot be read: not a valid SearchPlan")
    last = optimize.requests[-1]["messages"][0]["content"][0]["text"]  # type: ignore[attr-defined]
    assert "by the rule `source-import`: Imports or reaches a module that a kernel has no use for." in last
    folder = RunFolder(Path(result.folder))
    assert [draft.answer for draft in folder.drafts if not draft.source] == ["I have no code today."]
    kept = folder.attempts
    assert [each.number for each in kept if each.profile] == [2, 5], "who was the best when it was judged"
    assert [each.number for each in kept if each.exactness] == [0, 1, 2, 5], "whose outputs were compared"


def test_a_question_carries_what_was_wrong_and_what_was_tried(optimize: Optimize) -> None:
    optimize([answer("half the row", HALF_ROW), answer("plain torch", HONEST)], max_evals=2)
    first, second = optimize.requests  # type: ignore[attr-defined]
    assert first["system"] == second["system"]
    assert "hidden_states: bfloat16[batch_size, hidden_size]" in first["system"][1]["text"]
    assert len(first["system"][1]["text"].encode()) <= 8192
    asked = second["messages"][0]["content"][0]["text"]
    assert "Repair this Solution" in asked
    assert "x.shape[-1] // 2" in asked
    assert "INCORRECT_NUMERICAL on 1 of 1 sizes by the rule `wrong-values`" in asked
    assert "got" in asked
    assert "- 0. half the row: INCORRECT_NUMERICAL" in asked
    assert re.search(
        r"output: max abs error vs FP64, rounded to bfloat16, \S+; the reference itself \S+; the bound", asked
    )


def test_a_run_remembers_what_went_wrong_in_others(optimize: Optimize) -> None:
    optimize([answer("half the row", HALF_ROW)], max_evals=1)
    optimize([answer("plain torch", HONEST)], max_evals=1)
    (asked,) = optimize.requests  # type: ignore[attr-defined]
    text = asked["messages"][0]["content"][0]["text"]
    assert "earlier runs" in text
    assert "- half the row: INCORRECT_NUMERICAL (wrong-values)" in text


def test_the_money_ends_a_search_before_it_is_overspent(optimize: Optimize) -> None:
    asked: list[int] = []

    def script(requests: list[dict[str, Any]]) -> Turn:
        asked.append(len(requests))
        source = HONEST + f"\nA = {len(asked)}\n"
        return answer(f"try {len(requests)}", source, output=min(9000, requests[-1]["max_tokens"]))

    result = optimize(script, max_usd=0.3)
    assert result.ending == "budget"
    assert 0.1 < result.usd <= 0.3
    assert result.best
    more = optimize(script, max_usd=0.5, resume="latest")
    assert (more.run, more.ending) == (result.run, "budget")
    assert more.attempts[: len(result.attempts)] == result.attempts
    assert result.usd < more.usd <= 0.5


def test_a_busy_service_is_asked_again_and_one_that_refuses_ends_the_run(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("fib_tools.draft.providers.time", SimpleNamespace(sleep=waits.append))
    script = [Fault(429, headers={"retry-after": "7"}), Fault(529), answer("plain torch", HONEST)]
    assert optimize(script, max_evals=1).best
    assert waits[0] == 7.0
    assert len(waits) == 2
    with pytest.raises(RequestError, match="401"):
        optimize([Fault(401)], max_evals=1)


def test_a_run_that_lost_the_service_goes_on_where_it_was(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fib_tools.draft.providers.time", SimpleNamespace(sleep=lambda _: None))
    with pytest.raises(SourceError, match="529"):
        optimize([answer("plain torch", SLOW), *[Fault(529)] * 6], max_evals=2)
    result = optimize([answer("fused rms_norm", FUSED)], max_evals=2, resume="latest", device="cuda")
    place = f"--workspace {tmp_path / 'work'} --dataset {tmp_path / 'dataset'}"
    going_on = f"fib optimize {NAME} --resume {result.run} {place} --max-evals 4 --max-usd 1"
    assert f"go on with: {going_on}" in result.summary().lines
    assert [row.technique for row in result.attempts] == ["plain torch", "fused rms_norm"]
    assert result.attempts[1].kind == "improve"


def test_drafts_that_were_paid_for_are_judged_after_a_kill(optimize: Optimize, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_bench: Any, solutions: Sequence[Any]) -> dict[str, Any]:
        if solutions:
            raise SystemExit(9)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("fib_tools.draft.bench.Bench.evaluate", die)
        with pytest.raises(SystemExit):
            optimize([answer("plain torch", HONEST)], max_evals=1)
    result = optimize([], max_evals=1, resume="latest")
    assert [(row.technique, row.status) for row in result.attempts] == [("plain torch", "PASSED")]
    ledger = json.loads((Path(result.folder) / "ledger.json").read_text(encoding="utf-8"))
    assert len(ledger["entries"]) == 1


def test_a_wide_beam_asks_for_many_at_once(optimize: Optimize) -> None:
    sources = {0: HONEST, 1: FUSED, 2: SLOW, 3: HALF_ROW}

    def script(requests: list[dict[str, Any]]) -> Turn:
        number = len(requests) - 1
        return answer(f"way {number}", sources.get(number, HONEST + f"\nA = {number}\n"))

    result = optimize(script, strategy="beam", width=12, max_evals=14)
    kinds = [row.kind for row in result.attempts]
    assert kinds == ["first"] * 12 + ["improve"] * 2
    assert {parent for row in result.attempts[12:] for parent in row.parents} < set(range(12))
    assert result.best


def test_what_was_searched_for_on_some_sizes_is_kept_only_if_it_is_right_on_all(
    optimize: Optimize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, evaluate = Dataset(tmp_path / "dataset"), Bench.evaluate
    monkeypatch.setattr(Bench, "evaluate", lambda bench, found: evaluate(bench, found) if bench.untried else {})
    dataset.write_workloads("rmsnorm", [Trace(definition=NAME, workload=workload(size)) for size in (3, 8)])
    result = optimize([answer("one size", HONEST)], max_evals=1, workloads=1)
    assert (result.best, result.attempts[0].status, result.has_errors) == ("", "PASSED", True)
    assert "right on the sizes of this run and not on all" in result.summary().lines[0]
    assert not dataset.load_solutions("rmsnorm", NAME)


def test_a_speed_within_its_interval_is_no_gain() -> None:
    result = OptimizeResult(definition=NAME, hardware="AMD EPYC", best="a", author="b", technique="c", score=1.004)
    assert result.summary().lines[0] == "best: a by b, c: 1.004 x"
    doubtful = result.model_copy(update={"is_apart": False})
    assert doubtful.summary().lines[0] == "best: a by b, c: 1.004 x, not told apart from the reference"


def test_no_model_drafts_as_the_baseline(optimize: Optimize) -> None:
    with pytest.raises(RequestError, match="cannot draft"):
        optimize([], model="baseline", usd_per_mtok="1,2")


@pytest.mark.parametrize("options", [{}, {"device": "cuda", "language": "triton"}])
def test_a_dry_run_writes_the_brief_and_asks_nobody(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(Bench, "evaluate", None)
    result = optimize([], dry_run=True, **options)
    brief = Path(result.brief_path).read_text(encoding="utf-8")
    assert "efine `run(hidden_states, weight" in brief
    assert (result.brief, result.card) == (brief, "")
    assert brief in result.summary().lines
    assert result.brief_bytes == len(brief.encode())
    assert not result.has_errors


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resume": "latest"}, "can go on"), ({"resume": "nothing"}, "no run 'nothing'")],
)
def test_a_run_that_is_not_there_cannot_go_on(optimize: Optimize, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        optimize([], **options)


def test_any_service_that_speaks_chat_completions_can_draft(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"TECHNIQUE: plain torch\nWHY: it works.\n```python\n{HONEST}```\n"
    with serve_chat([text]) as (url, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        result = optimize([], provider="openai", model="local/kernels-7b", usd_per_mtok="1,2", max_evals=1)
    assert (result.author, result.tokens_in, result.tokens_out) == ("local-kernels-7b", 100, 20)
    assert "Define `run(hidden_states, weight)`" in asked[0]["messages"][0]["content"]
    with pytest.raises(RequestError, match="no model for the provider openai"):
        optimize([], provider="openai")


def test_a_search_that_is_killed_while_the_model_thinks_goes_on_with_what_it_has(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {}, sizes=(3,))
    running: list[subprocess.Popen[bytes]] = []
    technique = iter(["plain torch", "fused rms_norm"])

    def script(requests: list[dict[str, Any]]) -> Turn:
        if len(requests) == 2:
            running[0].kill()
        return (
            answer(next(technique), SLOW if len(requests) == 1 else FUSED) if len(requests) != 2 else Turn(Text("late"))
        )

    with ScriptedAnthropic(script) as server:
        environment = {**os.environ, "ANTHROPIC_API_KEY": "sk-ant-test-0123456789", "ANTHROPIC_BASE_URL": server.url}
        command = [sys.executable, "-m", "fib_tools", "optimize", NAME, "--device", "cpu", "--language", "python"]
        command += ["--max-evals", "2", "--json", "--quiet", "--dataset", str(tmp_path / "dataset")]
        command += ["--workspace", str(tmp_path / "work")]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as killed:
            running.append(killed)
            killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
        done = subprocess.run(
            [*command, "--resume", "latest"], env=environment, stdout=subprocess.PIPE, check=True, timeout=120
        )
    result = json.loads(done.stdout)
    assert [(row["technique"], row["status"]) for row in result["attempts"]] == [
        ("plain torch", "PASSED"),
        ("fused rms_norm", "PASSED"),
    ]
    assert result["technique"] == "fused rms_norm"
    assert len(server.requests) == 3
    folder = Path(result["folder"])
    assert b"sk-ant-test" not in b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def write_answer(number: int, source: str) -> str:
    return f"TECHNIQUE: way {number}\nWHY: it may be faster.\n```python\n{source}\nA = {number}\n```\n"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr("fib_tools.draft.batch_drafter.time", SimpleNamespace(sleep=taken.append))
    return taken


def test_a_generation_can_come_as_a_batch_for_half_the_price(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    with serve_batches(lambda place, _: write_answer(place, FUSED if place == 3 else HONEST)) as batches:
        result = search_batches(optimize, monkeypatch, batches)
    assert [len(sent) for sent in batches.sent] == [6]
    assert [row.technique for row in result.attempts] == [f"way {place}" for place in reversed(range(6))]
    assert naps == [5.0, 7.5]
    assert result.usd == pytest.approx(6 * (1000 * 2 + 200 * 10) / 2e6)
    assert not (Path(result.folder) / "batch.json").exists()


def test_a_wide_beam_of_batches_ends_with_the_good_one_and_names_the_cheats(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    sources = {1: HALF_ROW, 2: REMEMBERS, 3: SEARCHES_HEAP, 4: WRITES_INPUT, 6: FUSED}

    def reply(place: int, params: dict[str, Any]) -> str:
        is_second = "Tried so far" in params["messages"][0]["content"][0]["text"]
        return write_answer(place + 8 * is_second, SLOW if is_second else sources.get(place, SLOW))

    with serve_batches(reply, refusals=1) as batches:
        result = search_batches(optimize, monkeypatch, batches, width=8, max_evals=10)
    assert batches.refused == 1, "a busy service is asked again"
    assert [len(sent) for sent in batches.sent] == [8, 2]
    assert all(params["params"]["max_tokens"] > 1024 for sent in batches.sent for params in sent)
    rules = {row.technique: row.rule for row in result.attempts if row.rule}
    assert rules == {
        "way 1": "wrong-values",
        "way 2": "stale-result",
        "way 3": "source-import",
        "way 4": "inputs-changed",
    }
    assert [row.kind for row in result.attempts] == ["first"] * 8 + ["improve"] * 2
    assert result.technique == "way 6"
    assert naps


def search_batches(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, batches: Batches, **options: Any
) -> OptimizeResult:
    # the fixture's own server is not asked: the address names the one of the batches
    with monkeypatch.context() as patch:
        patch.setattr("fib_tools.llm.service.read_endpoint", lambda _name: batches.url)
        return optimize([], **{"strategy": "beam", "width": 6, "max_evals": 6, "batch": True, **options})


def test_a_batch_that_was_sent_before_a_kill_is_found_again(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    def die(_seconds: float) -> None:
        raise SystemExit(9)

    with serve_batches(lambda place, _: write_answer(place, HONEST)) as batches:
        with monkeypatch.context() as patch:
            patch.setattr("fib_tools.draft.batch_drafter.time", SimpleNamespace(sleep=die))
            with pytest.raises(SystemExit):
                search_batches(optimize, monkeypatch, batches)
        result = search_batches(optimize, monkeypatch, batches, resume="latest")
    assert len(batches.sent) == 1
    assert len(result.attempts) == 6
    assert result.best
    assert naps in ([], [5.0])


def test_what_failed_in_a_batch_is_told_and_the_rest_is_kept(
    optimize: Optimize, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    with serve_batches(lambda place, _: None if place == 2 else write_answer(place, HONEST)) as batches:
        with pytest.raises(SourceError, match="1 answers of the batch failed: errored: overloaded"):
            search_batches(optimize, monkeypatch, batches)
        result = search_batches(optimize, monkeypatch, batches, resume="latest", max_evals=5)
    assert [len(sent) for sent in batches.sent] == [6]
    assert len(result.attempts) == 5
    assert naps
