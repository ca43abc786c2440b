"""One `.gguf` file: its tensors under Hugging Face's names, in Hugging Face's row order, dequantised as they are read.

The dequantiser, the table of GGML types and the table of tensor names are those of the `gguf` package.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.configs import make_config
from fib_tools.capture.checkpoints.gguf_config import make_fields
from fib_tools.capture.checkpoints.gguf_header import GgufHeader, GgufTensor, read_header
from fib_tools.capture.checkpoints.gguf_values import ValueReader
from fib_tools.capture.checkpoints.rotary import from_neighbours_to_halves
from fib_tools.capture.checkpoints.stored import Checkpoint, StoredTensor, check_unique
from fib_tools.errors import FormatError, MissingDependencyError

if TYPE_CHECKING:
    import torch

__all__ = ["SUFFIX", "open_gguf"]

SUFFIX = ".gguf"
_EMBEDDING, _HEAD, _ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_EXPERTS = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj")
_IN_LAYER = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"self_attn.{name}" for name in ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa")),
    *(f"self_attn.{name}" for name in ("kv_a_layernorm", "kv_b_proj", "k_b_proj", "v_b_proj")),
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "gate", "shared_expert_gate")),
    "mlp.gate.e_score_correction",
    *_EXPERTS,
    "input_layernorm",
    "post_attention_layernorm",
)
_ROTARY = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
"""Projections that llama.cpp's conversion reorders for the architecture `llama`, and whose heads they have."""
_ROTATED = ("llama", "mixtral")
_SHARED = {"qwen2_moe": "mlp.shared_expert", "deepseek_v2": "mlp.shared_experts", "deepseek_v3": "mlp.shared_experts"}
"""What the block of the shared experts is called."""
_COUNTED = {"mixtral": "num_local_experts", "deepseek_v2": "n_routed_experts", "deepseek_v3": "n_routed_experts"}
"""The field that says how many experts there are, where it is not `num_experts`."""
_CORRECTION = "mlp.gate.e_score_correction"
"""Its bias is a name of its own, without a dot."""
_HALVES = {"self_attn.k_b_proj": "k", "self_attn.v_b_proj": "v"}
"""What llama.cpp's conversion parts `kv_b_proj` into: keys turned around, values as they are, head by head."""
_ROW = "mlp.shared_expert_gate"
"""A matrix of one row, which some conversions write as a vector."""
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
"""What it calls the projections of its experts."""


def open_gguf(path: Path) -> Checkpoint:
    """Open a file and read its header.

    Raises:
        ConfigError: its architecture is not known here.
        FormatError: it is cut off, or says something that cannot be.
        MissingDependencyError: the package `gguf` is not installed.
    """
    _require_gguf()
    values = ValueReader(path)
    header = read_header(values.bytes, path)
    sizes = {tensor.name: tensor for tensor in header.tensors}
    if _EMBEDDING not in sizes:
        raise FormatError(f"there is no {_EMBEDDING!r}", where=str(path), todo="pass the file of a language model")
    fields = make_fields(
        header.metadata,
        vocab_size=sizes[_EMBEDDING].shape[0],
        is_tied=_HEAD not in sizes,
        rope_factors=_read_factors(sizes.get(_ROPE_FACTORS), values),
        where=str(path),
    )
    return Checkpoint(
        config=make_config(fields, where=str(path)),
        origin=str(path),
        format="gguf",
        bytes=path.stat().st_size,
        tensors=_list_tensors(header, fields, values),
    )


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        install = "pip install 'fib-tools[trace]'"
        raise MissingDependencyError("gguf", purpose="reading GGUF files", install=install) from error


def _read_factors(tensor: GgufTensor | None, values: ValueReader) -> tuple[float, ...] | None:
    """Read the factors by which rotary frequencies are divided, one for each pair of a head's components."""
    import torch

    if tensor is None:
        return None
    if len(tensor.shape) != 1 or tensor.shape[0] > 1024:
        raise FormatError(f"{tensor.name!r} has shape {tensor.shape}", where=str(values.path))
    factors = tuple(float(value) for value in values.read(tensor, torch.float32))
    if not all(math.isfinite(value) and value > 0 for value in factors):
        raise FormatError(f"{tensor.name!r} holds factors that are not positive", where=str(values.path))
    return factors


