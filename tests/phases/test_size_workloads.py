from __future__ import annotations

from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.op_types.size_workloads import make_size_workloads
from fib_tools.op_types.sizes import SIZES, choose_test_axes
from fib_tools.operations import get_operation
from fib_tools.phases.collect_result import CollectResult
from fib_tools.phases.context import Context
from fib_tools.phases.validate import validate_dataset
from tiny_model import snapshot

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 8})
SAMPLER = get_kernel_type("top_k_top_p_sampling_from_probs").build({"vocab_size": 32})
DECODE = get_kernel_type("gqa_paged_decode").build(
    {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 8, "page_size": 16}
)


@pytest.fixture
def ready(context: Context) -> Context:
    for definition in (NORM, DECODE):
        context.dataset.write_definition(definition)
    return context


def collect(context: Context, **options: Any) -> CollectResult:
    result = get_operation("collect").run(context, {"sizes": SIZES, **options})
    assert isinstance(result, CollectResult)
    return result


@pytest.mark.parametrize("definition", [NORM, DECODE, SAMPLER], ids=lambda definition: definition.name)
def test_there_is_a_workload_for_each_size_of_the_reference_test(definition: Definition) -> None:
    made = make_size_workloads(definition)
    assert {size: workload.axes for size, workload in made.items()} == {
        size: choose_test_axes(definition, size) for size in SIZES
    }
    assert {workload.origin for workload in made.values()} == {"synthetic"}
    assert {frozenset(workload.inputs) for workload in made.values()} == {frozenset(definition.inputs)}


def test_sizes_that_say_the_same_are_one_workload() -> None:
    fixed = NORM.model_copy(update={"constraints": ["batch_size == hidden_size"]})
    assert list(make_size_workloads(fixed)) == ["small"]
    impossible = NORM.model_copy(update={"constraints": ["hidden_size == 9"]})
    assert make_size_workloads(impossible) == {}


def test_definitions_without_workloads_get_some_that_pass_every_check(ready: Context) -> None:
    result = collect(ready)
    assert [(entry.status, entry.workloads) for entry in result.entries] == [("written", 3), ("written", 3)]
    assert result.origin == "synthetic"
    assert not result.has_errors
    assert result.summary().lines[-2] == "6 Workloads of made-up sizes, 2 Definitions"
    assert not validate_dataset(ready, checks=("workload",), execute=True).has_errors


def test_definitions_with_workloads_are_left_alone(ready: Context) -> None:
    collect(ready, definitions=(NORM.name,), sizes=("small",))
    before = snapshot(ready.dataset.root)[f"workloads/rmsnorm/{NORM.name}.jsonl"]
    result = collect(ready)
    assert {entry.definition: entry.status for entry in result.entries} == {NORM.name: "kept", DECODE.name: "written"}
    assert snapshot(ready.dataset.root)[f"workloads/rmsnorm/{NORM.name}.jsonl"] == before


def test_a_definition_that_no_size_fits_is_told(ready: Context) -> None:
    ready.dataset.write_definition(NORM.model_copy(update={"name": "impossible", "constraints": ["hidden_size == 9"]}))
    result = collect(ready)
    assert result.has_errors
    assert any("impossible" in line and "no length" in line for line in result.summary().lines)


def test_a_dry_run_writes_nothing(ready: Context) -> None:
    before = snapshot(ready.workspace.root)
    assert {entry.status for entry in collect(ready, dry_run=True).entries} == {"would write"}
    assert snapshot(ready.workspace.root) == before


def test_sizes_and_an_engine_exclude_each_other(ready: Context) -> None:
    with pytest.raises(RequestError, match="reads no engine"):
        collect(ready, model="tiny")
