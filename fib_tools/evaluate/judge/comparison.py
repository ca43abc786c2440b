"""The judge's comparison: every output of every call with the reference's, and what is wrong where it is.

>>> verdict = compare_outputs({"output": got}, {"output": want}, {"output": tolerance})  # tensors [calls, *shape]
>>> verdict.is_right, verdict.detail
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.evaluate.judge.measures import Measure, find_excess, find_first_excess, measure_calls
from fib_tools.model.evidence import OutputErrors
from fib_tools.op_types.tolerance import Tolerance

if TYPE_CHECKING:
    import torch

__all__ = [
    "OutputVerdict",
    "Place",
    "Unwritten",
    "Verdict",
    "compare_call_outputs",
    "compare_outputs",
    "compare_parts",
    "find_unwritten",
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
_POISON_BYTES = 4
"""So many bytes of poison in a row are no chance: one byte of it is a code that kernels write."""
_CHUNK = 1 << 27
"""Values that `find_unwritten` and the matching of experts look at together."""


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
    ours.update(_align_choices(got, want, tolerances))
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
    wrong = {call: _judge(measure, width, tolerance) for call, measure in enumerate(calls)}
    wrong = {call: reasons for call, reasons in wrong.items() if reasons}
    stray = _find_stray(wrong, calls, width, tolerance)
    wrong = {call: reasons for call, reasons in wrong.items() if call != stray}
    together = _pool(calls)
    judged = _pool([measure for call, measure in enumerate(calls) if call != stray])
    reasons = _explain(wrong, len(calls)) or (_judge(judged, 0, tolerance) if len(calls) > 1 else ())
    blamed = tuple(wrong) or tuple(call for call in range(len(calls)) if call != stray)
    places, first = _find_places(got, want, tolerance, calls, blamed) if reasons else ((), None)
    return OutputVerdict(
        errors=_to_errors(together, tolerance),
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
    places = [Place(call=call, index=_unravel(place, shape), got=have, want=must) for place, have, must in found]
    return (tuple(places[1:]), places[0]) if first else (tuple(places), None)


def _unravel(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    index: list[int] = []
    for length in reversed(shape):
        place, at = divmod(place, length)
        index.append(at)
    return tuple(reversed(index))


def _align_choices(
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Unwritten:
    """Values that still hold what the judge filled the memory with."""

    calls: tuple[int, ...]
    values: int
    """Of all calls."""
    call: int
    index: tuple[int, ...]
    """The first of them."""

    def __str__(self) -> str:
        where = f"call {self.call} {list(self.index)}"
        return f"{self.values} values of {len(self.calls)} calls were never written, the first at {where}"


def find_unwritten(got: torch.Tensor, want: torch.Tensor, poison: bytes) -> Unwritten | None:
    """Find values of `[calls, *shape]` whose bytes are still the poison, where the reference's are not.

    The poison is a pattern of 1, 2, 4 or 8 bytes that begins anew with each call's output. A value of one byte counts
    only in a run of four, since any byte is a code that a kernel may write.
    """
    import torch

    calls, values = len(got), math.prod(got.shape[1:])
    if not calls or not values:
        return None
    pattern = _spread(poison, got, values)
    bits = _integers(got.dtype.itemsize)
    least = min(values, max(1, _POISON_BYTES // got.dtype.itemsize))
    step = max(1, _CHUNK // values)
    parts = []
    for at in range(0, calls, step):
        have, must = (_bits(side[at : at + step], bits) for side in (got, want))
        held = (have == pattern) & (must != pattern)
        run = held[:, least - 1 :].clone()
        for shift in range(1, least):
            run &= held[:, least - 1 - shift : values - shift]
        parts.append(torch.stack([held.sum(dim=-1), run.any(dim=-1), run.to(torch.int8).argmax(dim=-1)], dim=-1))
    table = torch.cat(parts).tolist()
    bad = {call: line for call, line in enumerate(table) if line[1]}
    if not bad:
        return None
    first = next(iter(bad))
    index = _unravel(bad[first][2], tuple(got.shape[1:]))
    return Unwritten(calls=tuple(bad), values=sum(line[0] for line in bad.values()), call=first, index=index)


def _integers(size: int) -> torch.dtype:
    import torch

    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]


def _bits(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return tensor.view(kind).reshape(len(tensor), -1)


def _spread(poison: bytes, like: torch.Tensor, values: int) -> torch.Tensor:
    """Give the poisoned values of one call as integers of the same width."""
    import torch

    size = like.dtype.itemsize
    period = max(size, len(poison))
    if period % size or period % len(poison):
        raise ValueError(f"a pattern of {len(poison)} bytes does not fit values of {size}")
    unit = torch.tensor(list(poison * (period // len(poison))), dtype=torch.uint8, device=like.device)
    unit = unit.view(_integers(size))
    return unit.repeat(-(-values // len(unit)))[:values]
