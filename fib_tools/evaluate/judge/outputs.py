"""The outputs of one Workload's calls, the reference's and a Solution's, and which of them are right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.comparison import Verdict, compare_outputs, compare_parts
from fib_tools.evaluate.judge.device import Device
from fib_tools.evaluate.judge.refusal import RefusedError
from fib_tools.evaluate.judge.scene import Batch
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.evaluate.judge.trial import Trial
from fib_tools.evaluate.judge.unwritten import find_unwritten
from fib_tools.model.definition import Definition
from fib_tools.model.trace import EvaluationStatus
from fib_tools.op_types.tolerance import Tolerance

if TYPE_CHECKING:
    import torch

__all__ = ["Copy", "Outputs", "count_same", "has_stale", "join_calls", "rehearse_comparisons"]

_KEPT_SHARE = 16
"""Outputs that were found right are kept while they take at most this part of the free memory, all together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """Outputs of the reference that were put aside."""

    memory: torch.Tensor


class Outputs:
    """Compares what the Solution that has its turn left in its memory with what the reference left in its own."""

    def __init__(
        self, device: Device, tolerances: Mapping[str, Tolerance], *, want: Arena, got: Arena, bytes_used: int
    ) -> None:
        """`bytes_used` of the memories hold outputs of the Workload's own calls."""
        self._device, self._tolerances, self._bytes = device, tolerances, bytes_used
        self.want, self.got = want, got
        self._right: dict[int, dict[str, torch.Tensor]] = {}
        """Outputs of the timed calls that were found right, by trial."""

    def poison(self, size: int | None = None) -> int:
        """Fill a Solution's memory, or `size` bytes of it, with a byte, and give the byte."""
        return self.got.poison(self._bytes if size is None else size)

    def forget(self, trial: Trial) -> None:
        """Forget which outputs of a Solution are right."""
        self._right.pop(id(trial), None)

    def compare_checks(self, trial: Trial, checks: Sequence[Batch], *, poison: int) -> None:
        """Compare some batches at once: launching the kernels that measure errors takes longer than they do.

        Raises:
            RefusedError: an output is wrong, or was not written.
        """
        counts = [len(batch.slots) for batch in checks]
        ours, theirs = (_slots(checks[0], arena, 0, sum(counts)) for arena in (self.got, self.want))
        verdicts = compare_parts(ours, theirs, self._tolerances, counts)
        with _name_stale(ours, theirs):
            for number, (batch, verdict) in enumerate(zip(checks, verdicts, strict=True)):
                name = str(batch.staging.message["distribution"])
                rule = "wrong-distribution" if number else "wrong-values"
                calls = slice(batch.slots[0], batch.slots[-1] + 1)
                pair = [{output: value[calls] for output, value in side.items()} for side in (ours, theirs)]
                try:
                    _take_verdict(trial, verdict, *pair, poison=poison, rule=rule)
                except RefusedError as error:
                    if number == 0:
                        raise
                    raise error.at(f"on {name} inputs") from error
                trial.distributions.append(name)

    def compare(self, trial: Trial, batch: Batch, want: Copy, *, poison: int, rule: str) -> None:
        """Compare the outputs of a batch with a copy of the reference's.

        Raises:
            RefusedError: one is wrong, or was not written.
        """
        first, count = batch.slots[0], len(batch.slots)
        ours, theirs = (_slots(batch, memory, first, count) for memory in (self.got, want))
        verdict = compare_outputs(ours, theirs, self._tolerances)
        _take_verdict(trial, verdict, ours, theirs, poison=poison, rule=rule)

    def compare_timed(self, trial: Trial, batch: Batch, *, poison: int) -> None:
        """Compare the outputs of timed calls; the bits that were found right when these calls were made before are right.

        Most kernels give the same bits each time, and to see that takes a tenth of the time of measuring errors.

        Raises:
            RefusedError: one is wrong, or was not written.
        """
        got = _slots(batch, self.got, batch.slots[0], len(batch.slots))
        known = self._right.get(id(trial), {})
        same = count_same(got, known)
        trial.calls += same
        if same == len(batch.slots):
            return
        self.forget(trial)
        kept = sum(map(_count_bytes, self._right.values())) + _count_bytes(got)
        keeps = kept <= self._device.free_bytes // _KEPT_SHARE
        # what is kept is what is compared: the memory itself is in a process's hands that is not trusted
        left = {name: value[same:].clone() if keeps else value[same:] for name, value in got.items()}
        rest = batch.part(same, len(batch.slots))
        theirs = _slots(rest, self.want, rest.slots[0], len(rest.slots))
        verdict = compare_outputs(left, theirs, self._tolerances)
        with _name_stale(left, theirs):
            _take_verdict(trial, verdict, left, theirs, poison=poison, rule="wrong-values")
        if keeps:
            self._right[id(trial)] = join_calls(known, left) if same else left


