"""Which Definitions of a dataset a call of a forward is one of, and what it says as their Workload."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fib_tools.capture.collection.matching import Match, Target
from fib_tools.capture.forward.attention import repage
from fib_tools.capture.forward.call import Call

if TYPE_CHECKING:
    import torch

__all__ = ["match_call"]

_CLOSE = 1e-6
_DECIDED_LATER = frozenset({"page_size", "sm_scale"})
"""Parameters that a forward does not decide: a serving engine keeps pages as it likes, and the scale is an input."""


def match_call(call: Call, targets: Sequence[Target]) -> list[Match]:
    """Find the Definitions that a call is one of: one, or for decode one for each page size; none if there is none."""
    return [
        _fit(call, target) for target in targets if target.kernel == call.kernel and _is_same(call, target.parameters)
    ]


def _is_same(call: Call, parameters: Mapping[str, Any]) -> bool:
    """Tell whether all that the call shows is as the Definition has it; what one of them leaves open fits."""
    return all(
        _agree(value, parameters[name])
        for name, value in call.parameters.items()
        if name in parameters and name not in _DECIDED_LATER
    )


def _agree(have: Any, want: Any) -> bool:
    if isinstance(have, float) or isinstance(want, float):
        return want is not None and math.isclose(have, want, rel_tol=_CLOSE)
    return bool(have == want)


def _fit(call: Call, target: Target) -> Match:
    definition, page_size = target.definition, target.parameters.get("page_size")
    paged = repage(call, int(page_size)) if page_size and "page_size" in call.parameters else call
    kept = {name: values for name, values in paged.given.items() if name in definition.inputs}
    return Match(
        target=target,
        axes={name: paged.axes[name] for name in definition.var_axes},
        tensors={name: _to_tensor(values, definition.inputs[name].dtype.value) for name, values in kept.items()},
        scalars={name: paged.scalars[name] for name, spec in definition.inputs.items() if spec.shape is None},
    )


def _to_tensor(values: Sequence[float], dtype: str) -> torch.Tensor:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    return torch.tensor(values, dtype=kind)
