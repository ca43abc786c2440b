from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
KINDS = (SLIDING, SPARSE, HEAVY)
WINDOW, TOPK, HEADS, HEAD = 6, 3, 4, 16
PAGES = {"page_size": 8, "compressed_page_size": 2}


def _config() -> Any:
    from transformers.models.deepseek_v4 import DeepseekV4Config

    return DeepseekV4Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        head_dim=HEAD,
        q_lora_rank=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        sliding_window=WINDOW,
        o_groups=2,
        o_lora_rank=4,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=TOPK,
        layer_types=list(KINDS),
        mlp_layer_types=["hash_moe", "moe", "moe"],
        compress_rates={SPARSE: 4, HEAVY: 8},
        qk_rope_head_dim=4,
        attn_implementation="eager",
    )


def _record(monkeypatch: pytest.MonkeyPatch, length: int) -> list[dict[str, Any]]:
    """Run a tiny DeepSeek-V4 and keep what each layer's attention takes and gives."""
    import torch
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    model = modeling.DeepseekV4Model(_config()).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    plain, calls = modeling.eager_attention_forward, list[dict[str, Any]]()

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
        made = plain(module, query, key, value, attention_mask, **rest)
        assert torch.equal(key, value)
        kept = {"q": query[0], "kv": key[0, 0], "mask": attention_mask[0, 0], "output": made[0][0]}
        calls.append({**kept, "sinks": module.sinks.data, "sm_scale": rest["scaling"]})
        return made

    monkeypatch.setattr(modeling, "eager_attention_forward", attend)
    with torch.no_grad():
        model(input_ids=torch.arange(length)[None] % 64)
    assert len(calls) == len(KINDS)
    return calls


