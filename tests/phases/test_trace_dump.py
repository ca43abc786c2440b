"""Runs of the engine that left dumps, held against the inventory of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.engine import EngineOptions, RunOutcome
from fib_tools.capture.runs import RunPlan
from fib_tools.errors import MissingDependencyError, PathError, RequestError
from fib_tools.host.gpu_lock import Lease
from fib_tools.host.locks import hold
from fib_tools.model.kernel import WitnessSource
from fib_tools.phases import serving, trace_dump
from fib_tools.phases.context import Context
from fib_tools.phases.define import define_model
from fib_tools.phases.inventory import keep_survey, workspace_lock
from fib_tools.phases.manifests import Standing, find_manifest
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.survey import survey_model
from fib_tools.phases.trace_dump import report_runs
from fib_tools.phases.trace_plan import TraceSubject, plan_runs
from fib_tools.phases.trace_result import KernelLine, TraceDumpResult
from tiny_model import snapshot

_NORM = """import torch

@torch.no_grad()
def _rmsnorm_reference(hidden_states, weight):
    EPS = 1e-6
    x = hidden_states.to(torch.float32)
    inv_rms = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + EPS)
    return ((x * inv_rms) * weight.to(torch.float32)).to(hidden_states.dtype)
"""


def a_norm(hidden_size: int, **changes: Any) -> dict[str, Any]:
    rows = {"shape": ["batch_size", "hidden_size"], "dtype": "bfloat16"}
    return {
        "name": f"rmsnorm_h{hidden_size}",
        "op_type": "rmsnorm",
        "tags": ["fi_api:flashinfer.norm.rmsnorm", "status:verified"],
        "axes": {"batch_size": {"type": "var"}, "hidden_size": {"type": "const", "value": hidden_size}},
        "inputs": {"hidden_states": rows, "weight": {"shape": ["hidden_size"], "dtype": "bfloat16"}},
        "outputs": {"output": rows},
        "reference": _NORM,
        **changes,
    }


def a_pool_dump(name: str, raw_name: str, **axes: int) -> dict[str, Any]:
    """A dump as the hook writes it for a call that the template's reference is wrong for."""
    heads, kv_heads, dim = axes["num_qo_heads"], axes["num_kv_heads"], axes["head_dim"]
    sizes = {"num_qo_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim, "page_size": 1}
    cache = {"shape": ["num_pages", "page_size", "num_kv_heads", "head_dim"], "dtype": "bfloat16"}
    rows = {"shape": ["total_q", "num_qo_heads", "head_dim"], "dtype": "bfloat16"}
    return {
        "name": name,
        "op_type": "gqa_paged",
        "tags": ["fi_api:flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper.run"],
        "axes": {
            "total_q": {"type": "var"},
            "num_pages": {"type": "var"},
            **{axis: {"type": "const", "value": value} for axis, value in sizes.items()},
        },
        "inputs": {"q": rows, "k_cache": cache, "v_cache": cache},
        "outputs": {"output": rows},
        "fib_kernel": "gqa_paged_prefill",
        "fib_axes": {**sizes, "causal": False},
        "fib_raw_name": raw_name,
        "fib_repairs": ["3-D pool: pages hold 1 token", "kv_indptr: int32, as planned"],
    }


class Case:
    """A tiny model with its plan, before any run."""

    def __init__(self, context: Context, write_config: Callable[..., Path]) -> None:
        self.context = context
        self.options = ModelOptions(config=write_config())
        survey = survey_model(context, "tiny", self.options)
        context.workspace.create()
        with hold(workspace_lock(context), purpose="a test"):
            self.standing: Standing = keep_survey(context, survey, self.options)
        self.facts = survey.facts
        self.plan: RunPlan = plan_runs(
            TraceSubject(model="tiny", config=survey.config.config, facts=survey.facts, points=survey.inventory.points)
        )
        self.folder = context.workspace.root / "dumps" / "tiny"

    def leave(self, run: str, *dumps: dict[str, Any], calls: tuple[dict[str, Any], ...] = ()) -> None:
        """Leave what a run leaves."""
        own = self.folder / run
        for index, document in enumerate(dumps):
            path = own / "dumps" / "rank0" / f"dump_{index}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document), encoding="utf-8")
        (own / "calls").mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(call) + "\n" for call in calls)
        (own / "calls" / "rank0-1.jsonl").write_text(lines + '{"cut off', encoding="utf-8")

    def report(self, **errors: str) -> TraceDumpResult:
        versions = {"sglang": "0.5.23", "flashinfer-python": "0.7.2"}
        outcomes = [
            RunOutcome(
                name=run.name,
                status="failed" if run.name in errors else "done",
                seconds=1.0,
                versions=versions,
                error=errors.get(run.name, ""),
            )
            for run in self.plan.runs
        ]
        return report_runs(self.context, self.standing, self.plan, folder=self.folder, outcomes=outcomes)


