"""The statistical test of kernels that draw: only what may be drawn, and as often as it should be.

A few rows are drawn from many times. The protocol with the runners:

1. the judge makes a plan (`choose_sample_rows`) and each runner, the reference's and the Solution's, makes the same
   inputs and repeats those rows (`repeat_rows`), so that one call draws `repeat` times from each of them;
2. the reference's runner also puts what its reference draws from into the arena (`catch_distribution`), once;
   where there is no such distribution, the reference's own draws take its place;
3. the judge compares: `judge_tokens` draws with the distribution, `judge_tokens_alike` or `judge_chains` draws with draws.

A draw of row r at repeat i stands at `r * repeat + i` in a call's output.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from fib_tools.model.definition import Definition

if TYPE_CHECKING:
    import torch

    _Test = tuple[str, torch.Tensor]

__all__ = [
    "DrawVerdict",
    "SamplePlan",
    "catch_distribution",
    "choose_sample_rows",
    "find_batched_inputs",
    "gather_draws",
    "judge_chains",
    "judge_tokens",
    "judge_tokens_alike",
    "repeat_rows",
]

DRAWS = 4096
"""Of each row."""
ROWS = 4
_BYTES = 1 << 29
"""Of the repeated rows of one call."""
_BINS = 32
_REMAINDERS = 8
_LEAST_EXPECTED = 5.0
"""Of a bin, so that its count scatters about normally; rarer ones are counted together."""
_DEVIATIONS = 6.0
_RARE = 12.0
"""Added to the bound: the tail of chi-squared is longer than that of the normal distribution."""
_FORBIDDEN = 0.001
"""Of the draws: a threshold that is found in float32 may keep one token that the reference drops, or the reverse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePlan:
    """Which rows are drawn from, and how often."""

    rows: tuple[int, ...]
    repeat: int
    """How often each row stands in one call."""
    calls: int

    @property
    def batch(self) -> int:
        """Rows of one call."""
        return len(self.rows) * self.repeat


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawVerdict:
    """What the test said of each row."""

    is_right: bool
    message: str
    """The first row that is wrong, or the one that came nearest to it."""
    shares: tuple[float, ...]
    """By row: the worst statistic as a share of its bound; above 1 is wrong."""


