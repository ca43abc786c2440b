"""What random activations look like: the usual values, and three ways in which honest kernels still have to be right."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Distribution", "add_outliers", "find_moments"]

_TINY = 2.0**-10
_SHIFT = 4.0
_OUTLIER = 2.0**7
_SHARE = 1 / 256
_MOST = 8


class Distribution(str, Enum):
    """How plain random activations are spread; weights, scales, probabilities and indices are always typical."""

    TYPICAL = "typical"
    """As the input's rule says: normal, for most."""
    OUTLIERS = "outliers"
    """A few elements of each row are 2^7 times larger, as in the streams of large models."""
    TINY = "tiny"
    """Everything is 2^10 times smaller, where an epsilon counts and absolute tolerances hide zeros."""
    SHIFTED = "shifted"
    """The mean lies four deviations from zero, so that sums do not cancel."""


def find_moments(distribution: Distribution, scale: float) -> tuple[float, float]:
    """Give the mean and the deviation of values whose typical deviation is `scale`."""
    if distribution is Distribution.TINY:
        return 0.0, scale * _TINY
    return (_SHIFT * scale if distribution is Distribution.SHIFTED else 0.0), scale


def add_outliers(values: torch.Tensor, generator: torch.Generator) -> None:
    """Make one of 256 elements of each row, eight at most, 2^7 times larger, in place."""
    import torch

    if not values.numel():
        return
    rows = values.view(-1, values.shape[-1] if values.dim() else 1)
    width = rows.shape[-1]
    count = min(max(round(width * _SHARE), 1), _MOST)
    where = torch.randint(0, width, (rows.shape[0], count), generator=generator, device=values.device)
    rows.scatter_(1, where, rows.gather(1, where) * _OUTLIER)
