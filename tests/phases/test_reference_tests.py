from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fib_tools.errors import RequestError
from fib_tools.host.gpu_lock import Lease
from fib_tools.host.gpus import Gpu
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases import _reference_conftest as shared
from fib_tools.phases import reference_runs, reference_tests
from fib_tools.phases.context import Context
from fib_tools.phases.reference_runs import TestRun
from fib_tools.phases.reference_test_file import is_ours, read_conftest, write_test
from fib_tools.phases.reference_tests import TestsResult, write_or_run_tests

HEADS = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
GIB = 1 << 30
EXPERTS = {"num_experts": 16, "top_k": 4, "num_local_experts": 8, "hidden_size": 256, "intermediate_size": 128}

KERNELS: dict[str, Mapping[str, Any]] = {
    "rmsnorm": {"hidden_size": 64},
    "silu_and_mul": {"intermediate_size": 32},
    "rope_with_cos_sin_cache": {"head_dim": 64, "rotary_dim": 64},
    "merge_state": {"num_heads": 4, "head_dim": 64},
    "gemm": {"n": 32, "k": 64},
    "bmm": {"b": 2, "n": 32, "k": 64},
    "embedding": {"vocab_size": 100, "hidden_size": 16},
    "gemm_fp8_block": {"n": 256, "k": 256},
    "gqa_paged_decode": {**HEADS, "page_size": 1},
    "gqa_paged_prefill": {**HEADS, "page_size": 16},
    "gqa_ragged_prefill": HEADS,
    "mla_paged_prefill": {"num_qo_heads": 4, "page_size": 64, "sm_scale": 0.1, "kv_dtype": "float8_e4m3fn"},
    "mla_ragged_prefill": {"num_qo_heads": 4},
    "append_paged_kv_cache": {"num_kv_heads": 2, "head_dim": 64, "page_size": 16},
    "fp8_quantize_1x128": {"hidden_size": 256},
    "top_k_top_p_sampling_from_probs": {"vocab_size": 128},
    "chain_speculative_sampling": {"vocab_size": 128},
    "moe_routing": {"num_experts": 16, "top_k": 4, "routing": "ds", "n_group": 4, "topk_group": 2},
    "moe_fp8_block_scale": {**EXPERTS, "routing": "ds", "n_group": 4, "topk_group": 2},
    "moe_bf16": {**EXPERTS, "routing": "renormalize"},
    "moe_nvfp4": {**EXPERTS, "routing": "renormalize"},
    "gdn_decode": {"num_q_heads": 2, "num_v_heads": 4, "head_size": 64},
}


def _build(kernel: str) -> Definition:
    return get_kernel_type(kernel).build(KERNELS[kernel])


each = pytest.mark.parametrize("kernel", KERNELS)


@each
def test_a_test_file_is_short_and_stands_alone(kernel: str) -> None:
    text = write_test(_build(kernel))
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {
        "pytest",
        "torch",
        "flashinfer",
        "sglang",
        "sgl_kernel",
        "triton",
    }
    kernels = text.count("_kernel():") + text.count("_kernel_1():")
    assert len(text.splitlines()) < 100 + 20 * max(kernels, 1)
    assert is_ours(text)


@each
def test_the_inputs_of_a_test_file_suit_the_reference_at_every_size(kernel: str) -> None:
    definition = _build(kernel)
    namespace: dict[str, Any] = {}
    exec(compile(write_test(definition), "test", "exec"), namespace)  # noqa: S102  # the text is ours
    reference: dict[str, Any] = {}
    exec(compile(definition.reference, "reference", "exec"), reference)  # noqa: S102  # ours as well
    sizes = namespace["SIZES"]
    assert [sum(size.values()) for size in sizes.values()] == sorted(sum(size.values()) for size in sizes.values())
    for size in sizes.values():
        inputs = namespace["make_inputs"](shared.Draw("cpu"), **size)
        assert len(inputs) == len(definition.inputs)
        for value, spec in zip(inputs, definition.inputs.values(), strict=True):
            assert spec.shape is None or str(value.dtype) == f"torch.{spec.dtype.value}"
            assert spec.shape is None or list(value.shape) == [
                {**size, **definition.const_axes}[axis] for axis in spec.shape
            ]
    small = namespace["make_inputs"](shared.Draw("cpu"), **sizes["small"])
    outputs = reference["run"](*small)
    assert len(outputs if isinstance(outputs, tuple) else (outputs,)) == len(definition.outputs)


@pytest.fixture
def dataset(context: Context) -> Path:
    for kernel in ("rmsnorm", "gemm", "embedding"):
        context.dataset.write_definition(_build(kernel))
    return context.dataset.root


@pytest.fixture
def folder(dataset: Path) -> Path:
    return dataset / "tests" / "references"


def _by_name(result: TestsResult) -> dict[str, str]:
    return {entry.name: entry.status for entry in result.entries}


