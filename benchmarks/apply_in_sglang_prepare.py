"""What apply_in_sglang.py applies, and the weights that it serves: written with our own commands, on the GPU's machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from baselines import fib  # noqa: E402  # the path must be there first
from kernel_drafts import make_solution, make_workload  # noqa: E402

from fib_tools.dataset.store import Dataset  # noqa: E402
from fib_tools.op_types.registry import get_kernel_type  # noqa: E402

ROWS = (32, 2048)
"""Of the Workloads: a decode of the batch, and a prefill."""
_STANDING = 200.0
"""How much larger words' own weights are then: as large as what the layers add."""
_LEANING = 0.25
"""The part of a word's weights in those of the word that follows it."""


def write_dataset(root: Path, config: dict[str, Any]) -> None:
    """Write Definitions, Workloads and drafts."""
    hidden, heads, eps = config["hidden_size"], config["num_attention_heads"], config["rms_norm_eps"]
    plan = (
        ("rmsnorm", "rmsnorm_wide", {"hidden_size": hidden, "eps": eps}, "batch_size"),
        ("fused_add_rmsnorm", "fused_add_rmsnorm", {"hidden_size": hidden, "eps": eps}, "batch_size"),
        ("merge_state", "merge_state", {"num_heads": heads, "head_dim": hidden // heads}, "seq_len"),
    )
    (root / "definitions").mkdir(parents=True, exist_ok=True)
    dataset = Dataset(root)
    for kernel, draft, parameters, axis in plan:
        definition = get_kernel_type(kernel).build(parameters)
        dataset.write_definition(definition)
        dataset.write_workloads(definition.op_type, [make_workload(definition, {axis: count}) for count in ROWS])
        dataset.write_solution(definition.op_type, make_solution(definition, draft))


def prepare(options: argparse.Namespace, config: dict[str, Any]) -> None:
    """Measure the drafts beside the baselines, and write the folder that FlashInfer loads.

    Where no draft wins, or the check by running fails, fib apply is asked again for less: a visit to a GPU is rare.
    All its answers are kept.
    """
    write_dataset(options.out / "dataset", config)
    fib("baselines", "write", options=options, log="baselines.log")
    fib("bench", "--time-limit", "20", options=options, log="bench.log", share=0.5)
    words, tries = ["--least-ratio", str(options.least_ratio)], []
    for log in ("apply1.log", "apply2.log", "apply3.log"):
        answer = fib("apply", *words, options=options, log=log, share=0.5)
        tries.append({"words": words, "answer": answer})
        states = {each["status"] for each in answer.get("entries", ())}
        if "applied" in states and "failed" not in states:  # one failure leaves the folder unwritten
            break
        words = [*words, "--no-check"] if "failed" in states else ["--least-ratio", "0"]
    (options.out / "prepared.json").write_text(json.dumps(tries, indent=1), encoding="utf-8")


def write_weights(folder: Path, config: dict[str, Any], *, is_sure: bool) -> None:
    """Write made-up weights under which every norm, and attention, changes the answer; about 4 GB for 4 layers.

    Random weights give near ties, and a rounding decides between these. With `is_sure` the head leans to another token for
    each, as much as what layers add leaves of it: about three in four of the probability, as trained weights do.
    """
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator(device=device).manual_seed(17)
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    key = hidden // heads * config["num_key_value_heads"]

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=random, device=device, dtype=torch.bfloat16).mul_(0.02).cpu()

    def scale() -> Any:
        return torch.rand(hidden, generator=random, device=device).add_(0.5).to(torch.bfloat16).cpu()

    matrices = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    words, head = (normal(config["vocab_size"], hidden) for _ in range(2))
    if is_sure:
        following = torch.randperm(config["vocab_size"], generator=random, device=device).cpu()
        head[following] += _LEANING * words
        words *= _STANDING
    tensors = {"model.embed_tokens.weight": words, "model.norm.weight": scale(), "lm_head.weight": head}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        tensors |= {f"{place}.{name}.weight": normal(*shape) for name, shape in matrices.items()}
        tensors |= {f"{place}.{name}.weight": scale() for name in ("input_layernorm", "post_attention_layernorm")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
