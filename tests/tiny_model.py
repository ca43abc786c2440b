"""A model small enough to be onboarded within a test, and what a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128,
}


def timeless(held: dict[str, bytes]) -> dict[str, object]:
    """What a workspace holds but how long it took: two runs are never equally fast."""
    kept: dict[str, object] = {name: data for name, data in held.items() if not name.endswith(".html")}
    for name, data in held.items():
        if name.startswith("onboard_") and name.endswith(".json"):
            kept[name] = {key: value for key, value in json.loads(data).items() if key != "times"}
    return kept


def snapshot(root: Path) -> dict[str, bytes]:
    """Everything a folder holds but locks."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
