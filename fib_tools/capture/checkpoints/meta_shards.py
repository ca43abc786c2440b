"""Meta's layout: `params.json` beside `consolidated.00.pth`, `consolidated.01.pth`, ..., one file a model-parallel rank.

Each rank holds its part of every large tensor, cut as fairscale's parallel layers do:
rows (outputs) of wq, wk, wv, w1, w3 and output, columns (inputs) of wo and w2; norms are whole on every rank.
The embedding is cut by columns in Llama 1 and 2 and by rows in Llama 3, which its shape tells.

A `.pth` file is a pickle, which could run code: it is read with `weights_only=True`, which builds tensors and nothing else.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.configs import make_config
from fib_tools.capture.checkpoints.meta_params import MetaParams, make_fields, read_params
from fib_tools.capture.checkpoints.rotary import from_neighbours_to_halves
from fib_tools.capture.checkpoints.stored import Checkpoint, StoredTensor, count_bytes
from fib_tools.errors import FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["PARAMS", "SUFFIX", "open_meta"]

PARAMS = "params.json"
SUFFIX = ".pth"
_SHARD = re.compile(r"consolidated\.(\d{2})\.pth", re.ASCII)
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)", re.ASCII)
_IN_LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}
"""Meta's name, transformers' name, and the dimension that ranks share; none where each has the whole."""
_OUTSIDE = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", 0),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
_EMBEDDING = "model.embed_tokens.weight"


def open_meta(folder: Path) -> Checkpoint:
    """Open a folder with `params.json` and the shards of all ranks.

    Raises:
        ConfigError: the parameters are not those of a dense Llama.
        FormatError: a shard is missing, cut off, or holds something else than tensors.
    """
    params = read_params(folder / PARAMS)
    paths = _list_shards(folder)
    tensors = _merge([_load_shard(path) for path in paths], paths, params)
    embedding = tensors.get(_EMBEDDING)
    if embedding is None:
        raise FormatError("there is no 'tok_embeddings.weight'", where=str(paths[0]), todo="fetch the file again")
    vocab_size = params.vocab_size if params.vocab_size > 0 else embedding.shape[0]
    fields = make_fields(params, vocab_size=vocab_size, is_tied="lm_head.weight" not in tensors)
    return Checkpoint(
        config=make_config(fields, where=str(folder / PARAMS)),
        origin=str(folder),
        format="pth",
        bytes=count_bytes(paths),
        tensors=tensors,
    )


def _list_shards(folder: Path) -> tuple[Path, ...]:
    found = {int(match[1]): path for path in folder.glob(f"*{SUFFIX}") if (match := _SHARD.fullmatch(path.name))}
    absent = sorted(set(range(max(found, default=0) + 1)) - found.keys())
    if absent:
        name = f"consolidated.{absent[0]:02d}.pth"
        raise FormatError(f"{name!r} is not there", where=str(folder), todo="fetch the shards of all ranks")
    return tuple(found[rank] for rank in sorted(found))


def _load_shard(path: Path) -> dict[str, torch.Tensor]:
    """Map one shard; nothing but names, shapes and offsets is read."""
    import torch

    try:
        shard = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        todo = "do not load it with other tools either: fetch it from Meta, or take the safetensors release"
        raise FormatError(f"it holds more than tensors: {str(error)[:300]}", where=str(path), todo=todo) from error
    except (RuntimeError, ValueError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        todo = "fetch the file again: it is cut off, damaged, or older than PyTorch 1.6"
        raise FormatError(f"not a whole .pth file: {str(error)[:300]}", where=str(path), todo=todo) from error
    if not isinstance(shard, dict) or not all(isinstance(name, str) for name in shard):
        raise FormatError("it holds no dictionary of names to tensors", where=str(path))
    for name, value in shard.items():
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or not _is_plain(value):
            raise FormatError(f"{name[:200]!r} is no plain tensor", where=str(path), todo="fetch the file again")
    return shard


def _is_plain(value: Any) -> bool:
    """Tell whether each element has its own bytes in the file: a view could claim a huge shape of a few bytes."""
    import torch

    return bool(value.layout is torch.strided and value.device.type == "cpu" and value.is_contiguous())


def _merge(
    shards: list[dict[str, torch.Tensor]], paths: tuple[Path, ...], params: MetaParams
) -> dict[str, StoredTensor]:
    for shard, path in zip(shards, paths, strict=True):
        if odd := sorted(shard.keys() ^ shards[0].keys()):
            raise FormatError(f"{odd[0]!r} is not on all ranks", where=str(path), todo="fetch the shards again")
    merged = [_merge_one(name, [shard[name] for shard in shards], paths, params) for name in shards[0]]
    return {stored.name: stored for stored in merged}


def _merge_one(name: str, parts: list[torch.Tensor], paths: tuple[Path, ...], params: MetaParams) -> StoredTensor:
    target, dim = _translate(name)
    if target == _EMBEDDING and parts[0].dim() == 2 and parts[0].shape[1] != params.dim:
        dim = 1
    shapes = {tuple(part.shape) for part in parts}
    rank_shape = shapes.pop()
    if shapes or (dim is not None and len(rank_shape) != 2):
        raise FormatError(f"the ranks' parts of {name!r} do not fit one another", where=str(paths[0].parent))
    sizes = [size * len(parts) if index == dim else size for index, size in enumerate(rank_shape)]
    heads = {"wq.weight": params.n_heads, "wk.weight": params.kv_heads}.get(name.rpartition("attention.")[2])

    def load(dtype: torch.dtype) -> torch.Tensor:
        return _join(parts, dim, heads, name, paths[0].parent).to(dtype)

    return StoredTensor(
        name=target,
        shape=tuple(sizes),
        where=f"{paths[0]}: {name}",
        stored_as=str(parts[0].dtype).removeprefix("torch."),
        load=load,
    )


def _join(parts: list[torch.Tensor], dim: int | None, heads: int | None, name: str, folder: Path) -> torch.Tensor:
    import torch

    if dim is None:
        if not all(torch.equal(part, parts[0]) for part in parts[1:]):
            raise FormatError(
                f"{name!r} is not the same on all ranks", where=str(folder), todo="fetch the shards again"
            )
        return parts[0]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
    return from_neighbours_to_halves(whole, heads) if heads else whole


def _translate(name: str) -> tuple[str, int | None]:
    """Give transformers' name of a tensor and the dimension that ranks share; an unknown one keeps its name."""
    if match := _LAYER.fullmatch(name):
        known = _IN_LAYER.get(match[2])
        return (f"model.layers.{int(match[1])}.{known[0]}", known[1]) if known else (name, None)
    return _OUTSIDE.get(name, (name, None))