@pytest.fixture
def case(context: Context, write_config: Callable[..., Path], quick_gate: None) -> Case:
    del quick_gate
    return Case(context, write_config)


def line(result: TraceDumpResult, start: str) -> KernelLine:
    return next(item for item in result.kernels if item.name.startswith(start))


def test_a_kernel_that_the_engine_calls_is_confirmed_and_witnessed(case: Case) -> None:
    hidden = case.facts.hidden_size
    case.leave("tp1", a_norm(hidden))
    result = case.report()
    found = line(result, f"rmsnorm_h{hidden}")
    assert (found.status, found.runs, found.detail) == ("confirmed", ("tp1",), "")
    manifest = find_manifest(case.context.workspace, "tiny")
    assert manifest is not None
    (kernel,) = [item for item in manifest[1].kernels if item.name == f"rmsnorm_h{hidden}"]
    (witness,) = [item for item in kernel.witnesses if item.source is WitnessSource.DUMP]
    assert witness.detail == f"rmsnorm_h{hidden} (run tp1) with sglang 0.5.23, flashinfer-python 0.7.2"


def test_the_witness_outlives_the_next_inventory_and_is_there_once(case: Case) -> None:
    case.leave("tp1", a_norm(case.facts.hidden_size))
    case.report()
    case.report()
    survey = survey_model(case.context, "tiny", case.options)
    standing = keep_survey(case.context, survey, case.options)
    witnesses = [item.source for kernel in standing.whole.kernels for item in kernel.witnesses]
    assert witnesses.count(WitnessSource.DUMP) == 1


def test_what_flashinfer_dumps_wrongly_is_corrected(case: Case) -> None:
    attention = next(iter(case.facts.attentions.values()))
    sizes = {
        "num_qo_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
    }
    case.leave("tp1", a_pool_dump("gqa_paged_prefill_x_ps1", "gqa_paged_prefill_raw", **sizes))
    found = line(case.report(), "gqa_paged_prefill_full")
    assert found.status == "corrected"
    assert found.detail == "FlashInfer dumps gqa_paged_prefill_raw; 3-D pool: pages hold 1 token"


def test_another_epsilon_than_ours_differs(case: Case) -> None:
    hidden = case.facts.hidden_size
    case.leave("tp1", a_norm(hidden, reference=_NORM.replace("1e-6", "1e-3")))
    found = line(case.report(), f"rmsnorm_h{hidden}")
    assert found.status == "differs"
    assert found.detail == "eps: ours 1e-06, the engine's 0.001"


def test_a_kernel_that_is_not_in_the_inventory_is_new_and_staged(case: Case) -> None:
    case.leave("tp1", a_norm(4096))
    result = case.report()
    assert line(result, "rmsnorm_h4096").status == "new"
    assert [entry.status for entry in result.entries] == ["defined"]


def test_a_product_of_torch_is_seen_outside_of_flashinfer(case: Case) -> None:
    gemm = next(kernel for kernel in case.standing.asked.kernels if kernel.kernel == "gemm")
    weight = [gemm.parameters["n"], gemm.parameters["k"]]
    case.leave("tp1", calls=({"kernel": "torch.linear", "weight": weight, "bias": False},))
    found = line(case.report(), gemm.name)
    assert (found.status, found.detail) == ("seen", f"torch.linear weight {weight}")


def test_a_kernel_that_was_not_seen_has_its_reason(case: Case) -> None:
    case.leave("tp1", a_norm(case.facts.hidden_size))
    result = case.report(**{"tp1-paged": "ValueError: no\nfurther lines"})
    assert line(result, "gqa_paged_decode").detail == "nothing that tp1 did led to it"
    assert all(item.detail for item in result.kernels if item.status == "not seen")
    assert result.has_errors


