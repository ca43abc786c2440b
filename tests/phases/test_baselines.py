from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Language, Solution
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases import baselines
from fib_tools.phases.baselines import BaselineEntry, BaselinesResult, make_baselines, write_baselines
from fib_tools.phases.context import Context

HEADS = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
KERNELS: dict[str, dict[str, Any]] = {
    "rmsnorm": {"hidden_size": 64},
    "gemm": {"n": 32, "k": 64},
    "merge_state": {"num_heads": 4, "head_dim": 64},
    "gqa_paged_decode": {**HEADS, "page_size": 16},
    "kda_prefill": {"num_heads": 2, "head_dim": 64},
}


def _build(kernel: str) -> Definition:
    return get_kernel_type(kernel).build(KERNELS[kernel])


@pytest.fixture
def dataset(context: Context) -> Path:
    for kernel in KERNELS:
        context.dataset.write_definition(_build(kernel))
    return context.dataset.root


def _statuses(result: BaselinesResult) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in result.entries:
        found.setdefault(entry.definition, []).append(entry.status)
    return found


def _entry(result: BaselinesResult, definition: str) -> BaselineEntry:
    return next(entry for entry in result.entries if entry.definition == definition)


def test_every_kernel_of_a_definition_becomes_a_solution(context: Context, dataset: Path) -> None:
    result = write_baselines(context)
    assert _statuses(result) == {
        "gemm_n32_k64": ["written"],
        "gqa_paged_decode_h8_kv2_d64_ps16": ["written"],
        "kda_prefill_h2_d64": ["no kernel"],
        "merge_state_h4_d64": ["written", "written"],
        "rmsnorm_h64": ["written"],
    }
    assert not result.has_errors
    assert "gates" in _entry(result, "kda_prefill_h2_d64").reason
    assert "written" in result.summary().lines[-1]
    (path,) = (dataset / "solutions" / "baseline" / "rmsnorm" / "rmsnorm_h64").iterdir()
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["author"] == "baseline"
    assert document["name"] == path.stem == _entry(result, "rmsnorm_h64").solution
    assert document["spec"]["destination_passing_style"] is False
    assert document["spec"]["entry_point"] == "main.py::run"
    assert document["spec"]["dependencies"] == ["flashinfer", "torch"]
    assert "sm90" in document["spec"]["target_hardware"]
    assert "flashinfer.norm.rmsnorm" in document["description"]


def test_a_second_run_changes_nothing(context: Context, dataset: Path) -> None:
    write_baselines(context)
    before = {path: path.stat().st_mtime_ns for path in (dataset / "solutions").rglob("*.json")}
    again = write_baselines(context)
    assert {status for found in _statuses(again).values() for status in found} == {"unchanged", "no kernel"}
    assert {path: path.stat().st_mtime_ns for path in (dataset / "solutions").rglob("*.json")} == before


def test_a_dry_run_writes_nothing(context: Context, dataset: Path) -> None:
    result = write_baselines(context, dry_run=True, op_types=("rmsnorm",))
    assert _statuses(result) == {"rmsnorm_h64": ["would write"]}
    assert not (dataset / "solutions").exists()


def test_the_name_tells_the_source_and_what_runs() -> None:
    ((solution, wrapper),) = make_baselines(_build("rmsnorm"))
    assert solution.name == f"flashinfer_wrapper_{solution.hash[:6]}"
    assert wrapper.source == solution.sources[0].content
    ((other, _),) = make_baselines(get_kernel_type("rmsnorm").build({"hidden_size": 64, "eps": 1e-5}))
    assert other.name != solution.name
    ((torch_one, _),) = make_baselines(_build("gemm"))
    assert torch_one.name.startswith("torch_wrapper_")


def test_planning_is_declared_apart() -> None:
    definition = _build("gqa_paged_decode")
    ((solution, wrapper),) = make_baselines(definition)
    assert wrapper.has_setup
    tree = ast.parse(solution.sources[0].content)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [argument.arg for argument in functions["setup"].args.args] == list(definition.inputs)
    assert [argument.arg for argument in functions["run"].args.args] == list(definition.inputs)
    assert functions["run"].args.kwarg is not None
    assert not functions["run"].args.kwonlyargs, "flashinfer-bench counts them as inputs"


@pytest.mark.parametrize(
    ("parameters", "uses"),
    [
        ({"num_qo_heads": 24, "num_kv_heads": 8}, False),
        ({"num_qo_heads": 32, "num_kv_heads": 8}, True),
        ({"num_qo_heads": 24, "num_kv_heads": 8, "kv_dtype": "float8_e4m3fn"}, True),
    ],
)
def test_decode_uses_tensor_cores_where_sglang_has_it_so(parameters: dict[str, Any], *, uses: bool) -> None:
    definition = get_kernel_type("gqa_paged_decode").build({"head_dim": 128, "page_size": 64, **parameters})
    ((solution, _),) = make_baselines(definition)
    assert f"USE_TENSOR_CORES = {uses}\n" in solution.sources[0].content


