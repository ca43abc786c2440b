"""The facts of a model that matter for one kernel, flat and short, the most telling first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.model.base import to_document

__all__ = ["SECTIONS", "list_facts", "rank_sections"]

_ALWAYS = ("hidden_size", "num_layers", "dtype")
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "attentions": ("attention", "gqa", "mla", "mha", "dsa", "paged", "ragged", "decode", "prefill", "rope", "cache"),
    "linears": ("linear", "lightning", "gdn", "kda", "mamba", "ssm", "ssu", "conv", "delta", "recurrent", "retention"),
    "mlp": ("mlp", "activation", "act", "silu", "gelu", "relu", "swiglu", "ffn", "feed"),
    "moe": ("moe", "expert", "experts", "routing", "router", "topk", "gate", "hash"),
    "norm": ("norm", "rmsnorm", "layernorm", "rms"),
    "hyper_connections": ("mhc", "hyper", "streams", "sinkhorn"),
    "quantization": ("gemm", "quantize", "fp8", "fp4", "nvfp", "mxfp", "int", "scale"),
    "vocab_size": ("embedding", "sampling", "logits", "softmax", "vocab", "probs"),
}
"""Parts of the facts, and the words of kernels that they are about."""
_PLAIN = frozenset({"none", "", "False", "0"})


def list_facts(facts: ModelFacts, words: Collection[str]) -> dict[str, Any]:
    """List facts as dotted paths with their values: what every kernel needs, then what these words are about."""
    document = to_document(facts)
    chosen: dict[str, Any] = {"architecture": facts.architecture, "model_type": facts.model_type}
    chosen |= {name: document[name] for name in _ALWAYS}
    for section in rank_sections(words):
        chosen |= dict(_flatten(section, document.get(section)))
    chosen |= {f"layers.{name}": count for name, count in _count_layers(facts).items()}
    return chosen


def rank_sections(words: Collection[str]) -> list[str]:
    """Order the parts by the words that speak of them, first words first; an unknown kernel may be about any."""
    ordered = [name for word in words for name, about in SECTIONS.items() if word in about]
    return list(dict.fromkeys(ordered)) or ["attentions", "linears", "mlp", "moe", "norm"]


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Give the leaves that say something: no nulls, no empty lists, no switched-off features."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flatten(f"{path}.{name}", item)
    elif value is not None and str(value) not in _PLAIN and value != []:
        yield path, value


def _count_layers(facts: ModelFacts) -> Mapping[str, int]:
    return Counter(f"{layer.mixer.value}+{layer.mlp.value}" for layer in facts.layers)