def test_when_every_run_failed_the_reason_is_the_engines_error(case: Case) -> None:
    failed = {run.name: "ValueError: no\nfurther lines" for run in case.plan.runs}
    found = line(case.report(**failed), "gqa_paged_decode")
    assert found.detail == "tp1: ValueError: no; tp1-paged: ValueError: no"


def test_the_same_dump_of_two_runs_is_staged_once(case: Case) -> None:
    for run in ("tp1", "tp1-paged"):
        case.leave(run, a_norm(case.facts.hidden_size))
    result = case.report()
    assert len(result.entries) == 1
    assert line(result, "rmsnorm_h").runs == ("tp1", "tp1-paged")


def test_the_report_is_kept_beside_the_runs(case: Case) -> None:
    result = case.report()
    kept = json.loads((case.folder / "report.json").read_text(encoding="utf-8"))
    assert [item["name"] for item in kept["kernels"]] == [item.name for item in result.kernels]
    said = result.summary()
    assert [table.title for table in said.tables] == ["runs of the engine", "kernels in the engine"]


@pytest.mark.usefixtures("untraced")
def test_a_dry_run_shows_the_runs_and_makes_none(context: Context, write_config: Callable[..., Path]) -> None:
    result = define_model(context, "tiny", ModelOptions(config=write_config()), path="dump", dry_run=True)
    assert isinstance(result, TraceDumpResult)
    assert [(run.name, run.status) for run in result.runs] == [("tp1", "would run"), ("tp1-paged", "would run")]
    assert not any("dumps" in name for name in snapshot(context.workspace.root))


@pytest.mark.usefixtures("untraced")
def test_without_sglang_it_is_said_how_to_install_it(
    context: Context, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_has_sglang", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"fib-tools\[gpu\]"):
        define_model(context, "tiny", ModelOptions(config=write_config()), path="dump")


@pytest.mark.usefixtures("untraced")
def test_without_a_gpu_it_is_said_what_to_do(
    context: Context, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_has_sglang", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MissingDependencyError, match="--from-dir"):
        define_model(context, "tiny", ModelOptions(config=write_config()), path="dump")


@pytest.mark.usefixtures("untraced")
def test_weights_that_are_none_are_refused(context: Context, write_config: Callable[..., Path], tmp_path: Path) -> None:
    options = ModelOptions(config=write_config())
    with pytest.raises(RequestError, match="it has no config"):
        define_model(context, "tiny", options, path="dump", weights=str(tmp_path / "nowhere"))
    confined = Context(workspace=context.workspace, offline=True, is_confined=True)
    with pytest.raises(PathError):
        define_model(confined, "tiny", options, path="dump", weights="/etc")


def test_a_dump_runs_the_engine_under_the_lock_and_reports(
    context: Context, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, quick_gate: None
) -> None:
    del quick_gate
    monkeypatch.setattr(trace_dump, "check_machine", lambda **_: None)
    asked: list[tuple[int, tuple[str, ...]]] = []

    @contextmanager
    def hold_gpus(count: int, **_: Any) -> Iterator[Lease]:
        asked.append((count, ()))
        yield Lease(gpus=(), environment={"CUDA_VISIBLE_DEVICES": "GPU-7"}, descriptors=())

    def make(runs: Any, folder: Path, options: EngineOptions) -> tuple[RunOutcome, ...]:
        asked.append((options.jobs, (options.environment["CUDA_VISIBLE_DEVICES"],)))
        return tuple(RunOutcome(name=run.name, status="done", seconds=1.0) for run in runs if folder.is_dir())

    monkeypatch.setattr(serving, "acquire", hold_gpus)
    monkeypatch.setattr(trace_dump, "make_runs", make)
    result = define_model(context, "tiny", ModelOptions(config=write_config()), path="dump")
    assert isinstance(result, TraceDumpResult)
    assert asked == [(1, ()), (4, ("GPU-7",))]
    assert [run.status for run in result.runs] == ["done", "done"]
    assert {item.status for item in result.kernels} == {"not seen"}
