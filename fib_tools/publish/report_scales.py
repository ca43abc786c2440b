"""Where values stand on an axis, in percent of its length, and which of them get a tick; how values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "NOTHING",
    "TIMES",
    "Scale",
    "format_bytes",
    "format_factor",
    "format_ms",
    "format_number",
    "format_percent",
    "linear_scale",
    "log_scale",
]

NOTHING = "\u2013"
"""A dash for a value that is not there."""
TIMES = "\u00d7"

_FINE = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
_MEDIUM = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_COARSE = (1.0, 2.0, 5.0)
_MOST_TICKS = 7


_LEAST, _MOST = 1e-15, 1e18
"""Nothing that is measured lies beyond, whatever a document says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """An axis from low to high."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = True

    def place(self, value: float) -> float:
        """Give the place of a value in percent; values beyond an end stand at that end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)


def log_scale(values: Iterable[float], *, include: float | None = None, margin: float = 1.12) -> Scale:
    """Make a logarithmic axis that holds positive values; ticks are round."""
    held = [value for value in values if _LEAST < value < _MOST]
    if include is not None:
        held.append(include)
    low, high = (min(held) / margin, max(held) * margin) if held else (0.5, 2.0)
    if high / low < margin**3:
        middle = math.sqrt(low * high)
        low, high = middle / margin**2, middle * margin**2
    return Scale(low=low, high=high, ticks=_log_ticks(low, high))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    span = high / low
    steps = _FINE if span < 3 else _MEDIUM if span < 12 else _COARSE if span < 1e3 else (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [10.0**power * step for power in powers for step in steps]
    return _thin(sorted({float(f"{value:.6g}") for value in candidates if low <= value <= high}))


def _thin(ticks: list[float]) -> tuple[float, ...]:
    """Leave out ticks evenly until few enough are left, and keep 1 where it is one of them."""
    step = math.ceil(len(ticks) / _MOST_TICKS)
    if step <= 1:
        return tuple(ticks)
    start = ticks.index(1.0) % step if 1.0 in ticks else 0
    return tuple(ticks[start::step])


def linear_scale(high: float) -> Scale:
    """Make an axis from zero to a little above the highest value."""
    top = high * 1.06 or 1.0
    step = 10.0 ** math.floor(math.log10(top))
    step = next(step * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if top / (step * part) <= _MOST_TICKS)
    ticks = tuple(float(f"{place * step:.6g}") for place in range(int(top / step) + 1))
    return Scale(low=0.0, high=top, ticks=ticks, is_log=False)


def format_ms(milliseconds: float | None) -> str:
    """Write a time with four digits, in the unit that suits it."""
    if milliseconds is None:
        return NOTHING
    if milliseconds < 1:
        return f"{_digits(milliseconds * 1000)} µs"
    return f"{_digits(milliseconds)} ms" if milliseconds < 1000 else f"{_digits(milliseconds / 1000)} s"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}".rstrip(".")


def format_factor(value: float | None) -> str:
    """Write a speed-up."""
    if value is None:
        return NOTHING
    return f"{value:.2f}{TIMES}" if 0.1 <= value < 100 else f"{value:.3g}{TIMES}"


def format_percent(value: float | None) -> str:
    """Write a percentage."""
    if value is None:
        return NOTHING
    return f"{value:.1f}%" if value < 10 else f"{value:.0f}%"


def format_number(value: float) -> str:
    """Write a tick."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 4:
        return f"{value:.4g}"
    mantissa = value / 10.0**exponent
    power = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] if digit != "-" else "⁻" for digit in str(exponent))
    return f"10{power}" if abs(mantissa - 1) < 1e-9 else f"{mantissa:.3g}·10{power}"


def format_bytes(value: float) -> str:
    """Write a count of bytes, in steps of 1000."""
    power = min(max(0, math.floor(math.log10(max(value, 1)) / 3 + 1e-12)), 4)
    return f"{value / 1000.0**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
