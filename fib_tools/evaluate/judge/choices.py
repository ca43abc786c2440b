"""Choices of experts in the order of the reference's: which of a token's experts comes first says nothing.

>>> got.update(align_choices(got, want, tolerances))  # tensors [calls, *shape], by output
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fib_tools.op_types.tolerance import Tolerance

if TYPE_CHECKING:
    import torch

__all__ = ["align_choices"]

_CHUNK = 1 << 27
"""Pairs of a wanted and a given expert that are looked at together."""


def align_choices(
    got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor], tolerances: Mapping[str, Tolerance]
) -> dict[str, torch.Tensor]:
    """Put each token's experts, and with them their weights, where the reference has the same expert.

    Two lists with one expert exchanged differ in one place; an expert that comes twice is one that is missing.
    """
    names = [name for name in want if tolerances[name].how == "choice"]
    ids = next((name for name in names if not want[name].is_floating_point()), None)
    if ids is None or not want[ids].numel():
        return {}
    order = _match(got[ids].flatten(0, -2), want[ids].flatten(0, -2)).view(want[ids].shape)
    aligned = {name: got[name].gather(-1, order) for name in names if want[name].shape == want[ids].shape}
    same = aligned[ids] == want[ids]
    for name, values in aligned.items():
        if values.is_floating_point():
            aligned[name] = _share_alike(values, want[name], same)
    return aligned


def _share_alike(got: torch.Tensor, want: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Scale the weights of tokens that have another expert, so that those of the experts they share sum to the same.

    Weights are often shares of the sum over a token's experts: with one exchanged at a near tie, all of them change.
    """
    import torch

    ours, theirs = (torch.where(same, side.float(), 0.0).sum(dim=-1, keepdim=True) for side in (got, want))
    changed = ~same.all(dim=-1, keepdim=True) & (ours > 0)
    return torch.where(changed, (got.float() * (theirs / ours)).to(got.dtype), got)


def _match(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Give, for each place of `want` `[tokens, k]`, the place in `got` of the same id; the ids left over fill the rest."""
    import torch

    count = want.shape[-1]
    step = max(1, _CHUNK // (count * count))
    orders = [_match_chunk(got[at : at + step], want[at : at + step]) for at in range(0, len(want), step)]
    return torch.cat(orders)


def _match_chunk(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    import torch

    count = want.shape[-1]
    slots = torch.arange(count, device=want.device)
    same = (want.unsqueeze(-1) == got.unsqueeze(-2)) & (_repeats(want).unsqueeze(-1) == _repeats(got).unsqueeze(-2))
    wanted = torch.where(same.any(dim=-1), slots, slots + count).argsort(dim=-1)
    place = same.to(torch.int8).argmax(dim=-2)
    held = torch.where(same.any(dim=-2), place, slots + count).argsort(dim=-1)
    return torch.empty_like(wanted).scatter_(-1, wanted, held)


def _repeats(ids: torch.Tensor) -> torch.Tensor:
    """Count how often each id came before in its list."""
    return (ids.unsqueeze(-1) == ids.unsqueeze(-2)).tril(-1).sum(dim=-1)