def rehearse_comparisons(device: Device, definition: Definition, tolerances: Mapping[str, Tolerance]) -> None:
    """Compare a few zeros: a GPU loads its kernels when they are first used, which takes a third of a second for all."""
    import torch

    layout = SlotLayout.of(definition, dict.fromkeys(definition.var_axes, 1))
    zeros = layout.stack(torch.zeros(2 * layout.slot_bytes, dtype=torch.uint8, device=device.kind), 2)
    compare_parts(zeros, zeros, tolerances, [1, 1])
    count_same(zeros, zeros)


def _take_verdict(
    trial: Trial,
    verdict: Verdict,
    ours: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    *,
    poison: int,
    rule: str,
) -> None:
    """Note the errors of some calls.

    Raises:
        RefusedError: an output is wrong, or was not written.
    """
    trial.calls += len(next(iter(ours.values()), ()))
    trial.take_errors(verdict.errors)
    if verdict.is_right:
        return
    for name in ours:
        missing = find_unwritten(ours[name], theirs[name], bytes([poison]))
        if missing is not None:
            raise RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, f"{name}: {missing}", rule="unwritten")
    raise RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, verdict.detail, rule=rule)


@contextmanager
def _name_stale(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Say of a wrong output, if that is why, that a call gave another's.

    Raises:
        RefusedError: the block raised one.
    """
    try:
        yield
    except RefusedError as error:
        if error.refusal.rule == "unwritten" or not has_stale(ours, theirs):
            raise
        said = "two calls gave the same outputs, bit for bit, though the contents of their inputs differ"
        raise error.at(said, rule="stale-result") from error


def _slots(batch: Batch, memory: Arena | Copy, first: int, count: int) -> dict[str, torch.Tensor]:
    stacked = batch.staging.layout.stack(memory.memory, first + count)
    return {name: value[first:] for name, value in stacked.items()}


def count_same(got: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor]) -> int:
    """Count the calls, from the first on, of which outputs are known; none, if a single bit differs."""
    import torch

    count = min((min(len(value), len(got[name])) for name, value in known.items()), default=0)
    same = all(torch.equal(_bits(got[name][:count]), _bits(value[:count])) for name, value in known.items())
    return count if same else 0


def has_stale(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether two calls have the same outputs where the reference's differ; one value throughout tells nothing."""
    calls = range(max(map(len, ours.values()), default=0))
    mine, wanted = (
        [{name: value[call, None] for name, value in side.items()} for call in calls] for side in (ours, theirs)
    )
    return any(
        count_same(mine[one], mine[other]) and not count_same(wanted[one], wanted[other]) and _varies(mine[one])
        for one, other in itertools.combinations(calls, 2)
    )


def _varies(outputs: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether an output has more than one value."""
    flat = [_bits(value).flatten() for value in outputs.values()]
    return any(bool((value != value[:1]).any()) for value in flat)


def join_calls(known: Mapping[str, torch.Tensor], left: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the outputs of further calls behind those that are known."""
    import torch

    return {name: torch.cat([_bits(known[name]), _bits(value)]).view(value.dtype) for name, value in left.items()}


def _count_bytes(outputs: Mapping[str, torch.Tensor]) -> int:
    return sum(value.nbytes for value in outputs.values())


def _bits(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])
