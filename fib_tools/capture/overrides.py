"""Changes to a model's config by which one GPU computes what one of many would: fewer heads, narrower layers, few layers.

Each change is an override of a field that the config has. What no field can say raises, so that nothing is cut wrongly.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fib_tools.errors import ParallelismError

__all__ = ["Shares", "apply_overrides", "cut_layers", "cut_sizes"]

LayerReader = Callable[[Mapping[str, Any]], Sequence[Hashable]]
"""Reads off the fields of a backbone what kind each layer is of."""

_COUNT = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_EXPERT_WIDTHS = ("moe_intermediate_size", "expert_ffn_hidden_size")
_DENSE_WIDTHS = ("intermediate_size", "ffn_dim", "intermediate_size_mlp")
_SHARED_WIDTHS = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
_LINEAR_HEADS = ("linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "n_groups")

_SHRUNK: Mapping[str, int] = {
    "first_k_dense_replace": 1,
    "full_attention_interval": 2,
    "sliding_window_pattern": 2,
    "max_window_layers": 1,
}
"""Periods and beginnings that say which layer is of which kind, and the least value with both kinds."""
_FEWEST_LAYERS = 2
"""The first layer's norm has no residual to add, the second's has."""
_MOST_LAYERS = 24
"""A longer prefix is hardly a cut: dummy weights of large models would not fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Into how many parts a model is cut, and what is in one of them."""

    attention_tp: int
    tp: int
    ep: int
    num_heads: int
    """Of one rank."""
    num_kv_heads: int
    """Of one rank, replicas counted."""
    head_dim: int | None
    """Of a head that is no part of MLA; else configs give it as hidden_size over heads."""

    @property
    def expert_tp(self) -> int:
        """Over how many ranks one expert is cut."""
        return self.tp // self.ep


def apply_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Write dotted paths into a copy of a config."""
    changed = copy.deepcopy(dict(config))
    for path, value in overrides.items():
        *parents, field = path.split(".")
        target = changed
        for parent in parents:
            target = target[parent]
        target[field] = value
    return changed


def cut_sizes(backbone: Mapping[str, Any], shares: Shares) -> dict[str, Any]:
    """Give the overrides by which a whole model has the shapes of one rank.

    Raises:
        ParallelismError: the config has no field that says it, or a size that does not divide.
    """
    if shares.tp == shares.attention_tp == 1:
        return {}
    changes: dict[str, Any] = {}
    if shares.attention_tp > 1:
        changes |= _cut_heads(backbone, shares)
    has_experts = _find(backbone, _EXPERTS) is not None
    has_own_width = _find(backbone, _EXPERT_WIDTHS) is not None
    changes |= _divide(backbone, _SHARED_WIDTHS, shares.tp)
    changes |= _divide(backbone, _DENSE_WIDTHS, shares.expert_tp if has_experts and not has_own_width else shares.tp)
    if has_experts:
        changes |= _divide(backbone, _EXPERT_WIDTHS, shares.expert_tp)
        changes |= _divide(backbone, _EXPERTS, shares.ep)
    return changes


def _cut_heads(backbone: Mapping[str, Any], shares: Shares) -> dict[str, Any]:
    heads = _find(backbone, _HEADS)
    if heads is None:
        raise ParallelismError("the config has no field for the number of heads", where=", ".join(_HEADS))
    kv_heads = _find(backbone, _KV_HEADS) or _KV_HEADS[0]
    changes: dict[str, Any] = {heads: shares.num_heads, kv_heads: shares.num_kv_heads}
    if shares.head_dim is not None:
        changes["head_dim"] = shares.head_dim
    return {**changes, **_divide(backbone, _LINEAR_HEADS, shares.attention_tp)}


def _find(backbone: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if isinstance(backbone.get(name), int)), None)


def _divide(backbone: Mapping[str, Any], names: Sequence[str], parts: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        total = backbone.get(name)
        if not isinstance(total, int) or total == 0 or parts == 1:
            continue
        if total % parts:
            raise ParallelismError(f"{name}={total} cannot be cut into {parts} parts by an override", where=name)
        found[name] = total // parts
    return found


def cut_layers(backbone: Mapping[str, Any], read_kinds: LayerReader) -> dict[str, Any]:
    """Give the overrides that leave the fewest layers in which every kind is left.

    The layers kept are the first ones, after periods such as `first_k_dense_replace` were made as short as they can be.
    """
    kinds = read_kinds(backbone)
    wanted, count = set(kinds), _find(backbone, _COUNT)
    best: dict[str, Any] | None = None
    fewest = len(kinds)
    for changes in _list_shrunk(backbone):
        found = _try_cut({**backbone, **changes}, read_kinds, wanted)
        if found is not None and (best is None or found < fewest):
            fewest = found
            lists = _cut_lists({**backbone, **changes}, len(kinds), found)
            best = {**changes, **lists, **({count: found} if count else {})}
    if best is None or fewest >= len(kinds) or fewest > _MOST_LAYERS:
        return {}
    after = read_kinds({**backbone, **best})
    return best if set(after) == wanted and len(after) == fewest else {}


def _list_shrunk(backbone: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """List which periods to shorten, fewest first."""
    usable = {
        name: least for name, least in _SHRUNK.items() if isinstance(backbone.get(name), int) and backbone[name] > least
    }
    for size in range(len(usable) + 1):
        for names in itertools.combinations(usable, size):
            yield {name: usable[name] for name in names}


def _try_cut(backbone: Mapping[str, Any], read_kinds: LayerReader, wanted: set[Hashable]) -> int | None:
    """Find how many of the first layers have every kind."""
    kinds = read_kinds(backbone)
    for length in range(min(_FEWEST_LAYERS, len(kinds)), len(kinds) + 1):
        if set(kinds[:length]) == wanted:
            return length
    return None


def _cut_lists(backbone: Mapping[str, Any], total: int, length: int) -> dict[str, Any]:
    """Shorten what has an entry for each layer."""
    return {
        name: value[:length]
        for name, value in backbone.items()
        if isinstance(value, list) or name == "hybrid_override_pattern"
        if len(value) == total and name != "architectures"
    }
