"""Passes through a model that make the calls of the pass before: they are counted like that one, and hardly slowed down.

To pass through what watches takes microseconds at each call, more than to count it does. A generation makes thousands of
passes whose inputs have the same shapes, and whose calls are the same but for attention, which sees more keys each time.
That a pass computed more than was seen before, such as what happens every fourth time, is told by a witness.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Noted, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["Passes", "Witness", "find_witness"]

Witness = Callable[[], int]
"""A number that grows with all that is computed: passes that make the same calls add the same to it."""

_EVERY = 64
"""Passes of a kind after which one is watched again, lest others have come about."""
_MASK = "attention_mask"
"""An input with an element for each token that is cached."""


def find_witness(model: torch.nn.Module) -> Witness | None:
    """Count what GPUs allocate; None where a model is on none, whose passes are all to be watched."""
    import torch

    devices = sorted({each.device.index for each in model.parameters() if each.is_cuda})

    def count() -> int:
        stats = (torch.cuda.memory_stats_as_nested_dict(device) for device in devices)
        return sum(each["allocation"]["all"]["allocated"] for each in stats)

    return count if devices else None


@dataclass(slots=True)
class _Kind:
    """Passes whose inputs have the same shapes."""

    last: Noted = field(default_factory=Noted)
    """Of those that were watched."""
    work: int = 0
    """What that one added to the witness."""
    passes: int = 0
    """Since that one."""
    odd: int | None = None
    """What the last of those added, if something else."""
    is_settled: bool = False
    """Whether the last two that were watched made the same calls."""
    is_unlike: bool = False
    """Whether any were counted that may have made others."""


class Passes:
    """The passes through one model; what watches its attention, attention that it calls of torch itself, and all else."""

    def __init__(self, watch: Watch, attention: Patches, direct: Patches, others: Patches, witness: Witness) -> None:
        self._watch, self._attention, self._direct, self._others = watch, attention, direct, others
        self._witness = witness
        self._kinds: dict[Hashable, _Kind] = {}

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have the calls of a model's forward watched, or those of its attention only, where the others are known."""

        @wraps(original)  # generate() asks for its parameters
        def forward(*inputs: Any, **options: Any) -> Any:
            if self._watch.is_blind:
                return original(*inputs, **options)
            kind = self._kinds.setdefault(_tell_kind(inputs, options), _Kind())
            is_known = kind.is_settled and kind.odd is None and kind.passes < _EVERY
            return (self._count if is_known else self._look)(kind, original, inputs, options)

        return forward

    def _count(self, kind: _Kind, original: Callable[..., Any], inputs: Any, options: Any) -> Any:
        """Make a pass, and count it like the last that was watched."""
        self._others.take_out()
        leaders = [module for module, calls in kind.last.shared.items() if calls]
        for patches in (self._attention, self._direct):
            (patches.take_out if leaders else patches.put_in)()
        before = self._witness()
        with Patches() as leading:
            for module in leaders:
                leading.wrap(module, "forward", self._lead)
            result = self._watch.call_known(kind.last, original, *inputs, **options)
        work = self._witness() - before
        kind.passes += 1
        if self._watch.grown != kind.last.growing:  # attention of other modules, or not in their forward
            kind.is_settled, kind.is_unlike = False, True
            self._watch.doubtful += 1
        elif work != kind.work:
            kind.odd = work
            self._watch.doubtful += 1
        return result

    def _lead(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have the attention of one module watched, where that of all others is not."""

        @wraps(original)
        def forward(*inputs: Any, **options: Any) -> Any:
            self._attention.put_in()
            try:
                return original(*inputs, **options)
            finally:
                self._attention.take_out()

        return forward

    def _look(self, kind: _Kind, original: Callable[..., Any], inputs: Any, options: Any) -> Any:
        """Make a pass and watch all of it."""
        for patches in (self._attention, self._direct, self._others):
            patches.put_in()
        before = self._witness()
        with self._watch.note_counts() as noted:
            result = original(*inputs, **options)
        self._settle(kind, noted, self._witness() - before, is_even=_is_even(noted, inputs, options))
        return result

    def _settle(self, kind: _Kind, noted: Noted, work: int, *, is_even: bool) -> None:
        """Take a pass that was watched for what those after it make, if the one before it made the same."""
        last = kind.last
        is_same = (noted.counts, noted.growing, noted.shared) == (last.counts, last.growing, last.shared)
        if is_same and kind.odd == work:  # attention has come to need more memory, nothing else
            self._watch.doubtful -= 1
        elif kind.odd is not None:
            kind.is_unlike = True
        elif kind.is_settled and not is_same:
            self._watch.doubtful += kind.passes
            kind.is_unlike = True
        is_told = work > 0  # an allocator that keeps no count sees nothing
        kind.is_settled = is_same and is_even and is_told and not kind.is_unlike and not noted.has_hidden
        kind.last, kind.work, kind.passes, kind.odd = noted, work, 0, None


def _is_even(noted: Noted, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Tell whether products took all tokens, or one of each sequence: those of experts, told apart, take now some, now others."""
    given = next((each for each in (*inputs, *options.values()) if hasattr(each, "untyped_storage")), None)
    if given is None or not given.dim():
        return False
    tokens = given.numel() // (given.shape[-1] if given.is_floating_point() else 1)
    return all(rows % tokens == 0 or rows == given.shape[0] for rows in noted.rows)


def _tell_kind(inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Hashable:
    """Tell passes apart by what they are given, and the shapes of it."""
    kind: list[Any] = [*options]
    for name, value in (*enumerate(inputs), *options.items()):
        if hasattr(value, "untyped_storage"):
            kind.append(value.dim() if name == _MASK else value.shape)
        else:
            kind.append(value if isinstance(value, (bool, int, str)) else type(value))
    return tuple(kind)