def _list_tensors(header: GgufHeader, fields: dict[str, Any], values: ValueReader) -> dict[str, StoredTensor]:
    names = _name_tensors(header, fields)
    tensors: dict[str, StoredTensor] = {}
    halves: dict[str, dict[str, GgufTensor]] = {}
    for tensor in header.tensors:
        if tensor.name == _ROPE_FACTORS:
            continue
        base, _, kind = tensor.name.rpartition(".")
        name = names.get(base, base)
        half = _HALVES.get(name.split(".", 3)[-1])
        if half is not None:
            halves.setdefault(name.rpartition(".")[0], {})[half] = tensor
            continue
        for stored in _describe(name, kind, tensor, fields, values):
            check_unique(stored.name, tensors, stored.where)
            tensors[stored.name] = stored
    for block, parts in halves.items():
        joined = _join_halves(block, parts, values)
        check_unique(joined.name, tensors, joined.where)
        tensors[joined.name] = joined
    return tensors


def _join_halves(block: str, parts: dict[str, GgufTensor], values: ValueReader) -> StoredTensor:
    """Describe the projection whose halves for keys, [heads, rank, width], and values, [heads, width, rank], are kept."""
    where = f"{values.path}: {', '.join(tensor.name for tensor in parts.values())}"
    shapes = [parts[half].shape if half in parts else () for half in ("k", "v")]
    if any(len(shape) != 3 for shape in shapes) or shapes[0][:2] != (shapes[1][0], shapes[1][2]):
        raise FormatError(f"halves of {block}.kv_b_proj of shapes {shapes}", where=where, todo="fetch the file again")
    (heads, rank, width), (_, value_width, _) = shapes

    def load(dtype: torch.dtype) -> torch.Tensor:
        import torch

        keys, own = values.read(parts["k"], dtype), values.read(parts["v"], dtype)
        return torch.cat([keys.transpose(1, 2), own], dim=1).reshape(-1, rank)

    shape = (heads * (width + value_width), rank)
    stored_as = values.check(parts["k"])
    values.check(parts["v"])
    return StoredTensor(name=f"{block}.kv_b_proj.weight", shape=shape, where=where, stored_as=stored_as, load=load)


def _name_tensors(header: GgufHeader, fields: dict[str, Any]) -> dict[str, str]:
    """Map GGUF's names to Hugging Face's, without `.weight` or `.bias`."""
    import gguf

    architecture = header.metadata["general.architecture"]
    code = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    layers = min(fields["num_hidden_layers"], len(header.tensors))
    table = gguf.get_tensor_name_map(code, layers)
    shared = _SHARED.get(fields["model_type"])
    leaves = [*_IN_LAYER, *(f"{shared}.{name}" for name in ("gate_proj", "up_proj", "down_proj") if shared)]
    inside = (f"model.layers.{index}.{leaf}" for index in range(layers) for leaf in leaves)
    named = ((name, table.get_name(name)) for name in (*_OUTSIDE, *inside))
    return {theirs: name for name, theirs in named if theirs is not None}


def _describe(
    name: str, kind: str, tensor: GgufTensor, fields: dict[str, Any], values: ValueReader
) -> list[StoredTensor]:
    """Describe a tensor; one that stacks experts is described as one for each, which is how they are released."""
    leaf = name.split(".", 3)[-1]
    where = f"{values.path}: {tensor.name}"
    stored_as = values.check(tensor)
    is_mixtral = fields["model_type"] == "mixtral"
    if is_mixtral:
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if leaf in _EXPERTS and len(tensor.shape) == 3:
        before, _, projection = name.rpartition(".")
        projection = _MIXTRAL[projection] if is_mixtral else projection
        experts = fields.get(_COUNTED.get(fields["model_type"], "num_experts"), 0)
        return [
            StoredTensor(
                name=f"{before}.{index}.{projection}.{kind}",
                shape=tensor.shape[1:],
                where=where,
                stored_as=stored_as,
                load=lambda dtype, index=index: values.read(tensor, dtype, index=index),  # type: ignore[misc]
            )
            for index in range(min(tensor.shape[0], experts + 1))
        ]
    shape = (1, *tensor.shape) if leaf == _ROW and len(tensor.shape) == 1 else tensor.shape
    heads = int(fields[_ROTARY[leaf]]) if fields["model_type"] in _ROTATED and leaf in _ROTARY else None

    def load(dtype: torch.dtype) -> torch.Tensor:
        value = values.read(tensor, dtype).reshape(shape)
        return from_neighbours_to_halves(value, heads) if heads else value

    stored = f"{name}_{kind}" if leaf == _CORRECTION else f"{name}.{kind}"
    return [StoredTensor(name=stored, shape=shape, where=where, stored_as=stored_as, load=load)]
