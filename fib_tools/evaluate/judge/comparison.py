"""The judge's comparison: every output of every call with the reference's, and what is wrong where it is.

>>> verdict = compare_outputs({"output": got}, {"output": want}, {"output": tolerance})  # tensors [calls, *shape]
>>> verdict.is_right, verdict.detail
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.evaluate.judge.choices import align_choices
from fib_tools.evaluate.judge.measures import Measure, find_excess, find_first_excess, measure_calls, unravel
from fib_tools.model.evidence import OutputErrors
from fib_tools.op_types.tolerance import Tolerance

if TYPE_CHECKING:
    import torch

__all__ = [
    "OutputVerdict",
    "Place",
    "Verdict",
    "compare_call_outputs",
    "compare_outputs",
    "compare_parts",
    "limit_bias",
    "limit_misses",
    "row_limit",
]

_PLACES = 3
_SHOWN_CALLS = 8
_MISS_DEVIATIONS = 3
"""How far a call's misses may scatter above their share, in deviations of a Poisson count."""
_ROW_FACTOR = 16
"""So many times the average share of misses one row may have: misses scatter, a wrong row does not."""
_ROWS_A_STRAY = 256
"""Of at least so many rows one may be at a near tie, and no second one: they are far rarer than that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A value that is wrong."""

    call: int
    index: tuple[int, ...]
    got: float
    want: float

    def __str__(self) -> str:
        return f"call {self.call} {list(self.index)}: got {self.got:.6g}, want {self.want:.6g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputVerdict:
    """How one output came out, by call."""

    errors: OutputErrors
    calls: tuple[Measure, ...]
    wrong_calls: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    """What is wrong, a sentence each; nothing if the output is right."""
    places: tuple[Place, ...] = ()
    """The worst values of the worst call, only if something is wrong."""
    first: Place | None = None
    """The first value of that call that is out of its bound."""

    @property
    def is_right(self) -> bool:
        """Tell whether every call, and all of them together, are within bounds."""
        return not self.reasons


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How all outputs came out."""

    outputs: Mapping[str, OutputVerdict]

    @property
    def is_right(self) -> bool:
        """Tell whether every output is right."""
        return all(output.is_right for output in self.outputs.values())

    @property
    def errors(self) -> dict[str, OutputErrors]:
        """What the Evidence holds."""
        return {name: output.errors for name, output in self.outputs.items()}

    @property
    def wrong_calls(self) -> tuple[int, ...]:
        """The calls with a wrong output, in order."""
        return tuple(sorted({call for output in self.outputs.values() for call in output.wrong_calls}))

    @property
    def detail(self) -> str:
        """Say what is wrong and where, with values; empty if nothing is."""
        lines = []
        for name, output in self.outputs.items():
            if output.reasons:
                first = f"; first at {output.first}" if output.first else ""
                worst = "; worst at " + ", ".join(map(str, output.places)) if output.places else ""
                lines.append(f"{name}: {'; '.join(output.reasons)}{first}{worst}")
        return "\n".join(lines)


def compare_outputs(
    got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor], tolerances: Mapping[str, Tolerance]
) -> Verdict:
    """Compare every output; experts (`choice`) in the order of the reference's, whatever order they came in.

    Draws (`samples`) are left out: two right kernels draw differently, and `sampling` judges them.
    """
    calls = next((len(value) for value in want.values()), 0)
    return compare_parts(got, want, tolerances, [calls])[0]


def compare_parts(
    got: Mapping[str, torch.Tensor],
    want: Mapping[str, torch.Tensor],
    tolerances: Mapping[str, Tolerance],
    parts: Sequence[int],
) -> list[Verdict]:
    """Compare the same for several parts at once, each of so many calls, with a verdict for each."""
    ours = dict(got)
    ours.update(align_choices(got, want, tolerances))
    names = [name for name in want if tolerances[name].how != "samples"]
    measures = {name: measure_calls(ours[name], want[name], tolerances[name]) for name in names}
    verdicts, start = [], 0
    for part in parts:
        calls = slice(start, start + part)
        outputs = {
            name: _weigh(ours[name][calls], want[name][calls], tolerances[name], measures[name][calls])
            for name in names
        }
        verdicts.append(Verdict(outputs=outputs))
        start += part
    return verdicts


def compare_call_outputs(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> OutputVerdict:
    """Compare one output, `[calls, *shape]`, in some thirty kernels and one transfer.

    A call is right if its share of hits, its worst row and its bias are within bounds, and so must all calls be
    together. Integers are the same or not; an infinity or NaN is right where the reference has the same.
    """
    return _weigh(got, want, tolerance, measure_calls(got, want, tolerance))


def _weigh(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance, calls: Sequence[Measure]) -> OutputVerdict:
    width = got.shape[-1] if got.dim() > 1 else 1
    judged = {call: _judge(measure, width, tolerance) for call, measure in enumerate(calls)}
    wrong = {call: reasons for call, reasons in judged.items() if reasons}
    stray = _find_stray(wrong, calls, width, tolerance)
    if stray is not None:
        del wrong[stray]
    kept = [call for call in range(len(calls)) if call != stray]
    together = _pool([calls[call] for call in kept])
    reasons = _explain(wrong, len(calls)) or (_judge(together, 0, tolerance) if len(calls) > 1 else ())
    blamed = tuple(wrong or kept)
    places, first = _find_places(got, want, tolerance, calls, blamed) if reasons else ((), None)
    return OutputVerdict(
        errors=_to_errors(_pool(calls), tolerance),
        calls=tuple(calls),
        wrong_calls=blamed if reasons else (),
        reasons=reasons,
        places=places,
        first=first,
    )


def _find_stray(wrong: Collection[int], calls: Sequence[Measure], width: int, tolerance: Tolerance) -> int | None:
    """Find the only wrong call, if all that is wrong in it is one row, of so many that one may be at a near tie."""
    if tolerance.how != "routed" or len(wrong) != 1 or sum(call.values for call in calls) < _ROWS_A_STRAY * width:
        return None
    only = next(iter(wrong))
    measure = calls[only]
    is_row = measure.row_misses > row_limit(width, tolerance.hit_ratio)
    elsewhere = measure.misses - measure.row_misses
    return only if is_row and elsewhere <= limit_misses(measure.values - width, tolerance) else None


def limit_misses(values: int, tolerance: Tolerance) -> int:
    """Say how many of so many values may miss: their share, and what such a count scatters by."""
    share = (1 - tolerance.hit_ratio) * values
    return math.floor(share + _MISS_DEVIATIONS * math.sqrt(share) + 1e-9)


def row_limit(width: int, hit_ratio: float) -> int:
    """Say how many values of one row may miss where any may."""
    return max(1, int(_ROW_FACTOR * (1 - hit_ratio) * width))


def limit_bias(tolerance: Tolerance, effective: float) -> float:
    """Say how far the scale of an output may be off: roundings cancel over many values, errors do not.

    A quarter of rtol, or what so few values as there are can scatter by, at most rtol; or the share that may miss.
    """
    scatter = min(1.0, 2 / math.sqrt(effective)) if effective > 0 else 1.0
    return max(tolerance.rtol * max(0.25, scatter), 1 - tolerance.hit_ratio)


def _judge(measure: Measure, width: int, tolerance: Tolerance) -> tuple[str, ...]:
    """Say what is wrong with a call, or with all calls together (a width of 0)."""
    reasons = []
    bounds = f"rtol {tolerance.rtol:.3g}, atol {tolerance.atol:.3g} x row's rms"
    # near ties are so rare that one of them is a call's whole share; that not every call has one, all together show
    most_misses = max(limit_misses(measure.values, tolerance), int(width > 0 and tolerance.how == "choice"))
    if measure.misses > most_misses:
        at_least = f", where {tolerance.hit_ratio:.4%} must hit" if tolerance.hit_ratio < 1 else ""
        reasons.append(f"{measure.misses} of {measure.values} values are out of bounds ({bounds}){at_least}")
    elif width and measure.row_misses > row_limit(width, tolerance.hit_ratio):
        reasons.append(f"{measure.row_misses} of the {width} values of one row are out of bounds ({bounds})")
    if tolerance.rtol and not reasons and abs(measure.bias) > (most := limit_bias(tolerance, measure.effective)):
        reasons.append(f"all in all {measure.bias:+.3%} too large, at most {most:.3%}: roundings cancel, errors do not")
    return tuple(reasons)


def _explain(wrong: Mapping[int, Sequence[str]], count: int) -> tuple[str, ...]:
    if not wrong:
        return ()
    first = next(iter(wrong))
    if count == 1:
        return tuple(wrong[first])
    listed = ", ".join(map(str, list(wrong)[:_SHOWN_CALLS])) + (", ..." if len(wrong) > _SHOWN_CALLS else "")
    return (f"{len(wrong)} of {count} calls are wrong ({listed})", *(f"call {first}: {text}" for text in wrong[first]))


def _pool(calls: Sequence[Measure]) -> Measure:
    return Measure(
        misses=sum(call.misses for call in calls),
        values=sum(call.values for call in calls),
        absolute=max((call.absolute for call in calls), default=0.0),
        relative=max((call.relative for call in calls), default=0.0),
        total=sum(call.total for call in calls),
        product=sum(call.product for call in calls),
        squares=sum(call.squares for call in calls),
        largest=max((call.largest for call in calls), default=0.0),
        row_misses=max((call.row_misses for call in calls), default=0),
    )


def _to_errors(together: Measure, tolerance: Tolerance) -> OutputErrors:
    count = max(together.values, 1)
    return OutputErrors(
        max_absolute=together.absolute,
        max_relative=together.relative,
        mean_absolute=together.total / count,
        rms=math.sqrt(together.squares / count),
        misses=together.misses,
        values=together.values,
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        hit_ratio=tolerance.hit_ratio,
        how=tolerance.how,
        source=tolerance.source,
    )


def _find_places(
    got: torch.Tensor,
    want: torch.Tensor,
    tolerance: Tolerance,
    calls: Sequence[Measure],
    blamed: Collection[int],
) -> tuple[tuple[Place, ...], Place | None]:
    """Find the worst values of the worst of some calls, and the first that is wrong."""
    call = max(blamed, key=lambda at: (calls[at].misses, abs(calls[at].bias)))
    shape = tuple(got.shape[1:])
    first = find_first_excess(got[call], want[call], tolerance)
    found = [*([first] if first else []), *find_excess(got[call], want[call], tolerance, _PLACES)]
    places = [Place(call=call, index=unravel(place, shape), got=have, want=must) for place, have, must in found]
    return (tuple(places[1:]), places[0]) if first else (tuple(places), None)