def test_tests_are_written_once(context: Context, folder: Path) -> None:
    first = write_or_run_tests(context, "write", all=True)
    assert _by_name(first) == dict.fromkeys(["embedding_v100_d16", "gemm_n32_k64", "rmsnorm_h64"], "written")
    assert sorted(path.name for path in folder.iterdir()) == [
        "conftest.py",
        "test_embedding_v100_d16.py",
        "test_gemm_n32_k64.py",
        "test_rmsnorm_h64.py",
    ]
    assert set(_by_name(write_or_run_tests(context, "write", all=True)).values()) == {"unchanged"}


def test_an_edited_test_is_kept(context: Context, folder: Path) -> None:
    write_or_run_tests(context, "write", all=True)
    path = folder / "test_gemm_n32_k64.py"
    edited = path.read_text(encoding="utf-8").replace("small", "tiny")
    path.write_text(edited, encoding="utf-8")
    result = write_or_run_tests(context, "write", definitions=("gemm_n32_k64",))
    assert _by_name(result) == {"gemm_n32_k64": "kept"}
    assert path.read_text(encoding="utf-8") == edited
    path.unlink()
    assert _by_name(write_or_run_tests(context, "write", op_types=("gemm",))) == {"gemm_n32_k64": "written"}


def test_an_older_test_of_ours_is_brought_up_to_date(context: Context, folder: Path) -> None:
    write_or_run_tests(context, "write", op_types=("rmsnorm",))
    path = folder / "test_rmsnorm_h64.py"
    path.write_text(write_test(_build("gemm")), encoding="utf-8")
    assert _by_name(write_or_run_tests(context, "write", op_types=("rmsnorm",))) == {"rmsnorm_h64": "updated"}


