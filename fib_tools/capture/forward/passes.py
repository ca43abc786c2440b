"""Passes through a model that make the calls of the pass before: they are counted like that one, and hardly slowed down.

To pass through what watches takes microseconds at each call, more than to count it does. A generation makes thousands of
passes whose inputs have the same shapes, and whose calls are the same but for attention, which sees more keys each time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Noted, Watch

__all__ = ["Passes"]

_EVERY = 64
"""Passes of a kind after which one is watched again, lest others have come about."""
_GROWING = ("attention_mask",)
"""Inputs with an element for each token that is cached."""


@dataclass(slots=True)
class _Kind:
    """Passes whose inputs have the same shapes."""

    last: Noted = field(default_factory=Noted)
    """Of those that were watched."""
    passes: int = 0
    """Since that one."""
    is_settled: bool = False
    """Whether the last two that were watched made the same calls."""
    is_unlike: bool = False
    """Whether they ever made others after that, or attention is inside of what stands for all that it calls."""


class Passes:
    """The passes through one model, and what watches all but its attention, or attention that it calls of torch itself."""

    def __init__(self, watch: Watch, patches: Patches, direct: Patches) -> None:
        self._watch, self._patches, self._direct = watch, patches, direct
        self._kinds: dict[Hashable, _Kind] = {}

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have the calls of a model's forward watched, or those of its attention only, where the others are known."""
        watch = self._watch

        @wraps(original)  # generate() asks for its parameters
        def forward(*inputs: Any, **options: Any) -> Any:
            if watch.is_blind:
                return original(*inputs, **options)
            kind = self._kinds.setdefault(_tell_kind(inputs, options), _Kind())
            if kind.is_settled and kind.passes < _EVERY:
                self._patches.take_out()
                if kind.last.shared:
                    self._direct.take_out()
                else:
                    self._direct.put_in()
                kind.passes += 1
                return watch.call_known(kind.last, original, *inputs, **options)
            self._patches.put_in()
            self._direct.put_in()
            with watch.note_counts() as noted:
                result = original(*inputs, **options)
            self._settle(kind, noted)
            return result

        return forward

    def _settle(self, kind: _Kind, noted: Noted) -> None:
        """Take a pass that was watched for what those after it make, if the one before it made the same."""
        is_same = noted.counts == kind.last.counts
        if kind.is_settled and not is_same:
            self._watch.doubtful += kind.passes
        kind.is_unlike |= noted.has_hidden or (kind.is_settled and not is_same)
        kind.is_settled = is_same and not kind.is_unlike
        kind.last, kind.passes = noted, 0


def _tell_kind(inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Hashable:
    """Tell passes apart by what they are given, and the shapes of it."""
    kind: list[Any] = [*options]
    for name, value in (*enumerate(inputs), *options.items()):
        if hasattr(value, "untyped_storage"):
            kind.append(value.dim() if name in _GROWING else value.shape)
        else:
            kind.append(value if isinstance(value, (bool, int, str)) else type(value))
    return tuple(kind)
