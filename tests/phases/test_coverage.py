"""`fib coverage`: what the dataset has of each kernel of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.model.trace import Trace
from fib_tools.model.workload import RandomInput, Workload
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases.context import Context
from fib_tools.phases.coverage import CoverageResult

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
    assert f"| `{NORM.name}` | rmsnorm | 1 | 1 |  | Definition and Workloads (1) |" in text


def test_a_second_run_changes_nothing_and_a_dry_run_writes_nothing(context: Context, model: str) -> None:
    assert track(context, model, dry_run=True).changed
    assert not (context.workspace.root / "model_coverage.md").exists()
    assert track(context, model).changed
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


def test_a_model_that_cannot_be_read_does_not_stop_the_others(context: Context, model: str) -> None:
    broken = context.workspace.root / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    result = track(context, str(broken), model)
    assert [failure.model for failure in result.failures] == [str(broken)]
    assert len(result.models) == 1
    assert result.has_errors


def test_without_an_onboarded_model_it_is_said_what_to_name(context: Context) -> None:
    with pytest.raises(RequestError, match="no model is onboarded here"):
        track(context)


def test_what_was_onboarded_is_tracked(context: Context, model: str) -> None:
    get_operation("inventory").run(context, {"model": model})
    assert [item.model for item in track(context).models] == ["tiny-llama"]
