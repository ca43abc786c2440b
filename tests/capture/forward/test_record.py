from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fib_tools.capture.forward.call import Call
from fib_tools.capture.forward.record import record_forward
from fib_tools.capture.forward.recorder import Recorder
from fib_tools.capture.forward.watch import Operator
from fib_tools.capture.perfetto import write_trace
from fib_tools.capture.timeline import Span, Timeline, check_nesting
from fib_tools.capture.timeline_arrows import find_arrows
from tiny_forward import ARCHITECTURES, make_model, make_prompt


def record(kind: str = "llama", layers: set[int] | None = None, **more: object) -> Timeline:
    model = make_model(kind, attn_implementation="eager", **more)
    return record_forward(model, make_prompt((12, 8)), name=kind, layers=layers)


def below(timeline: Timeline, index: int) -> list[Span]:
    return [span for span in timeline.spans if span.parent == index]


def find(timeline: Timeline, path: str) -> int:
    (index,) = [at for at, each in enumerate(timeline.list_paths()) if each.endswith(path)]
    return index


@pytest.fixture(scope="module")
def llama() -> Timeline:
    return record(layers={1})


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_block_of_any_architecture_nests_and_every_span_is_described(kind: str, tmp_path: Path) -> None:
    timeline = record(kind, layers={1})
    check_nesting(timeline)
    for span in timeline.spans:
        assert {"op_type", "bytes", "flops", "arithmetic_intensity"} <= span.details.keys(), span.name
        assert sum(each.duration_ns for each in below(timeline, timeline.spans.index(span))) <= span.duration_ns
    assert all(span.inputs or span.outputs for span in timeline.spans)
    assert write_trace(timeline, tmp_path / "block.pftrace").slices == len(timeline.spans)


def test_a_block_shows_what_a_transformer_block_does(llama: Timeline) -> None:
    layer = find(llama, "model/layers.1")
    assert [span.name for span in below(llama, layer)] == [
        *("input_layernorm", "self_attn", "residual_add", "post_attention_layernorm", "mlp", "residual_add")
    ]
    attention = find(llama, "layers.1/self_attn")
    assert [span.name for span in below(llama, attention)] == [
        *("q_proj", "k_proj", "v_proj", "rope", "kv_cache", "attention", "o_proj")
    ]
    inside = [span.name for span in below(llama, find(llama, "self_attn/attention"))]
    assert [name for name in inside if name not in {"clone", "_to_copy"}] == ["qk", "scale", "mask", "softmax", "pv"]
    passes = [span.name for span in below(llama, find(llama, "attention/softmax"))]
    assert passes == ["_to_copy", "amax", "sub", "exp", "sum", "div"]
    mlp = [span.name for span in below(llama, find(llama, "layers.1/mlp"))]
    assert mlp == ["gate_proj", "act_fn", "up_proj", "gate_times_up", "down_proj"]
    assert {"embed_tokens", "rotary_emb", "norm", "lm_head"} <= {span.name for span in llama.spans}


def test_a_layer_that_nobody_asked_for_is_one_span(llama: Timeline) -> None:
    layer = find(llama, "model/layers.0")
    assert below(llama, layer) == []
    assert llama.spans[layer].details["recorded"] is False


def test_operators_name_their_definition_and_count_what_they_move(llama: Timeline) -> None:
    linear = llama.spans[find(llama, "q_proj/linear")]
    assert (linear.details["definition"], linear.details["op_type"]) == ("gemm_n64_k64", "gemm")
    # 24 tokens of 64 values, weights of 64 x 64, results of 64, two bytes each
    assert linear.details["bytes"] == 2 * (24 * 64 + 64 * 64 + 24 * 64)
    assert linear.details["flops"] == 2 * 24 * 64 * 64
    names = Counter(span.details.get("definition") for span in llama.spans if span.kind == "operator")
    assert names["fused_add_rmsnorm_h64"] == 3
    assert names["gqa_ragged_prefill_causal_h4_kv2_d16"] == 1
    assert names["rope_h4_d16"] == 1


def test_of_a_table_the_rows_that_are_taken_count(llama: Timeline) -> None:
    embedding = llama.spans[find(llama, "embed_tokens/embedding")]
    # 24 ids of eight bytes; 24 rows of 64 values are read and written
    assert embedding.details["bytes"] == 24 * 8 + 2 * 24 * 64 * 2


def test_arrows_follow_the_data_from_the_scores_to_the_values(llama: Timeline) -> None:
    arrows = {(each.source, each.target) for each in find_arrows(llama)}
    order = ["qk", "scale", "mask"]
    places = [find(llama, f"attention/{name}") for name in order]
    assert set(pairwise(places)) <= arrows


def test_a_recorded_forward_computes_the_same() -> None:
    model = make_model("qwen3_moe", attn_implementation="eager")
    prompt = make_prompt((12, 8))
    with torch.no_grad():
        before = model(**prompt).logits
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        record_forward(model, prompt, name="again")
        assert torch.equal(model(**prompt).logits, before)
    assert hooks == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_call_that_cannot_be_described_leaves_the_recorder_on() -> None:
    def describe(*_: object) -> Call:
        raise ValueError("what is this?")

    recorder = Recorder()
    relu = recorder.wrap(Operator(name="relu", key=torch.numel, describe=describe), torch.relu)
    with pytest.raises(ValueError, match="what is this"):
        relu(torch.ones(2))
    assert recorder.is_on
    assert not recorder.is_inside


def test_bandwidth_is_that_of_the_steps(llama: Timeline) -> None:
    (counter,) = [counter for counter in llama.counters if counter.unit == "GB/s"]
    step = next(span for span in llama.spans if span.kind == "step" and span.details["bytes"])
    assert (step.start_ns, round(int(step.details["bytes"]) / step.duration_ns, 3)) in counter.points
