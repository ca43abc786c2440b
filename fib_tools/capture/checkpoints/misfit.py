"""Which of many stored tensors is the one that keeps a parameter from being made.

transformers can also turn a model's parameters back into a release's tensors, to save them.
Run on the meta device, that says which names and shapes a release should have had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.capture.checkpoints.configs import REFUSALS
from fib_tools.capture.checkpoints.stored import StoredTensor

__all__ = ["describe_misfit"]

_NAMED = 5


def describe_misfit(target: str, sources: Mapping[str, StoredTensor], model: Any) -> str:
    """Name what is missing or misshapen among the tensors of a parameter; all of them if nothing can be told."""
    expected = _list_expected(target, model)
    if expected.keys() & sources.keys():
        missing = [f"{name!r} {shape} is missing" for name, shape in expected.items() if name not in sources]
        other = [
            f"{name!r} {stored.shape} should be {expected[name]}"
            for name, stored in sources.items()
            if name in expected and stored.shape != expected[name]
        ]
        extra = [f"{name!r} is too much" for name in sources if name not in expected]
        if found := [*missing, *other, *extra]:
            return _join(found)
    return _join([f"{name!r} {stored.shape}" for name, stored in sources.items()])


def _list_expected(target: str, model: Any) -> dict[str, tuple[int, ...]]:
    """Turn one parameter back into the tensors of a release; nothing if it is made together with others."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        released = revert_weight_conversion(model, {target: model.state_dict()[target]})
    except REFUSALS:
        return {}
    return {name: tuple(value.shape) for name, value in released.items()}


def _join(named: list[str]) -> str:
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
