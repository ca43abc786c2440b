"""How near a kernel must come to the reference, by the arithmetic that stands between them and by element type.

A value is a hit if |got - want| <= atol * rms of its row + rtol * |want|, where |want| counts as the format's smallest
normal number at least: below it numbers are equally far apart. An output passes if its share of hits is at least
`hit_ratio`. A row is the last axis: its values are sums of the same terms' kind and size, which the error of each
is in proportion to, while rows differ (a query that sees one key, and one that sees thousands).
Bounds follow from the rounding of the formats, never from an error that was seen.
The unit roundoff u of a format with p bits of significand is 2^-p (Higham, Accuracy and Stability, 2002, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fib_tools.model.definition import DType

__all__ = [
    "Policy",
    "Tolerance",
    "chained",
    "chosen",
    "codes",
    "exact",
    "filtered",
    "requantised",
    "rounded",
    "routed",
    "sampled",
    "summed",
]

_UNIT: Mapping[DType, float] = {
    DType.FLOAT32: 2**-24,
    DType.FLOAT16: 2**-11,
    DType.BFLOAT16: 2**-8,
    DType.FLOAT8_E4M3FN: 2**-4,
    DType.FLOAT8_E5M2: 2**-3,
    DType.FLOAT4_E2M1: 2**-2,
}
"""Half the distance from 1 to the next number."""

_FAST_EXP = 2**-14
"""Relative error of a few `ex2.approx` and `rcp.approx` after one another, whose own is 2^-22 (PTX ISA), with a margin
for arguments of about 2^6, whose absolute error an exponential makes a relative one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """When two values are near enough, and how many have to be."""

    rtol: float
    atol: float
    """In units of the root mean square of the value's row in the reference's output."""
    hit_ratio: float = 1.0
    how: str = "values"
    """`values`; `filter` for values that a threshold keeps or drops; `routed` for rows that follow from a choice of experts;
    `choice` for the experts, in any order; `samples` for draws that agree in distribution only.

    Of all but `values`, errors at a near tie tell nothing of rounding: they are not calibrated.
    """
    source: str = ""
    """Where the bounds come from."""

    @property
    def is_by_value(self) -> bool:
        """Tell whether values are compared, each with its own."""
        return self.how in {"values", "filter", "routed"}


Policy = Callable[[DType], Tolerance]
"""Give the tolerance of an output with this element type."""


def _unit(dtype: DType) -> float:
    return _UNIT.get(dtype, 0.0)


def exact(dtype: DType) -> Tolerance:
    """Ask for the same bits: integers, and what is only moved."""
    del dtype
    return Tolerance(rtol=0.0, atol=0.0, source="nothing is computed, so nothing is rounded")


def rounded(dtype: DType) -> Tolerance:
    """Allow for one value computed in float32 and rounded once: the neighbour of the reference's number."""
    if dtype not in _UNIT:
        return exact(dtype)
    rtol = max(2 * _unit(dtype), _FAST_EXP)
    return Tolerance(rtol=rtol, atol=2**-14, source="float32 arithmetic, one rounding: two units, 2u of the output")


def summed(dtype: DType) -> Tolerance:
    """Allow for sums of products in float32 whose factors or partial results a kernel rounds to bfloat16."""
    if dtype is DType.FLOAT32:
        return Tolerance(rtol=2**-10, atol=2**-10, source="float32 sums of bfloat16 products in another order")
    unit = _unit(dtype)
    return Tolerance(
        rtol=4 * unit,
        atol=6 * unit,
        source="sums whose terms are rounded at random err by u of their own size; seven deviations of that, and 2u",
    )


def chained(dtype: DType) -> Tolerance:
    """Allow for products after one another with results rounded in between, as experts have them."""
    unit = _unit(dtype)
    return Tolerance(
        rtol=4 * unit,
        atol=6 * unit,
        source="gate, up, their product and each expert's share are rounded: twice one rounding's deviation; five, and 2u",
    )


def requantised(dtype: DType) -> Tolerance:
    """Allow for a product whose left side the kernel first rounds to e4m3, as fused MoE does between its products."""
    del dtype
    return Tolerance(
        rtol=2**-4,
        atol=2**-3,
        hit_ratio=0.995,
        source="e4m3 rounds by up to 2^-4, 2.6% in the mean square, and a sum keeps that: four deviations and more",
    )


def routed(policy: Policy) -> Policy:
    """Allow for a token whose last expert, or group of experts, is a near tie: of hundreds of tokens one may have another."""
    return lambda dtype: replace(policy(dtype), how="routed")


def codes(dtype: DType) -> Tolerance:
    """Allow for a quantiser that multiplies with 1 / scale: near a tie it takes the neighbouring code."""
    if _unit(dtype) <= 2**-8:
        return rounded(dtype)
    return Tolerance(rtol=2**-9, atol=0.0, hit_ratio=0.995, source="the same code, but for ties: 1 / scale is rounded")


def filtered(dtype: DType) -> Tolerance:
    """Allow for a threshold found by bisection in float32: tokens at it may be kept by one and dropped by the other."""
    del dtype
    return Tolerance(
        rtol=2**-10,
        atol=2**-14,
        hit_ratio=1 - 2**-19,
        how="filter",
        source="a float32 sum errs by less than the token at the threshold: that one, in a row of four of 2^17 tokens",
    )


def chosen(dtype: DType) -> Tolerance:
    """Compare experts and their weights in the order of their ids."""
    if dtype in _UNIT:
        return Tolerance(
            rtol=_FAST_EXP, atol=2**-14, hit_ratio=0.999, how="choice", source="float32, fast exponentials"
        )
    return Tolerance(rtol=0.0, atol=0.0, hit_ratio=0.999, how="choice", source="the same experts, but for near ties")


def sampled(dtype: DType) -> Tolerance:
    """Compare draws in distribution: what may be drawn, and how often."""
    del dtype
    return Tolerance(
        rtol=0.0, atol=0.0, hit_ratio=0.999, how="samples", source="chi-squared over bins, at 6 deviations"
    )
