"""FlashInfer's level-10 dumps without the values of large tensors: shapes, structure, and how large the numbers are.

FlashInfer writes every tensor whole, the KV cache and all experts' weights with each call: gigabytes that a Workload has
no use for. Of a large tensor of floating numbers it needs the shape, and their scale.

    metadata.jsonl        as FlashInfer writes it, with "fib_scales": {"arg_1": 0.981}, root mean squares
    inputs.safetensors    indices, masks, and what is small
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
from collections import Counter
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from .recorder import Recorder

__all__ = ["hook_light_dumps"]

_SMALL_BYTES = 1 << 20
"""Weights of 8 experts for 32,768 tokens are just small."""
_STRUCTURE = ("int64", "int32", "int16", "bool")
"""Bytes are packed numbers."""
_ROWS = 4096
"""Rows that a scale is taken over, the first ones; those of a cache that nothing was written to are left out."""
_MOST_DEEP = 8


def hook_light_dumps(module: ModuleType, *, recorder: Recorder) -> None:
    """Have FlashInfer's dumps written by this module; of calls that a CUDA graph captures, by FlashInfer as before.

    At this level FlashInfer also logs statistics of every tensor, which takes longer than the calls: that is left out.
    """
    inputs, outputs = (getattr(module, name, None) for name in ("_dump_function_inputs", "_dump_function_outputs"))
    if inputs is None or outputs is None:  # a version without level 10
        return
    writer = _Writer(Path(module._DUMP_DIR), recorder)  # noqa: SLF001  # there is no public place

    @functools.wraps(inputs)
    def dump_inputs(
        func: Any, func_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], self_id: int | None = None
    ) -> Any:
        if module._is_current_stream_capturing():  # noqa: SLF001
            return inputs(func, func_name, args, kwargs, self_id=self_id)
        if not module._should_dump_function(func_name):  # noqa: SLF001
            return None
        return writer.begin(func, func_name, args, kwargs, self_id)

    @functools.wraps(outputs)
    def dump_outputs(dump_dir: str, result: Any) -> None:
        if not writer.end(dump_dir, result):
            outputs(dump_dir, result)

    module._dump_function_inputs = dump_inputs  # type: ignore[attr-defined]  # noqa: SLF001
    module._dump_function_outputs = dump_outputs  # type: ignore[attr-defined]  # noqa: SLF001
    module._log_function_inputs = _log_nothing  # type: ignore[attr-defined]  # noqa: SLF001
    module._log_function_outputs = _log_nothing  # type: ignore[attr-defined]  # noqa: SLF001


def _log_nothing(*_: Any, **__: Any) -> None:
    """Stand in the place of FlashInfer's log."""


class _Writer:
    """The one of its process."""

    def __init__(self, folder: Path, recorder: Recorder) -> None:
        self._folder = folder
        self._recorder = recorder
        self._calls: Counter[str] = Counter()
        self._open: dict[str, dict[str, Any]] = {}

    def begin(
        self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], self_id: int | None
    ) -> str | None:
        """Write down what a call is given; None where the disk refuses."""
        self._calls[name] += 1
        time = f"{datetime.now(timezone.utc):%Y%m%d_%H%M%S_%f}"[:-3]
        folder = self._folder / f"{time}_pid{os.getpid()}_{name}_call{self._calls[name]:04d}"
        given = {
            **{f"arg_{place}": value for place, value in enumerate(args)},
            **{f"kwarg_{key}": value for key, value in kwargs.items()},
        }
        seen = _Seen()
        values = {key: seen.describe(value, key) for key, value in given.items()}
        document = {
            "function_name": name,
            "module": getattr(func, "__module__", ""),
            "process_id": os.getpid(),
            "function_signature": str(inspect.signature(func)),
            "input_metadata": {key: value for key, value in values.items() if key not in seen.details},
            "tensor_details": seen.details,
            "fib_scales": seen.scales,
            "execution_status": "inputs_saved",
            **({} if self_id is None else {"self_id": self_id}),
        }
        try:
            folder.mkdir(parents=True)
            _save(folder / "inputs.safetensors", seen.kept)
            _append(folder, document)
        except OSError as error:
            self._recorder.note("fault", {"step": f"the dump of {name}", "error": str(error)})
            return None
        self._open[str(folder)] = document
        return str(folder)

    def end(self, folder: str, result: Any) -> bool:
        """Write down that a call came to its end, and with what shapes; False for one that is not ours."""
        document = self._open.pop(folder, None)
        if document is None:
            return False
        seen = _Seen(values=False)
        results = result if isinstance(result, tuple) else (result,)
        for place, value in enumerate(results):
            seen.describe(value, f"result_{place}" if isinstance(result, tuple) else "result")
        details = {**document["tensor_details"], **seen.details}
        try:
            _append(Path(folder), {**document, "tensor_details": details, "execution_status": "completed"})
        except OSError as error:
            self._recorder.note("fault", {"step": f"the end of {folder}", "error": str(error)})
        return True


class _Seen:
    """What is found in the arguments of one call."""

    def __init__(self, *, values: bool = True) -> None:
        self._values = values
        self.details: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, Any] = {}
        self.scales: dict[str, float] = {}

    def describe(self, value: Any, key: str, depth: int = 0) -> Any:
        """Describe a value as FlashInfer does; a tensor is noted under its key."""
        import torch

        if isinstance(value, torch.Tensor):
            return self._note(value, key)
        if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
            return value
        if isinstance(value, (list, tuple)) and depth < _MOST_DEEP:
            items = [self.describe(item, f"{key}__{place}", depth + 1) for place, item in enumerate(value)]
            return {"type": type(value).__name__, "length": len(value), "items": items, "truncated": False}
        if isinstance(value, torch.dtype):
            return {"type": "torch.dtype", "value": str(value)}
        if isinstance(value, Enum):
            return {"type": "enum", "value": value.value if isinstance(value.value, (int, str)) else None}
        return {"type": type(value).__name__}

    def _note(self, tensor: Any, key: str) -> dict[str, Any]:
        self.details[key] = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype),
            "stride": list(tensor.stride()),
            "device": str(tensor.device),
        }
        if self._values:
            if tensor.nbytes <= _SMALL_BYTES or str(tensor.dtype).removeprefix("torch.") in _STRUCTURE:
                self.kept[key] = tensor.detach().cpu().contiguous()
            elif tensor.is_floating_point() and (scale := _measure(tensor)) is not None:
                self.scales[key] = scale
        return {"type": "torch.Tensor", "tensor_key": key}


def _measure(tensor: Any) -> float | None:
    """Take the root mean square over the first rows that hold anything."""
    rows = tensor.detach()[:_ROWS].float().flatten(1) if tensor.dim() > 1 else tensor.detach()[:_ROWS].float()[:, None]
    squares = rows.square().mean(dim=1)
    written = squares > 0
    scale = float((squares.sum() / written.sum()).sqrt())
    return scale if math.isfinite(scale) else None


def _save(path: Path, tensors: dict[str, Any]) -> None:
    if tensors:
        from safetensors.torch import save_file

        save_file(tensors, str(path))


def _append(folder: Path, document: Mapping[str, Any]) -> None:
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(document) + "\n")
