"""Kernels that no trace of FlashInfer sees: matrix products of torch, and functions of SGLang that are named."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from .recorder import describe_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

    from .recorder import Recorder

__all__ = ["watch_functions", "watch_torch"]

_MOST_ARGUMENTS = 24


def watch_torch(recorder: Recorder) -> None:
    """Record the weights of torch's products and look-ups on a GPU, by shape; those inside compiled code are left alone."""
    import torch

    torch.nn.functional.linear = _watch(torch.nn.functional.linear, "linear", recorder)
    torch.nn.functional.embedding = _watch(torch.nn.functional.embedding, "embedding", recorder)
    torch.matmul = _watch(torch.matmul, "matmul", recorder)
    torch.bmm = _watch(torch.bmm, "bmm", recorder)
    torch.softmax = _watch_rows(torch.softmax, "softmax", recorder)


def watch_functions(module: ModuleType, *, names: Iterable[str], recorder: Recorder) -> None:
    """Record the calls of a module's plain functions; classes and compiled operators are left alone."""
    for name in names:
        function = getattr(module, name, None)
        if inspect.isfunction(function):
            setattr(module, name, _watch_function(function, f"{module.__name__}.{name}", recorder))


def _watch_function(function: Callable[..., Any], name: str, recorder: Recorder) -> Callable[..., Any]:
    import torch

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            given = [*((str(place), value) for place, value in enumerate(args)), *kwargs.items()]
            recorder.record_other(name, {"tensors": _describe_tensors(given[:_MOST_ARGUMENTS])})
        return function(*args, **kwargs)

    return watched


def _describe_tensors(arguments: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Describe tensors by element type and lengths; the first counts tokens, save in weights: `bfloat16[*, 16384]`."""
    import torch

    found = {}
    for name, value in arguments:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            lengths = [str(int(length)) for length in value.shape]
            if not isinstance(value, torch.nn.Parameter):
                lengths[:1] = "*"
            found[name] = f"{str(value.dtype).rpartition('.')[2]}[{', '.join(lengths)}]"
    return found


def _watch_rows(function: Callable[..., Any], name: str, recorder: Recorder) -> Callable[..., Any]:
    import torch

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and args and getattr(args[0], "is_cuda", False):
            recorder.record_other(f"torch.{name}", {"tensors": _describe_tensors([("input", args[0])])})
        return function(*args, **kwargs)

    return watched


def _watch(function: Callable[..., Any], name: str, recorder: Recorder) -> Callable[..., Any]:
    import torch

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and len(args) > 1 and getattr(args[1], "is_cuda", False):
            bias = (args[2] if len(args) > 2 else kwargs.get("bias")) if name == "linear" else None
            details = {"weight": list(args[1].shape), "dtype": str(args[1].dtype).rpartition(".")[2]}
            if name == "bmm":
                details["batch"] = describe_value(args[0])[1][0]  # type: ignore[index]
            recorder.record_other(f"torch.{name}", {**details, "bias": bias is not None})
        return function(*args, **kwargs)

    return watched
