from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fib_tools.op_types.registry import get_kernel_type

SPARSE, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {SPARSE: 4, HEAVY: 8}
HEAD, INDEX_HEAD, HIDDEN, LENGTH = 16, 8, 32, 45


def _config() -> Any:
    from transformers.models.deepseek_v4 import DeepseekV4Config

    return DeepseekV4Config(
        vocab_size=64,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=HEAD,
        q_lora_rank=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        sliding_window=6,
        index_n_heads=2,
        index_head_dim=INDEX_HEAD,
        index_topk=3,
        layer_types=[SPARSE, HEAVY],
        mlp_layer_types=["moe", "moe"],
        compress_rates=dict(RATES),
        qk_rope_head_dim=4,
    )


def _pool(kind: str, chunks: Sequence[int]) -> dict[str, Any]:
    """Run transformers' compressor over a sequence in chunks, with its cache; give what it pooled, before the norm."""
    import torch
    from transformers.cache_utils import DynamicCache
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    config, layer = _config(), [SPARSE, HEAVY].index(kind)
    module = (modeling.DeepseekV4CSACompressor if layer == 0 else modeling.DeepseekV4HCACompressor)(config).eval()
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    owners = {"compressor": module, **({"indexer": module.indexer} if layer == 0 else {})}
    seen: dict[str, dict[str, list[Any]]] = {name: {"pooled": [], "kv": [], "gate": []} for name in owners}
    for name, owner in owners.items():
        kept = seen[name]
        owner.kv_norm.register_forward_pre_hook(lambda _, given, kept=kept: kept["pooled"].append(given[0][0]))
        owner.kv_proj.register_forward_hook(lambda _, __, made, kept=kept: kept["kv"].append(made[0]))
        owner.gate_proj.register_forward_hook(lambda _, __, made, kept=kept: kept["gate"].append(made[0]))
    hidden, residual = (torch.randn(1, LENGTH, size, generator=generator) for size in (HIDDEN, 8))
    cache, start = DynamicCache(config=config), 0
    with torch.no_grad():
        for count in chunks:
            part = slice(start, start + count)
            module(hidden[:, part], residual[:, part], torch.arange(start, start + count)[None], cache, layer)
            start += count
    assert start == LENGTH
    return {
        name: (
            torch.cat([torch.cat(kept["kv"]), torch.cat(kept["gate"])], dim=-1),
            owners[name].position_bias.data,
            torch.cat(kept["pooled"]),
        )
        for name, kept in seen.items()
    }


def _windows(count: int, rate: int, *, overlap: bool) -> Any:
    import torch

    starts = torch.arange(count)[:, None] * rate - (rate if overlap else 0)
    rows = starts + torch.arange(rate * (2 if overlap else 1))
    return torch.where(rows < 0, -1, rows).to(torch.int32)


@pytest.mark.parametrize("chunks", [(LENGTH,), (7, 6, *([1] * 20), 12), (3, 5, 37)], ids=str)
@pytest.mark.parametrize("kind", [SPARSE, HEAVY])
def test_entries_are_those_of_the_compressors_of_deepseek_v4(
    kind: str, chunks: tuple[int, ...], run_reference: Callable[..., Any]
) -> None:
    import torch

    overlap, rate = kind == SPARSE, RATES[kind]
    for name, (kv_score, bias, expected) in _pool(kind, chunks).items():
        dim = HEAD if name == "compressor" else INDEX_HEAD
        definition = get_kernel_type("kv_compress").build({"head_dim": dim, "compress_rate": rate, "overlap": overlap})
        assert len(expected) == LENGTH // rate
        rows = _windows(len(expected), rate, overlap=overlap)
        (entries,) = run_reference(definition, kv_score, bias, rows)
        torch.testing.assert_close(entries, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [True, False])
def test_entries_are_weighted_sums_feature_by_feature(
    overlap: bool,  # noqa: FBT001  # pytest passes it by name
    try_kernel: Callable[..., Any],
) -> None:
    """Plain Python over scalars, with each token's series taken from the definition's text."""
    trial = try_kernel("kv_compress", {"num_rows": 20}, head_dim=3, compress_rate=4, overlap=overlap)
    data, bias, rows = (value.tolist() for value in trial.inputs.values())
    series = 2 if overlap else 1
    for entry, tokens in enumerate(rows):
        for feature in range(3):
            terms = []
            for place, token in enumerate(tokens):
                if token >= 0:
                    column = place // 4 * 3 + feature
                    score = data[token][series * 3 + column] + bias[place % 4][column]
                    terms.append((math.exp(score), data[token][column]))
            exact = sum(weight * value for weight, value in terms) / sum(weight for weight, _ in terms)
            assert float(trial.outputs["compressed"][entry, feature]) == pytest.approx(exact, rel=1e-4, abs=1e-6)


def test_an_entry_without_tokens_is_zero(run_reference: Callable[..., Any]) -> None:
    import torch

    definition = get_kernel_type("kv_compress").build({"head_dim": 2, "compress_rate": 2})
    rows = torch.tensor([[-1, -1], [-1, 1]], dtype=torch.int32)
    (entries,) = run_reference(definition, torch.arange(12.0).reshape(3, 4), torch.zeros(2, 2), rows)
    assert entries.tolist() == [[0.0, 0.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("kv_compress_d512_r4_overlap", {"head_dim": 512, "compress_rate": 4, "overlap": True}),
        ("kv_compress_d128_r4_overlap", {"head_dim": 128, "compress_rate": 4, "overlap": True}),
        ("kv_compress_d512_r128", {"head_dim": 512, "compress_rate": 128}),
    ],
)
def test_every_size_conforms(name: str, parameters: dict[str, Any], check_conformance: Callable[..., None]) -> None:
    check_conformance("kv_compress", name, **parameters)


def test_generated_windows_hold_tokens_of_their_own_and_begin_like_a_sequence(try_kernel: Callable[..., Any]) -> None:
    rows = try_kernel("kv_compress", head_dim=4, compress_rate=4, overlap=True).inputs["window_rows"].tolist()
    assert rows[0][:4] == [-1] * 4
    assert min(rows[0][4:]) >= 0
    assert all(len(set(row)) == 8 for row in rows[1:])