def choose_sample_rows(
    batch: int, row_bytes: int, *, seed: int = 0, draws: int = DRAWS, byte_budget: int = _BYTES
) -> SamplePlan:
    """Choose rows of a batch by a seed that only the judge knows, and cut their draws into calls that fit into memory.

    `row_bytes` is what the inputs of one row take.
    """
    rows = tuple(sorted(random.Random(seed).sample(range(batch), min(batch, ROWS))))  # noqa: S311  # not a secret key
    fits = max(1, byte_budget // max(1, row_bytes * len(rows)))
    calls = -(-draws // min(draws, fits))
    return SamplePlan(rows=rows, repeat=-(-draws // calls), calls=calls)


def find_batched_inputs(definition: Definition) -> tuple[str, ...]:
    """Name the inputs that have a row for each row of the first output: those whose first axis is the same."""
    shape = next(iter(definition.outputs.values())).shape
    axis = shape[0] if shape else None
    return tuple(name for name, spec in definition.inputs.items() if axis and spec.shape and spec.shape[0] == axis)


def repeat_rows(
    inputs: Mapping[str, Any], rows: Sequence[int], repeat: int, *, batched: Collection[str]
) -> dict[str, Any]:
    """Give the inputs of one call that draws `repeat` times from each of the rows; those not batched stay as they are."""
    import torch

    made = dict(inputs)
    for name in batched:
        value = inputs[name]
        chosen = torch.tensor(list(rows), device=value.device)
        made[name] = value.index_select(0, chosen).repeat_interleave(repeat, dim=0)
    return made


def gather_draws(outputs: torch.Tensor, plan: SamplePlan) -> torch.Tensor:
    """Turn the outputs of a plan's calls, `[calls, batch, *rest]`, into `[rows, draws, *rest]`."""
    parts = outputs.reshape(len(outputs), len(plan.rows), plan.repeat, *outputs.shape[2:])
    return parts.transpose(0, 1).flatten(1, 2)


def catch_distribution(run: Callable[..., Any], inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Find the probabilities, float64 `[rows, tokens]`, that a reference draws its tokens from, by watching it draw.

    None where it does not draw each row's token by one `torch.multinomial` over the tokens in order: then draws are
    compared with draws. To be called in the reference's runner, which has nothing else to do meanwhile.
    """
    import torch

    probabilities: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    draw = torch.multinomial

    def watch(probs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        drawn = draw(probs, *args, **kwargs)
        probabilities.append(probs.detach().double().reshape(-1, probs.shape[-1]))
        tokens.append(drawn.reshape(-1))
        return drawn

    with mock.patch.object(torch, "multinomial", watch):
        result = run(*inputs.values())
    first = result[0] if isinstance(result, (tuple, list)) else result
    if not tokens or len({part.shape[-1] for part in probabilities}) != 1:
        return None
    found, drawn = torch.cat(probabilities), torch.cat(tokens)
    if first.dim() != 1 or len(found) != len(first) or not torch.equal(drawn.to(first.dtype), first):
        return None
    return found / found.sum(dim=-1, keepdim=True)


def judge_tokens(draws: torch.Tensor, probs: torch.Tensor) -> DrawVerdict:
    """Compare draws `[rows, n]` with the probabilities `[rows, tokens]` that they should have.

    Chi-squared over bins of about equal weight, made in three ways (by weight, by neighbourhood, by remainder of the
    id), and the number of equal pairs, which shows a sampler that knows too few tokens; each at 6 deviations.
    """
    import torch

    weights = probs.double() / probs.double().sum(dim=-1, keepdim=True)
    rows, count = draws.shape
    size = weights.shape[-1]
    drawn = draws.long()
    inside = (drawn >= 0) & (drawn < size)
    drawn = drawn.clamp(0, size - 1)
    allowed = (weights.gather(-1, drawn) > 0) & inside
    forbidden = 1 - allowed.double().mean(dim=-1)
    times = torch.zeros_like(weights).scatter_add_(-1, drawn, allowed.double())
    tests = [("share of tokens that have probability 0", forbidden / _FORBIDDEN)]
    for name, bins in (*_bin_by_weight(weights), ("remainders of the id", _remainders(size, rows, weights.device))):
        counted, expected = (
            torch.zeros(rows, _BINS, dtype=torch.float64, device=weights.device).scatter_add_(-1, bins, part)
            for part in (times, weights * count)
        )
        tests += _compare_counts(f"chi-squared over {name}", counted, expected, torch.zeros_like(expected))
    tests.append(("number of equal pairs", _pair_share(times, weights, count)))
    return _conclude(tests, count)


def _bin_by_weight(weights: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    import torch

    order = weights.argsort(dim=-1, descending=True)
    reached = (weights.gather(-1, order).cumsum(dim=-1) * _BINS).long().clamp_(max=_BINS - 1)
    ranked = torch.empty_like(order).scatter_(-1, order, reached)
    nearby = (weights.cumsum(dim=-1) * _BINS).long().clamp_(max=_BINS - 1)
    return [("bins by weight", ranked), ("bins of neighbours", nearby)]


def _remainders(size: int, rows: int, device: torch.device) -> torch.Tensor:
    import torch

    return (torch.arange(size, device=device) % _BINS).expand(rows, size)


def _pair_share(times: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """Compare the equal pairs among independent draws with their expectation, in units of what is allowed.

    A pair is equal with probability s2 = sum p^2, and two pairs that share a draw both are with s3 = sum p^3.
    """
    pairs = (times * (times - 1)).sum(dim=-1) / 2
    square, cube = weights.square().sum(dim=-1), weights.pow(3).sum(dim=-1)
    expected = count * (count - 1) / 2 * square
    variance = expected * (1 - square) + count * (count - 1) * (count - 2) * (cube - square.square())
    return (pairs - expected).abs() / (_DEVIATIONS * variance.clamp(min=0.0).sqrt() + _RARE)


def judge_tokens_alike(first: torch.Tensor, second: torch.Tensor, size: int) -> DrawVerdict:
    """Compare two samples of tokens below `size`, `[rows, n]` and `[rows, m]`: bins of about equal weight, and remainders.

    The bins follow from the second sample, the reference's.
    """
    import torch

    outside = ((first < 0) | (first >= size)).double().mean(dim=-1)
    tests = [("share of ids that are no tokens", outside / _FORBIDDEN)]
    ours, theirs = (_count(part, size) for part in (first, second))
    weights = (theirs + 0.5) / (theirs + 0.5).sum(dim=-1, keepdim=True)
    rows = len(first)
    ways = (*_bin_by_weight(weights), ("remainders of the id", _remainders(size, rows, first.device)))
    for name, bins in ways[1:]:  # a bin by weight would be chosen by the very counts it is to judge
        counts = [
            torch.zeros(rows, _BINS, dtype=torch.float64, device=first.device).scatter_add_(-1, bins, part)
            for part in (ours, theirs)
        ]
        tests += _compare_samples(f"chi-squared over {name}", *counts)
    return _conclude(tests, first.shape[1])


def _count(tokens: torch.Tensor, size: int) -> torch.Tensor:
    import torch

    inside = ((tokens >= 0) & (tokens < size)).double()
    counts = torch.zeros(len(tokens), size, dtype=torch.float64, device=tokens.device)
    return counts.scatter_add_(-1, tokens.long().clamp(0, size - 1), inside)


def judge_chains(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    wanted: torch.Tensor | None = None,
    drafted: torch.Tensor | None = None,
) -> DrawVerdict:
    """Compare two samples of token chains, `[rows, n, length]` with -1 after the end: lengths and last tokens.

    `wanted`, bool `[rows, length, tokens]`, parts the tokens of each position in two that are told apart as well: those
    that the target gives more than the draft did are all that can follow a refusal. All but the last token of a chain
    must be the `drafted` ones, `[rows, length - 1]`. The second sample is the reference's.
    """
    tests = [("share of malformed chains", _broken_share(first, drafted) / _FORBIDDEN)]
    counts = [_count_chains(part, wanted) for part in (first, second)]
    tests += _compare_samples("chi-squared over lengths and last tokens", *counts)
    lengths = [part.unflatten(-1, (-1, 2 * _REMAINDERS)).sum(dim=-1) for part in counts]
    tests += _compare_samples("chi-squared over lengths", *lengths)
    return _conclude(tests, first.shape[1])


def _broken_share(chains: torch.Tensor, drafted: torch.Tensor | None) -> torch.Tensor:
    """Tell how many chains are empty, have holes, or begin otherwise than the draft."""
    import torch

    held = chains >= 0
    length = held.sum(dim=-1, keepdim=True)
    place = torch.arange(chains.shape[-1], device=chains.device)
    bad = (held != (place < length)).any(dim=-1) | (length.squeeze(-1) == 0) | (chains < -1).any(dim=-1)
    if drafted is not None:
        known = chains[..., :-1] == drafted.unsqueeze(1).to(chains.dtype)
        bad |= (~known & (place[:-1] < length - 1)).any(dim=-1)
    return bad.double().mean(dim=-1)


def _count_chains(chains: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
    """Count chains by length, kind of the last token, and its remainder."""
    import torch

    rows, _, longest = chains.shape
    length = (chains >= 0).sum(dim=-1)
    at = (length - 1).clamp(min=0)
    last = chains.gather(-1, at.unsqueeze(-1)).squeeze(-1).long().clamp(min=0)
    kind = torch.zeros_like(last)
    if wanted is not None:
        row = torch.arange(rows, device=chains.device).unsqueeze(-1)
        kind = wanted[row, at, last.clamp(max=wanted.shape[-1] - 1)].long()
    bins = (length * 2 + kind) * _REMAINDERS + last % _REMAINDERS
    total = 2 * _REMAINDERS * (longest + 1)
    counts = torch.zeros(rows, total, dtype=torch.float64, device=chains.device)
    return counts.scatter_add_(-1, bins, torch.ones_like(bins, dtype=torch.float64))


def _compare_samples(name: str, first: torch.Tensor, second: torch.Tensor) -> list[_Test]:
    """Compare counts with counts; the expectation of a bin is that of both together."""
    ours, theirs = first.sum(dim=-1, keepdim=True), second.sum(dim=-1, keepdim=True)
    part = ours / (ours + theirs).clamp(min=1.0)
    expected = (first + second) * part
    # a count is part of its own expectation, so their difference scatters less: expected * theirs / (ours + theirs)
    return _compare_counts(name, first, expected, -expected * part)


def _compare_counts(name: str, counted: torch.Tensor, expected: torch.Tensor, spread: torch.Tensor) -> list[_Test]:
    """Sum squared differences over their variance, `[rows, bins]`: for each row, and for all rows together.

    A count has the variance of its expectation; `spread` is what the expectation's own adds. Bins that are expected less
    than five times are taken together.
    """
    import torch

    rare = expected < _LEAST_EXPECTED
    off = counted - expected
    variance = (expected + spread).clamp(min=0.0)
    rest = [torch.where(rare, part, 0.0).sum(dim=-1) for part in (off, variance)]
    rest_share = rest[0].abs() / (_DEVIATIONS * rest[1].sqrt() + _RARE)
    total = torch.where(rare, 0.0, off.square() / variance.clamp(min=1e-9)).sum(dim=-1)
    degrees = ((~rare).sum(dim=-1) - 1).clamp(min=1).double()
    rows = torch.maximum(total / _bound(degrees), rest_share)
    together = total.sum() / _bound(degrees.sum())
    return [(name, rows), (f"{name}, all rows together,", together.expand_as(rows))]


def _bound(degrees: torch.Tensor) -> torch.Tensor:
    return degrees + _DEVIATIONS * (2 * degrees).sqrt() + _RARE


def _conclude(tests: Sequence[_Test], count: int) -> DrawVerdict:
    """Take the worst statistic of each row; one transfer."""
    import torch

    table = torch.stack([share for _, share in tests]).nan_to_num(nan=math.inf).T.tolist()
    worst = [max(range(len(tests)), key=line.__getitem__) for line in table]
    by_row = [line[at] for line, at in zip(table, worst, strict=True)]
    row = max(range(len(table)), key=by_row.__getitem__)
    state = "too much" if by_row[row] > 1 else "within bounds"
    name = tests[worst[row]][0]
    message = f"row {row} of {len(table)}, {count} draws: {name} at {by_row[row]:.2f} of its bound, {state}"
    return DrawVerdict(is_right=by_row[row] <= 1, message=message, shares=tuple(by_row))
