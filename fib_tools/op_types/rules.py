"""Stock input rules: the index tensors and scalars that kernels of many op_types share, by their usual names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fib_tools.op_types.base import InputRule
from fib_tools.op_types.input_request import InputRequest

if TYPE_CHECKING:
    import torch

__all__ = [
    "STOCK_RULES",
    "Plain",
    "constant",
    "draw_distinct",
    "indptr",
    "page_lengths",
    "positive",
    "random",
    "row_ids",
    "split_total",
]

_PERMUTED = 1 << 16
"""Up to here all numbers are put in random order to take a few; beyond, that takes seconds where rows are many."""
_Q_TOTALS = ("total_q", "total_tokens", "num_tokens", "total_seq_len", "nnz_qo")
_KV_TOTALS = ("num_kv_indices", "total_kv", "num_kv_tokens", "nnz_kv", *_Q_TOTALS)


def split_total(total: int, parts: int, *, generator: torch.Generator, least: list[int] | None = None) -> list[int]:
    """Cut a total into `parts` whole numbers, each at least its `least` (1 where the total allows, else 0)."""
    import torch

    floor = least or [1 if total >= parts else 0] * parts
    rest = total - sum(floor)
    if rest < 0 or parts == 0:
        return floor
    cuts = torch.sort(torch.randint(0, rest + 1, (parts - 1,), generator=generator)).values.tolist()
    edges = [0, *cuts, rest]
    return [low + high - start for low, start, high in zip(floor, edges[:-1], edges[1:], strict=True)]


def indptr(totals: tuple[str, ...], *, covers: str | None = None) -> InputRule:
    """Make offsets of a ragged dimension whose total is the first of `totals` that is an axis.

    `covers` names an indptr made before, such as `qo_indptr`, whose sequences must fit into these, in pages.
    """

    def rule(request: InputRequest) -> torch.Tensor:
        import torch

        parts = request.shape[0] - 1
        axis = next((name for name in totals if name in request.axes), None)
        total = request.axes[axis] if axis else 4 * parts
        least = None
        if covers is not None and covers in request.made:
            per_page = request.axes.get("page_size", 1) if axis == "num_kv_indices" else 1
            lengths = request.made[covers].diff().tolist()
            least = [-(-length // per_page) for length in lengths]
            least = least if len(least) == parts and sum(least) <= total else None
        lengths = split_total(total, parts, generator=request.generator, least=least)
        return torch.tensor([0, *_running(lengths)], dtype=request.dtype, device=request.device)

    return rule


def _running(lengths: list[int]) -> list[int]:
    return [sum(lengths[: index + 1]) for index in range(len(lengths))]


def draw_distinct(count: int, total: int, *, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` different numbers below `total`, in random order."""
    import torch

    if total <= _PERMUTED or 2 * count > total:
        return torch.randperm(total, generator=generator)[:count]
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.cat([drawn, torch.randint(0, total, (count,), generator=generator)])
        numbers, places = more.unique(return_inverse=True)
        firsts = torch.full_like(numbers, len(more)).scatter_reduce_(0, places, torch.arange(len(more)), "amin")
        drawn = more[firsts.sort().values]
    return drawn[:count]


def row_ids(*axes: str) -> InputRule:
    """Make indices into the first of `axes` that is an axis: distinct where there are enough rows."""

    def rule(request: InputRequest) -> torch.Tensor:
        import torch

        rows = next((request.axes[name] for name in axes if name in request.axes), 1)
        count = math.prod(request.shape)
        if count > rows:
            return request.integers(0, rows)
        drawn = torch.randperm(rows, generator=request.generator)[:count]
        return drawn.reshape(request.shape).to(dtype=request.dtype, device=request.device)

    return rule


def page_lengths(request: InputRequest) -> torch.Tensor:
    """Make the number of tokens in each sequence's last page, 1 to page_size."""
    return request.integers(1, request.axes.get("page_size", 1) + 1)


def constant(value: float) -> InputRule:
    """Make a scalar, or a tensor full of it."""

    def rule(request: InputRequest) -> Any:
        import torch

        if request.spec.shape is None:
            return int(value) if request.spec.dtype.value.startswith("int") else value
        return torch.full(request.shape, value, device=request.device).to(request.dtype)

    return rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """The rule of normal values times `scale`, which other distributions may take the place of."""

    scale: float = 1.0

    def __call__(self, request: InputRequest) -> torch.Tensor:
        """Draw them."""
        return request.normal(self.scale)


def random(scale: float) -> InputRule:
    """Make normal values times `scale`, as weights and activations need to keep sums in range."""
    return Plain(scale=scale)


def positive(low: float, high: float) -> InputRule:
    """Make values of [low, high), as scales and probabilities need; a scalar is the middle."""

    def rule(request: InputRequest) -> Any:
        return (low + high) / 2 if request.spec.shape is None else request.uniform(low, high)

    return rule


def _softmax_scale(request: InputRequest) -> Any:
    head = next((request.axes[name] for name in ("head_dim", "head_dim_qk", "head_dim_ckv") if name in request.axes), 1)
    return constant(head**-0.5)(request)


def _by_name(names: tuple[str, ...], rule: Callable[..., Any]) -> dict[str, InputRule]:
    return dict.fromkeys(names, rule)


STOCK_RULES: Mapping[str, InputRule] = {
    **_by_name(("qo_indptr", "q_indptr", "cu_seqlens", "cu_seqlens_q", "indptr"), indptr(_Q_TOTALS)),
    **_by_name(("kv_indptr", "paged_kv_indptr", "cu_seqlens_k"), indptr(_KV_TOTALS, covers="qo_indptr")),
    **_by_name(("kv_indices", "paged_kv_indices"), row_ids("num_pages")),
    **_by_name(("kv_last_page_len", "paged_kv_last_page_len"), page_lengths),
    **_by_name(("sm_scale", "softmax_scale"), _softmax_scale),
}
