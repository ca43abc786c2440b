"""What attention masks let through: how many tokens and keys each sequence has.

Every step of a generation has a mask of its own, which all of its layers take. To read one on a GPU is to wait for all
that was launched before, so that a small mask is copied, and read when the run is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    import torch

__all__ = ["Lengths", "Mask", "Masks", "read_shapes"]

_SMALL = 1 << 20
"""Bytes of a mask that is copied; a larger one is that of a long prefill, which takes longer than to read it."""
_MOST_HELD = 1 << 24
"""Bytes of all copies together; then they are read."""
_PAIRS_DIMS = 4
"""Of `[batch, heads, queries, keys]`."""
_MOST_KNOWN = 8
"""Masks that a model uses by turns, such as with and without a window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """What a mask lets through."""

    queries: tuple[int, ...]
    """By sequence."""
    keys: tuple[int, ...]
    pairs: int
    """Of a query and a key."""
    is_biased: bool = False
    """Whether it adds to scores, beside hiding some."""

    @property
    def is_decode(self) -> bool:
        """Tell whether every sequence has one query, and any more than one key."""
        return set(self.queries) == {1} and max(self.keys) > 1

    def count_pairs(self, window: int | None, *, causal: bool) -> int:
        """Count the pairs that a causal or full mask, with a window of so many keys, would let through."""
        total = 0
        for queries, keys in zip(self.queries, self.keys, strict=True):
            for place in range(keys - queries + 1, keys + 1) if causal else [keys] * queries:
                total += min(place, window) if window else place
        return total


class Mask:
    """One mask, and its lengths when they are asked for."""

    def __init__(self, mask: torch.Tensor, batch: int, queries: int, keys: int, *, by_pair: bool = False) -> None:
        if by_pair:
            mask = mask[(None,) * (_PAIRS_DIMS - mask.dim())]
        self.bytes = mask.numel() * mask.element_size()
        self._sizes = (batch, queries, keys)
        is_small = self.bytes <= _SMALL
        self._held: torch.Tensor | Lengths = mask.detach().clone() if is_small else _read_mask(mask, *self._sizes)

    @property
    def is_read(self) -> bool:
        """Tell whether the copy is let go of."""
        return isinstance(self._held, Lengths)

    @property
    def lengths(self) -> Lengths:
        """Read the mask, once."""
        if not isinstance(self._held, Lengths):
            self._held = _read_mask(self._held, *self._sizes)
        return self._held


@dataclass(frozen=True, slots=True)
class _Known:
    """A mask that was noted; the same tensor with other content is another mask."""

    tensor: ref[torch.Tensor]
    version: int
    sizes: tuple[int, int, int]
    mask: Mask


class Masks:
    """Masks as they are met: one and the same for all calls that take the same tensor."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._held: list[Mask] = []
        self._bytes = 0

    def note(self, mask: torch.Tensor, batch: int, queries: int, keys: int, *, by_pair: bool = False) -> Mask:
        """Find a mask, or keep it; `by_pair` says that one of two axes is of queries and keys, not of sequences."""
        sizes = (batch, queries, keys)
        is_block = hasattr(mask, "mask_mod")
        version = -1 if is_block or mask.is_inference() else mask._version  # noqa: SLF001  # torch has no public name for it
        known = self._known.get(id(mask))
        if known is not None and known.tensor() is mask and (known.version, known.sizes) == (version, sizes):
            return known.mask
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        tensor = _spell_out(mask, *sizes) if is_block else mask
        found = Mask(tensor, batch, queries, keys, by_pair=by_pair)
        self._known[id(mask)] = _Known(ref(mask), version, sizes, found)
        self._held.append(found)
        self._bytes += found.bytes
        if self._bytes > _MOST_HELD:
            held, self._held, self._bytes = self._held, [], 0
            for each in held:
                each.lengths  # noqa: B018  # reading it lets go of the copy
        return found


def read_shapes(batch: int, queries: int, keys: int, *, causal: bool) -> Lengths:
    """Say what is let through where there is no mask."""
    if causal and queries > 1:
        keys = queries  # torch aligns such a mask at the first key: what is beyond is a cache's free room
    pairs = sum(range(keys - queries + 1, keys + 1)) if causal else queries * keys
    return Lengths(queries=(queries,) * batch, keys=(keys,) * batch, pairs=batch * pairs)


def _spell_out(mask: Any, batch: int, queries: int, keys: int) -> torch.Tensor:
    """Give flex_attention's mask, which is a function of places, as the tensor that other attention takes."""
    from torch.nn.attention.flex_attention import create_mask

    return create_mask(mask.mask_mod, batch, 1, queries, keys, device=mask.kv_indices.device)


def _read_mask(mask: torch.Tensor, batch: int, queries: int, keys: int) -> Lengths:
    """Read `[batch, keys]`, 1 where there is a token, or `[batch, 1, queries, keys]`: True, or a bias that is not -inf."""
    import torch

    if mask.dim() == 2:  # of axes
        counts = [int(count) for count in mask.bool().sum(dim=-1).tolist()]
        own = [min(queries, count) for count in counts]
        pairs = sum(sum(range(count - have + 1, count + 1)) for have, count in zip(own, counts, strict=True))
        return Lengths(queries=tuple(own), keys=tuple(counts), pairs=pairs)
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    is_biased = mask.dtype != torch.bool and bool((mask.ne(0) & allowed).any())
    allowed = allowed[:, :1].expand(batch, 1, queries, mask.shape[-1])[:, 0, :, :keys]
    # a query that stands for padding sees nothing, or itself only; a key of padding is seen by no real query
    last = allowed[:, -1]
    seen = (allowed & last.any(dim=-1)[:, None, None]).any(dim=1)
    counts = [int(count) for count in seen.sum(dim=-1).tolist()]
    own = [min(queries, count) for count in counts]
    # padding stands before the tokens, or behind them, where the first key is one that is seen
    starts = [
        0 if is_seen and have < queries else queries - have
        for is_seen, have in zip(seen[:, 0].tolist(), own, strict=True)
    ]
    pairs = sum(int(allowed[row, start : start + own[row]].sum()) for row, start in enumerate(starts))
    return Lengths(queries=tuple(own), keys=tuple(counts), pairs=pairs, is_biased=is_biased)