def _page(rows: Any, page_size: int) -> Any:
    """Put rows into pages in a scattered order; give the cache and the slot of each row."""
    import torch

    pages = -(-len(rows) // page_size) + 1
    slots = torch.randperm(pages * page_size, generator=torch.Generator().manual_seed(2))[: len(rows)]
    cache = torch.full((pages * page_size, rows.shape[-1]), 77.0)
    cache[slots] = rows
    return cache.reshape(pages, page_size, -1), slots


def _indices(seen: Any, slots: Any, width: int) -> Any:
    """List the slots of what each query sees."""
    import torch

    made = torch.full((len(seen), width), -1, dtype=torch.int32)
    for row, visible in enumerate(seen):
        chosen = slots[visible]
        assert len(chosen) <= width
        made[row, : len(chosen)] = chosen.to(torch.int32)
    return made


@pytest.mark.parametrize("length", [3, 37])
def test_attention_is_that_of_deepseek_v4_in_all_three_kinds_of_layers(
    length: int, monkeypatch: pytest.MonkeyPatch, run_reference: Callable[..., Any]
) -> None:
    """The model's own mask says what a query sees: at most `window` tokens, and at most topk or all of the entries."""
    import torch

    sizes = {"num_qo_heads": HEADS, "head_dim": HEAD, "window": WINDOW, "dtype": "float32"}
    for kind, call in zip(KINDS, _record(monkeypatch, length), strict=True):
        seen = call["mask"] == 0
        tokens, slots = _page(call["kv"][:length], 8)
        inputs = [call["q"].transpose(0, 1), tokens, _indices(seen[:, :length], slots, WINDOW)]
        if kind == SLIDING:
            definition = get_kernel_type("dsv4_window_attention").build({**sizes, "page_size": 8})
        else:
            topk = TOPK if kind == SPARSE else None
            entries, slots = _page(call["kv"][length:], 2)
            assert len(slots) == length // (4 if kind == SPARSE else 8)
            inputs += [entries, _indices(seen[:, length:], slots, TOPK if topk else max(len(slots), 1))]
            definition = get_kernel_type("dsv4_compressed_attention").build({**sizes, **PAGES, "topk": topk})
        output, _ = run_reference(definition, *inputs, call["sinks"], call["sm_scale"])
        torch.testing.assert_close(output, call["output"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topk", [None, 5])
def test_attention_is_one_softmax_over_window_entries_and_sink(
    topk: int | None, try_kernel: Callable[..., Any]
) -> None:
    """FlashMLA's form in float64: attention without sinks over all slots under a mask, scaled by sigmoid(lse - sink)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    shape = {"num_qo_heads": 3, "head_dim": 16, "window": 5, "page_size": 4, "compressed_page_size": 2, "topk": topk}
    trial = try_kernel("dsv4_compressed_attention", {"num_tokens": 6, "num_compressed_pages": 5}, **shape)
    inputs = trial.inputs
    caches = [inputs[f"{name}_cache"].flatten(0, 1).double() for name in ("window", "compressed")]
    offset, keys = len(caches[0]), torch.cat(caches).expand(3, -1, -1)
    seen = torch.zeros(6, keys.shape[1], dtype=torch.bool)
    for token in range(6):
        window, entries = (inputs[f"{name}_indices"][token].tolist() for name in ("window", "compressed"))
        seen[token, [slot for slot in window if slot >= 0]] = True
        seen[token, [offset + slot for slot in entries if slot >= 0]] = True
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    query, scale = inputs["q"].double().transpose(0, 1), inputs["sm_scale"]
    assert scale == 0.25
    plain = scaled_dot_product_attention(query, keys, keys, attn_mask=bias, scale=scale)
    sums = torch.logsumexp(query @ keys.mT * scale + bias, dim=-1)
    sinks = inputs["sinks"].double()[:, None]
    exact = (plain * torch.sigmoid(sums - sinks)[..., None]).transpose(0, 1)
    output, lse = trial.outputs["output"], trial.outputs["lse"]
    torch.testing.assert_close(output.double(), exact, rtol=2**-8, atol=1e-6)
    merged = (torch.logaddexp(sums, sinks) / math.log(2)).T
    torch.testing.assert_close(lse.double(), merged, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_has_output_0_and_the_sink_as_lse(run_reference: Callable[..., Any]) -> None:
    import torch

    shape = {"num_qo_heads": 2, "head_dim": 4, "window": 3, "page_size": 2}
    definition = get_kernel_type("dsv4_window_attention").build(shape)
    q, cache = torch.ones(1, 2, 4).bfloat16(), torch.ones(2, 2, 4).bfloat16()
    indices = torch.full((1, 3), -1, dtype=torch.int32)
    output, lse = run_reference(definition, q, cache, indices, torch.tensor([0.0, math.log(8)]), 0.5)
    assert output.abs().max() == 0
    assert lse.flatten().tolist() == pytest.approx([0.0, 3.0])


def test_the_dsa_indexer_scores_and_chooses_as_that_of_deepseek_v4(run_reference: Callable[..., Any]) -> None:
    """Queries and keys of values that fp8 holds; the causal limit is the number of entries closed at a position."""
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4IndexerScorer

    heads, dim, entries, rate, page_size = 4, 8, 24, 4, 8
    config = _config()
    config.index_n_heads, config.index_head_dim, config.hidden_size = heads, dim, heads
    scorer = DeepseekV4IndexerScorer(config)
    scorer.weights_proj.weight.data.copy_(torch.eye(heads))
    generator = torch.Generator().manual_seed(1)
    positions = torch.tensor([2, 3, 30, 95])
    q = torch.randn(4, heads, dim, generator=generator).to(torch.float8_e4m3fn)
    keys = torch.randn(entries, dim, generator=generator).to(torch.float8_e4m3fn)
    weights = torch.randn(4, heads, generator=generator)
    with torch.no_grad():
        scores = scorer(q.float()[None], keys.float()[None], weights[None])[0]
    bytes_ = keys.view(torch.int8).reshape(-1, page_size * dim)
    ones = torch.ones(len(bytes_), page_size).view(torch.int8)
    cache = torch.cat([bytes_, ones], dim=1).reshape(-1, page_size, 1, dim + 4)
    closed = (positions + 1) // rate
    table = torch.arange(3, dtype=torch.int32).expand(4, -1)
    shape = {"num_index_heads": heads, "index_head_dim": dim, "topk": 5, "page_size": page_size}
    definition = get_kernel_type("dsa_topk_indexer").build(shape)
    scaled = weights * (heads * dim) ** -0.5
    (chosen,) = run_reference(definition, q, cache, scaled, closed.to(torch.int32), table)
    for row, limit in enumerate(closed.tolist()):
        best = scores[row, :limit].topk(min(5, limit)).indices.tolist()
        assert sorted(slot for slot in chosen[row].tolist() if slot >= 0) == sorted(best)


WINDOWED = {"num_qo_heads": 64, "window": 128, "page_size": 256}


@pytest.mark.parametrize(
    ("kernel", "name", "more"),
    [
        ("dsv4_window_attention", "dsv4_window_attention_h64_d512_win128_ps256", {}),
        (
            "dsv4_compressed_attention",
            "dsv4_compressed_attention_h64_d512_win128_topk512_ps256_cps64",
            {"topk": 512, "compressed_page_size": 64},
        ),
        (
            "dsv4_compressed_attention",
            "dsv4_compressed_attention_h64_d512_win128_all_ps256_cps2",
            {"compressed_page_size": 2},
        ),
    ],
)
def test_every_kernel_conforms(
    kernel: str, name: str, more: dict[str, Any], check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, name, **WINDOWED, **more)


def test_flashinfer_computes_the_sizes_of_deepseek_v4_only() -> None:
    kind = get_kernel_type("dsv4_window_attention")
    api = "flashinfer.mla._core.trtllm_batch_decode_sparse_mla_dsv4"
    assert kind.find_fi_api(WINDOWED) == api
    others = ({"num_qo_heads": 4}, {"window": 64}, {"head_dim": 256})
    assert [kind.find_fi_api({**WINDOWED, **other}) for other in others] == [None] * 3


def test_the_softmax_scale_that_follows_from_the_head_is_not_in_the_parameters() -> None:
    parameters = get_kernel_type("dsv4_window_attention").parameters
    assert parameters.model_validate({**WINDOWED, "sm_scale": 512**-0.5 * (1 + 1e-9)}).qualifier() == ""
    assert parameters.model_validate({**WINDOWED, "sm_scale": 0.5}).qualifier() == "smscale0.5"
    for wrong in ({"window": 0}, {"head_dim": 0, "sm_scale": 0.1}, {"sm_scale": -1.0}):
        with pytest.raises(ValidationError):
            parameters.model_validate({**WINDOWED, **wrong})
