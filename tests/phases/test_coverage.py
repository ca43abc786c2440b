"""`fib coverage`: what the dataset has of each kernel of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.model.manifest import Manifest
from fib_tools.model.trace import Trace
from fib_tools.model.workload import RandomInput, Workload
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases import coverage_models
from fib_tools.phases.context import Context
from fib_tools.phases.coverage import CoverageResult
from fib_tools.phases.manifests import find_manifest, manifest_name, save_manifest
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.survey import Survey, survey_model

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 64, "eps": 1e-6})

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture
def model(context: Context, write_config: Callable[..., Path]) -> str:
    folder = context.workspace.root / "tiny-llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(write_config().read_text())
    return str(folder)


def track(context: Context, *models: str, **options: Any) -> CoverageResult:
    result = get_operation("coverage").run(context, {"models": models or None, **options})
    assert isinstance(result, CoverageResult)
    return result


def test_each_kernel_is_missing_defined_or_has_workloads(context: Context, model: str) -> None:
    missing = track(context, model).models[0]
    assert {kernel.status for kernel in missing.kernels} == {"missing"}
    context.dataset.write_definition(NORM)
    assert {kernel.name for kernel in track(context, model).models[0].kernels if kernel.status != "missing"} == {
        NORM.name
    }
    inputs = {name: RandomInput() for name in NORM.inputs}
    workload = Workload(axes={"batch_size": 3}, inputs=inputs, uuid="0" * 8)
    context.dataset.write_workloads("rmsnorm", [Trace(definition=NORM.name, workload=workload)])
    (norm,) = [kernel for kernel in track(context, model).models[0].kernels if kernel.status != "missing"]
    assert (norm.status, norm.workloads) == ("workloads", 1)
    text = (context.workspace.root / "model_coverage.md").read_text()
    assert f"| `{NORM.name}` | rmsnorm | 1 | 1 |  | Definition and Workloads (1) | template | sgl_integrated |" in text


def test_each_way_of_serving_has_its_own_counts(context: Context) -> None:
    (kimi,) = track(context, "kimi-k2").models
    ways = {way.title: set(way.kernels) for way in kimi.ways}
    plain, wide = ways["tp8, fp8 on H200, B200"], ways["tp8 dp4-attention, fp8 on H200, B200"]
    assert "mla_paged_decode_h8_ckv512_kpe64_ps1" in plain - wide
    assert "mla_paged_decode_h32_ckv512_kpe64_ps1" in wide - plain
    assert set().union(*ways.values()) == {kernel.name for kernel in kimi.kernels}
    text = (context.workspace.root / "model_coverage.md").read_text()
    assert f"\n| tp8, fp8 on H200, B200 | {len(plain)} | 0 | 0 | {len(plain)} |\n" in text


def test_new_models_are_listed_and_what_could_not_be_looked_at_is_said(context: Context) -> None:
    result = track(context, discover=True)
    assert result.discovered is not None
    assert [line.partition(":")[0] for line in result.discovered.basis] == ["cookbook", "sglang", "hub"]
    assert result.discovered.basis[2] == "hub: offline, so no trending list"
    text = (context.workspace.root / "model_coverage.md").read_text()
    assert "run: fib clone --only sglang" in text
    assert f"| {result.discovered.models[0].model} | cookbook |" in text
    assert not track(context, discover=True).changed
    assert any(table.title == "new models" for table in result.summary().tables)


def test_statuses_are_refreshed_in_the_document_and_in_the_manifests(context: Context) -> None:
    def manifest() -> Manifest:
        return (find_manifest(context.workspace, "llama-3.2-1b") or pytest.fail("no manifest"))[1]

    get_operation("inventory").run(context, {"model": "llama-3.2-1b"})
    fresh = manifest()
    stale = tuple(kernel.model_copy(update={"fi_trace_template": False}) for kernel in fresh.kernels)
    name = manifest_name("llama-3.2-1b", datetime.now(timezone.utc).date())
    save_manifest(context.workspace, name, fresh.model_copy(update={"kernels": stale}))
    track(context, "llama-3.2-1b", "llama-3.2-3b")
    track(context, refresh_status=True, dry_run=True)
    assert manifest().kernels == stale
    refreshed = track(context, refresh_status=True)
    assert [item.model for item in refreshed.models] == ["llama-3.2-1b", "llama-3.2-3b"]
    assert not refreshed.changed
    assert manifest() == fresh


def test_a_model_whose_config_is_gone_is_tracked_by_its_manifest(context: Context, model: str) -> None:
    get_operation("inventory").run(context, {"model": model})
    (Path(model) / "config.json").unlink()
    (found,) = track(context).models
    assert [way.title for way in found.ways] == ["tp1"]
    assert set(found.ways[0].kernels) == {kernel.name for kernel in found.kernels}


def test_a_second_run_changes_nothing_and_a_dry_run_writes_nothing(context: Context, model: str) -> None:
    planned = track(context, model, dry_run=True)
    assert planned.changed
    assert planned.dry_run
    assert planned.summary().lines[-1].endswith("model_coverage.md: would be written")
    assert not (context.workspace.root / "model_coverage.md").exists()
    written = track(context, model)
    assert written.changed
    assert written.summary().lines[-1].endswith("model_coverage.md: written")
    assert not track(context, model).changed


def test_hand_written_names_are_held_against_the_config(context: Context, model: str) -> None:
    path = context.workspace.root / "notes.md"
    before = "# Tiny Llama\n\n| rmsnorm_h64 | rmsnorm_h65 |\n| gemm_n128_k64 | gqa_paged_decode_h1_kv1_d32_ps64 |\n\n# Other\nrmsnorm_h9\n"
    path.write_text(before)
    result = track(context, model, document=path)
    assert [(item.line, item.name, item.reason) for item in result.wrong] == [
        (3, "rmsnorm_h65", "by its config it is rmsnorm_h64")
    ]
    assert result.has_errors
    assert path.read_text().startswith(before)


def test_a_part_without_hand_written_names_costs_one_survey(
    context: Context, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(context, model)
    surveyed: list[str] = []

    def survey(_context: Context, name: str, options: ModelOptions) -> Survey:
        surveyed.append(name)
        return survey_model(_context, name, options)

    monkeypatch.setattr(coverage_models, "survey_model", survey)
    assert not track(context, model).changed
    assert surveyed == [model]


def test_a_model_that_cannot_be_read_does_not_stop_the_others(context: Context, model: str) -> None:
    broken = context.workspace.root / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    result = track(context, str(broken), model)
    assert [failure.model for failure in result.failures] == [str(broken)]
    assert len(result.models) == 1
    assert result.has_errors


def test_a_document_in_no_folder_is_refused_before_a_model_is_read(
    context: Context, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_models, "survey_model", lambda *_: pytest.fail("read too early"))
    with pytest.raises(RequestError, match="no such folder") as refused:
        track(context, model, document=context.workspace.root / "docs" / "coverage.md")
    assert refused.value.where == str(context.workspace.root / "docs")


def test_without_an_onboarded_model_it_is_said_what_to_name(context: Context) -> None:
    with pytest.raises(RequestError, match="no model is onboarded here"):
        track(context)


def test_what_was_onboarded_is_tracked(context: Context, model: str) -> None:
    get_operation("inventory").run(context, {"model": model})
    assert [item.model for item in track(context).models] == ["tiny-llama"]
