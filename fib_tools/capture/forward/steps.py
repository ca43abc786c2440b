"""Each operation that torch executes, as a step with its bytes and FLOPs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.recorder import Recorder, name_inputs

if TYPE_CHECKING:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["watch_steps"]

_NOT_COMPUTED = ("empty", "_unsafe_view", "detach", "alias", "lift_fresh", "_local_scalar_dense", "set_")
"""Neither read nor write what tensors hold."""
_TAKING = frozenset({"embedding", "gather", "index", "index_select"})


def watch_steps(recorder: Recorder) -> TorchDispatchMode:
    """Make a mode under which every operation becomes a step of the span that is open."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Steps(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if not recorder.is_on or not _computes(func):
                result = func(*args, **(kwargs or {}))
                recorder.note_memory(_list_tensors(result))
                return result
            start = time.perf_counter_ns()
            result = func(*args, **(kwargs or {}))
            if recorder.wait is not None:
                recorder.wait()
            tensors, outputs = _list_tensors(args), _list_tensors(result)
            recorder.add_step(
                str(func.overloadpacket).removeprefix("aten."),
                start,
                name_inputs(tensors, {}),
                result,
                op_type=str(func),
                bytes=_count_bytes(func, tensors, outputs),
                flops=_count_flops(func, args, kwargs or {}, result, tensors, flop_registry),
            )
            recorder.note_memory(outputs)
            return result

    return Steps()  # type: ignore[no-untyped-call]  # torch's own constructor has no annotations


def _list_tensors(value: Any) -> list[torch.Tensor]:
    import torch

    return [each for each in _flatten(value) if isinstance(each, torch.Tensor)]


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [each for item in value for each in _flatten(item)]
    return [value]


def _computes(func: Any) -> bool:
    """Tell whether an operation reads or writes what tensors hold; views only look at it in another way."""
    schema = func._schema  # noqa: SLF001  # torch has no public name for it
    if schema.name.partition("::")[2].startswith(_NOT_COMPUTED):
        return False
    aliases = [result.alias_info for result in schema.returns]
    return any(alias is None or alias.is_write for alias in aliases)


def _count_bytes(func: Any, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> int:
    """Count what is read and written: of what was expanded, what is really there; of a table, the rows that are taken."""
    written = sum(tensor.numel() * tensor.element_size() for tensor in outputs)
    read = [min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in inputs]
    if read and func.overloadpacket.__name__ in _TAKING:
        read[0] = min(read[0], written)
    return sum(read) + written


def _count_flops(func: Any, args: Any, kwargs: Any, result: Any, tensors: Any, registry: Any) -> int:
    """Count by torch's own formulas; an operation on single elements is one for each."""
    import torch

    formula = registry.get(func.overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=result))
    if func.overloadpacket.__name__ == "_grouped_mm":
        rows, weights = tensors[:2]
        return int(2 * rows.numel() * weights.shape[-1])
    if torch.Tag.pointwise in func.tags:
        return max((tensor.numel() for tensor in tensors if tensor.is_floating_point()), default=0)
    is_reduction = func.overloadpacket.__name__ in {"sum", "mean", "amax", "amin", "max", "prod", "cumsum"}
    return max((tensor.numel() for tensor in tensors), default=0) if is_reduction else 0