def _pretend(monkeypatch: pytest.MonkeyPatch, *wrappers: Wrapper) -> None:
    monkeypatch.setattr(baselines, "find_ground_truth", lambda _definition: GroundTruth(wrappers=wrappers))


def _wrapper(kind: Any, *capabilities: int, body: str = "def run(hidden_states, weight):\n    return 1") -> Wrapper:
    return Wrapper(kind=kind, api=f"{kind}.call", body=body, capabilities=capabilities)


def test_torch_is_a_baseline_only_on_gpus_without_another(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, _wrapper("flashinfer", 90, 100), _wrapper("torch", 90))
    assert [wrapper.kind for _, wrapper in make_baselines(_build("rmsnorm"))] == ["flashinfer"]
    _pretend(monkeypatch, _wrapper("flashinfer", 100), _wrapper("torch", 90, 100))
    assert [wrapper.kind for _, wrapper in make_baselines(_build("rmsnorm"))] == ["flashinfer", "torch"]


@pytest.mark.usefixtures("dataset")
def test_a_copy_of_the_reference_is_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _build("rmsnorm").reference
    _pretend(monkeypatch, _wrapper("torch", 90, body=text[text.index("@torch") :] + "\n# not the same text"))
    result = write_baselines(context, op_types=("rmsnorm",))
    assert [(entry.status, entry.reason) for entry in result.entries] == [
        ("refused", "it would be a copy of the reference")
    ]
    assert result.has_errors


def test_a_solution_of_that_name_that_says_something_else_is_kept(context: Context, dataset: Path) -> None:
    write_baselines(context, op_types=("rmsnorm",))
    (path,) = (dataset / "solutions" / "baseline" / "rmsnorm" / "rmsnorm_h64").iterdir()
    text = path.read_text(encoding="utf-8").replace("eps=EPS", "eps=2 * EPS")
    path.write_text(text, encoding="utf-8")
    result = write_baselines(context, op_types=("rmsnorm",))
    assert _statuses(result) == {"rmsnorm_h64": ["refused"]}
    assert "another Solution" in result.entries[0].reason
    assert path.read_text(encoding="utf-8") == text


def test_another_description_of_the_same_solution_is_kept(context: Context, dataset: Path) -> None:
    write_baselines(context, op_types=("rmsnorm",))
    (path,) = (dataset / "solutions" / "baseline" / "rmsnorm" / "rmsnorm_h64").iterdir()
    document = json.loads(path.read_text(encoding="utf-8"))
    document["description"] = "written with an older FlashInfer"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert _statuses(write_baselines(context, op_types=("rmsnorm",))) == {"rmsnorm_h64": ["unchanged"]}
    assert json.loads(path.read_text(encoding="utf-8")) == document


def test_a_definition_that_is_not_there_is_refused(context: Context, dataset: Path) -> None:
    assert dataset.is_dir()
    with pytest.raises(RequestError, match="no Definition 'nothing'"):
        write_baselines(context, definitions=("nothing",))
    with pytest.raises(RequestError, match="no op_type"):
        write_baselines(context, op_types=("nothing",))


def test_a_broken_definition_is_named(context: Context, dataset: Path) -> None:
    (dataset / "definitions" / "rmsnorm" / "broken_h1.json").write_text("{broken", encoding="utf-8")
    result = write_baselines(context)
    refused = [entry for entry in result.entries if entry.status == "refused"]
    assert [entry.definition for entry in refused] == ["definitions/rmsnorm/broken_h1.json:1:2"]
    assert result.has_errors
    assert not write_baselines(context, op_types=("gemm",)).has_errors


def test_a_foreign_definition_with_our_interface_has_our_kernel(context: Context, dataset: Path) -> None:
    foreign = _build("rmsnorm").model_copy(update={"name": "my_norm", "tags": ["fi_api:flashinfer.norm.rmsnorm"]})
    context.dataset.write_definition(foreign)
    result = write_baselines(context, definitions=("my_norm",))
    assert result.entries[0].kernel == "flashinfer.norm.rmsnorm"
    assert (dataset / "solutions" / "baseline" / "rmsnorm" / "my_norm").is_dir()


def test_flashinfer_bench_reads_and_builds_a_baseline(dataset: Path, context: Context) -> None:
    data = pytest.importorskip("flashinfer_bench.data")
    write_baselines(context, op_types=("gemm", "gqa_paged"))
    for path in sorted((dataset / "solutions").rglob("*.json")):
        theirs = data.Solution.model_validate_json(path.read_text(encoding="utf-8"))
        ours = Solution.model_validate_json(path.read_text(encoding="utf-8"))
        assert theirs.spec.language.value == ours.spec.language.value == Language.PYTHON.value
        assert theirs.spec.destination_passing_style is False