def test_a_dry_run_writes_nothing(context: Context, folder: Path) -> None:
    result = write_or_run_tests(context, "write", all=True, dry_run=True)
    assert set(_by_name(result).values()) == {"would write"}
    assert not folder.exists()


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("selection", [{}, {"definitions": ("nothing",)}, {"op_types": ("nothing",)}])
def test_a_selection_of_nothing_is_refused(context: Context, selection: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        write_or_run_tests(context, "write", **selection)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("dataset")
def test_a_gpu_that_is_not_there_is_an_error_and_no_skipped_test(context: Context) -> None:
    write_or_run_tests(context, "write", all=True)
    with pytest.raises(RequestError, match="no GPU"):
        write_or_run_tests(context, "run", all=True, device="cuda")


def test_on_a_cpu_runs_what_can_run_and_the_rest_says_why_not(context: Context, dataset: Path) -> None:
    write_or_run_tests(context, "write", all=True)
    _break(dataset / "definitions" / "embedding" / "embedding_v100_d16.json")
    result = write_or_run_tests(context, "run", all=True, device="cpu")
    assert _by_name(result) == {"embedding_v100_d16": "failed", "gemm_n32_k64": "passed", "rmsnorm_h64": "skipped"}
    entries = {entry.name: entry for entry in result.entries}
    assert entries["rmsnorm_h64"].reason == "flashinfer.norm.rmsnorm needs a GPU"
    assert entries["gemm_n32_k64"].kernel == "torch.nn.functional.linear"
    assert "cosine 1.0000" in entries["gemm_n32_k64"].reason
    assert "want" in entries["embedding_v100_d16"].reason
    assert result.has_errors
    assert not any(entry.verified for entry in result.entries)
    outcomes = [record["outcome"] for record in entries["rmsnorm_h64"].records if record["size"] == "small"]
    assert outcomes == ["passed", "passed", "skipped"]
    report = json.loads(Path(result.report).read_text(encoding="utf-8"))
    assert [entry["status"] for entry in report["entries"]] == ["failed", "passed", "skipped"]


def _break(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document["reference"] = document["reference"].replace("weight[input_ids]", "weight[input_ids].flip(0)")
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_test_that_was_not_written_is_skipped_and_says_so(context: Context, dataset: Path) -> None:
    assert dataset.is_dir()
    result = write_or_run_tests(context, "run", op_types=("gemm",), device="cpu")
    assert [(entry.status, entry.reason) for entry in result.entries] == [
        ("skipped", "no test file; run: fib tests write")
    ]


def _pretend(monkeypatch: pytest.MonkeyPatch, sizes: tuple[str, ...], outcome: str = "passed") -> None:
    def run(files: Mapping[str, Path], **_options: Any) -> Iterator[TestRun]:
        test = "test_the_kernel_agrees_with_the_reference"
        records = tuple({"test": test, "size": size, "outcome": outcome, "kernel": "the.kernel"} for size in sizes)
        for name in files:
            yield TestRun(name=name, records=records)

    monkeypatch.setattr(reference_tests, "run_tests", run)


@pytest.mark.usefixtures("dataset")
def test_what_agreed_on_a_gpu_at_every_size_is_verified(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    write_or_run_tests(context, "write", all=True)
    _pretend(monkeypatch, ("small", "medium", "large"))
    result = write_or_run_tests(context, "run", op_types=("rmsnorm",), device="cuda")
    assert result.entries[0].verified
    found = context.dataset.find_definition("rmsnorm_h64")
    assert found is not None
    assert "status:verified" in found.tags
    assert result.report.endswith("reference_tests.json")
    assert result.report in result.summary().lines[-1]


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    ("sizes", "outcome", "options"),
    [
        (("small",), "passed", {}),
        (("small", "medium", "large"), "failed", {}),
        (("small", "medium", "large"), "passed", {"device": "cpu"}),
        (("small", "medium", "large"), "passed", {"tolerance": 0.5}),
    ],
)
def test_nothing_less_is_verified(
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[str, ...],
    outcome: str,
    options: dict[str, Any],
) -> None:
    write_or_run_tests(context, "write", all=True)
    _pretend(monkeypatch, sizes, outcome)
    write_or_run_tests(context, "run", op_types=("rmsnorm",), **{"device": "cuda", **options})
    found = context.dataset.find_definition("rmsnorm_h64")
    assert found is not None
    assert "status:verified" not in found.tags


def test_the_shared_file_is_marked_as_ours() -> None:
    assert is_ours(read_conftest())
    assert not is_ours(read_conftest().replace("DRAWS = 4096", "DRAWS = 1"))


@pytest.mark.parametrize("name", ["test_rmsnorm_h64.py", "conftest.py"])
def test_a_test_that_somebody_changed_verifies_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
) -> None:
    write_or_run_tests(context, "write", all=True)
    with (folder / name).open("a", encoding="utf-8") as stream:
        stream.write("# laxer now\n")
    _pretend(monkeypatch, ("small", "medium", "large"))
    result = write_or_run_tests(context, "run", op_types=("rmsnorm",), device="cuda")
    assert [(entry.status, entry.verified) for entry in result.entries] == [("passed", False)]
    found = context.dataset.find_definition("rmsnorm_h64")
    assert found is not None
    assert "status:verified" not in found.tags


def test_a_definition_that_cannot_be_read_is_named(context: Context, dataset: Path) -> None:
    (dataset / "definitions" / "rmsnorm" / "broken_h1.json").write_text("{broken", encoding="utf-8")
    for selection in ({"all": True}, {"op_types": ("rmsnorm",)}, {"definitions": ("broken_h1",)}):
        result = write_or_run_tests(context, "write", **selection)  # type: ignore[arg-type]
        refused = [entry for entry in result.entries if entry.status == "refused"]
        assert [(entry.name, entry.op_type) for entry in refused] == [("broken_h1", "rmsnorm")]
        assert "not JSON" in refused[0].reason
    assert not [entry for entry in write_or_run_tests(context, "write", op_types=("gemm",)).entries if entry.reason]


@pytest.mark.usefixtures("dataset")
def test_a_test_file_that_is_no_text_is_kept(context: Context, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_rmsnorm_h64.py").write_bytes(b"\xff\xfe")
    result = write_or_run_tests(context, "write", op_types=("rmsnorm",))
    assert [entry.status for entry in result.entries] == ["kept"]
    assert (folder / "test_rmsnorm_h64.py").read_bytes() == b"\xff\xfe"


@pytest.mark.usefixtures("dataset")
def test_an_agent_may_not_start_what_runs_with_the_users_rights(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_or_run_tests(context, "write", all=True)
    _pretend(monkeypatch, ("small",))
    agent = replace(context, is_confined=True)
    with pytest.raises(RequestError, match="an agent may not start them"):
        write_or_run_tests(agent, "run", all=True, device="cuda")
    assert write_or_run_tests(agent, "run", all=True, device="cpu").entries


def test_tests_on_a_gpu_hold_its_lock_and_take_no_projects_configuration(
    context: Context, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text("raise RuntimeError('the project around it')", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--no-such'\n", encoding="utf-8")
    monkeypatch.setenv("FIB_PRETEND_GPUS", "1")
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(reference_runs, "has_gpu", lambda: True)
    write_or_run_tests(context, "write", op_types=("rmsnorm",))
    look = (
        "import os, pathlib\n"
        "links = [p for p in pathlib.Path('/proc/self/fd').iterdir() if p.is_symlink()]\n"
        "raise SystemExit([str(link.resolve()) for link in links if link.exists()])\n"
    )
    (folder / "conftest.py").write_text(look, encoding="utf-8")
    (run,) = reference_runs.run_tests(
        {"rmsnorm_h64": folder / "test_rmsnorm_h64.py"}, device="cuda", options=(), time_limit=60
    )
    assert "the project around it" not in run.problem
    assert "no-such" not in run.problem
    assert str(tmp_path / "locks") in run.problem


@pytest.mark.parametrize(
    ("cores", "memory", "processes"),
    [(16, 141 * GIB, 14), (64, 141 * GIB, 14), (8, 141 * GIB, 6), (64, 80 * GIB, 8), (64, 24 * GIB, 4), (64, None, 4)],
)
def test_as_many_tests_run_on_a_gpu_as_cores_and_its_memory_allow(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: int | None, processes: int
) -> None:
    monkeypatch.setattr(reference_runs.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(reference_runs, "find_memory_bytes", lambda _uuid: memory)
    lease = Lease(gpus=(Gpu(uuid="GPU-aa", index=0, name="x"),), environment={}, descriptors=())
    assert reference_runs._count_processes(lease) == processes
