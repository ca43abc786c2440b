from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.forward import profiler
from fib_tools.capture.forward.profiler import Marker, read_events
from fib_tools.capture.perfetto_reading import read_trace
from fib_tools.capture.timeline_kernels import ProfilerEvent
from fib_tools.errors import FormatError, RequestError
from fib_tools.phases.context import Context
from fib_tools.phases.trace_block import trace_block
from fib_tools.phases.trace_block_result import TraceBlockResult
from fib_tools.phases.trace_diff import compare_traces
from measured_solutions import GEMM, measure
from tiny_checkpoints import make_llama, write_gguf, write_meta, write_safetensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small Llama in three formats."""
    root = tmp_path_factory.mktemp("weights")
    model = make_llama()
    return {
        "safetensors": write_safetensors(model, root / "hf"),
        "pth": write_meta(model, root / "meta"),
        "gguf": write_gguf(model, root / "tiny.gguf"),
    }


def operators(result: TraceBlockResult) -> list[tuple[str, str, str, int, int]]:
    return [(each.path, each.op_type, each.definition, each.bytes, each.flops) for each in result.operators]


def test_the_same_block_is_the_same_picture_from_every_format(context: Context, weights: dict[str, Path]) -> None:
    results = {kind: trace_block(context, str(path), layer=1, tokens=7) for kind, path in weights.items()}
    first = results["safetensors"]
    assert operators(first) == operators(results["pth"]) == operators(results["gguf"])
    named = [each.path.rpartition("/")[2] for each in first.operators]
    assert named.count("attention") == 1, "layer 0 ran unrecorded"
    assert {each.op_type for each in first.operators} >= {"embedding", "rmsnorm", "gemm", "rope", "gqa_ragged"}
    assert Path(first.path).parent == context.workspace.root / "traces"
    assert first.slices == len(read_trace(Path(first.path)).spans)
    assert first.bytes == Path(first.path).stat().st_size
    assert first.summary().lines[-1].startswith(first.path)
    counters = {each.name: max(value for _, value in each.points) for each in read_trace(Path(first.path)).counters}
    assert (first.most_memory, first.most_activations) == (counters["live memory"], counters["live activations"])
    assert first.most_memory > first.most_activations > 7 * 64 * 2


def test_all_layers_can_be_recorded_and_two_traces_compared(
    context: Context, weights: dict[str, Path], tmp_path: Path
) -> None:
    one, all_ = tmp_path / "one.pftrace", tmp_path / "all.pftrace"
    trace_block(context, str(weights["safetensors"]), tokens=5, out=one)
    whole = trace_block(context, str(weights["safetensors"]), whole=True, tokens=5, out=all_)
    assert [each.path.rpartition("/")[2] for each in whole.operators].count("attention") == len(whole.layers) == 3
    diff = compare_traces(context, one, candidate=all_)
    rows = {row.path: row for row in diff.differences}
    attention = next(row for path, row in rows.items() if path.endswith("layers.0/self_attn/attention"))
    assert attention.ratio is not None
    assert attention.ratio > 0
    added = next(row for path, row in rows.items() if path.endswith("layers.1/self_attn/attention"))
    assert (added.before_us, added.ratio) == (None, None)
    assert not any(row.kind == "step" for row in diff.differences)
    assert any(row.kind == "step" for row in compare_traces(context, one, candidate=all_, steps=True).differences)


def test_operators_name_the_best_solution_that_the_dataset_has(context: Context, weights: dict[str, Path]) -> None:
    before = trace_block(context, str(weights["safetensors"]), tokens=5)
    assert {each.best for each in before.operators} == {""}
    assert [table.title for table in before.summary().tables] == [str(weights["safetensors"])]
    measure(context.dataset.root, "ana", 8, 84.0)
    result = trace_block(context, str(weights["safetensors"]), tokens=5)
    # the projections of queries and of the output have 64 rows and columns each
    named = [each.path.rpartition("/")[0].rpartition("/")[2] for each in result.operators if each.best]
    assert named == ["q_proj", "o_proj"]
    (row,) = result.summary().tables[1].rows
    assert (row[0], row[1], row[3]) == (GEMM, "ana/fast", "NVIDIA H200")
    spans = [span for span in read_trace(Path(result.path)).spans if "best_solution" in span.details]
    assert [span.details["best_percent_of_limit"] for span in spans] == [float(row[2])] * 2
    assert trace_block(context, str(weights["safetensors"]), tokens=5, gpu="NVIDIA B200").summary().tables[1:] == ()


def test_traces_that_cannot_be_read_are_told(context: Context, weights: dict[str, Path]) -> None:
    measure(context.dataset.root, "ana", 8, 84.0)
    (path,) = context.dataset.root.glob("traces/ana/gemm/*.jsonl")
    path.write_text("{", encoding="utf-8")
    result = trace_block(context, str(weights["safetensors"]), tokens=5)
    assert result.summary().lines[0].startswith("1 problems with the dataset's Traces; the first: traces/ana/gemm/")


def test_torchs_profiler_writes_its_view_of_the_same_run_beside_the_trace(
    context: Context, weights: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "block.pftrace"
    result = trace_block(context, str(weights["safetensors"]), tokens=5, out=out, profiler="torch")
    profile = tmp_path / "block.pt.trace.json"
    assert (result.profile, result.kernels) == (str(profile), 0)
    named = {each.get("name") for each in json.loads(profile.read_bytes())["traceEvents"]}
    steps = {str(span.details["op_type"]) for span in read_trace(out).spans if span.kind == "step"}
    assert {f"aten::{step.split('.')[1]}" for step in steps} <= named
    assert result.summary().lines[-2] == (
        f"{profile}: the same run for TensorBoard, or chrome://tracing; no GPU took part"
    )
    alone = trace_block(context, str(weights["safetensors"]), tokens=5)
    assert alone.profile is None
    assert operators(alone) == operators(result)
    assert list(Path(alone.path).parent.iterdir()) == [Path(alone.path)]


def test_kernels_of_a_gpu_are_counted(
    context: Context, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def see_kernels(document: Mapping[str, Any], markers: Iterable[Marker]) -> tuple[ProfilerEvent, ...]:
        """Stand in for a GPU: each product on the host launched a kernel that took as long."""
        products = [each for each in read_events(document, markers) if each.name == "aten::mm"]
        return tuple(
            replace(each, role=role, name=role, correlation=number)
            for number, each in enumerate(products, start=1)
            for role in ("launch", "kernel")
        )

    monkeypatch.setattr(profiler, "read_events", see_kernels)
    result = trace_block(context, str(weights["safetensors"]), tokens=5, profiler="torch")
    timeline = read_trace(Path(result.path))
    kernels = [span for span in timeline.spans if span.kind == "kernel"]
    steps = [span for span in timeline.spans if span.name == "mm"]
    assert result.kernels == len(kernels) > len(steps) > 0
    # torch reports a product twice, before it asks who watches and after: the first begins before the step does
    assert {span.details["op_type"] for span in kernels} == {"aten.mm.default", "gemm"}
    assert "kernels' bandwidth" in {counter.name for counter in timeline.counters}
    assert f"{len(kernels)} kernels of the GPU" in result.summary().lines[-2]


def test_a_prompt_needs_a_tokenizer_and_a_layer_must_be_there(context: Context, weights: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="there is no tokenizer"):
        trace_block(context, str(weights["safetensors"]), prompt="hello")
    with pytest.raises(RequestError, match="torch sees no GPU"):
        trace_block(context, str(weights["safetensors"]), device="cuda")
    with pytest.raises(RequestError, match="the model has no layer 9; take --layer 0 to 2: it has 3 layers"):
        trace_block(context, str(weights["safetensors"]), layer=9)
    with pytest.raises((RequestError, FormatError)):
        trace_block(context, str(weights["safetensors"] / "config.json"))
