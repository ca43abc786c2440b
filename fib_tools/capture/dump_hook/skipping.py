"""Calls that are traced and do not run: their result has the right shape and holds zeros.

Some kernels take minutes to compile. A dump needs their Definition only, and FlashInfer writes it before the call.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import ModuleType

    from .recorder import Recorder

__all__ = ["hook_decorator", "make_result"]

_RETURN_LISTS = frozenset({"cutlass_fused_moe"})
"""Functions that return a list of one tensor."""
_OUT_ARGUMENTS = ("out", "output")
_DUMPS = 10
"""FlashInfer's log level at which it writes calls down."""
_DTYPE_ARGUMENTS = ("out_dtype", "output_dtype")


def hook_decorator(module: ModuleType, *, names: Collection[str], recorder: Recorder) -> None:
    """Have FlashInfer's decorator put a substitute in the place of the functions of these names."""
    if not names:
        return
    original = module._attach_fi_trace  # noqa: SLF001  # there is no public place

    @functools.wraps(original)
    def attach(wrapped: Any, function: Any, trace_template: Any = None) -> Any:
        name = getattr(function, "__qualname__", "")
        if trace_template is not None and name in names:
            recorder.note("skipped", {"function": name})
            wrapped = _substitute(module, wrapped, function, trace_template)
        return original(wrapped, function, trace_template=trace_template)

    module._attach_fi_trace = attach  # type: ignore[attr-defined]  # noqa: SLF001


def _substitute(module: ModuleType, wrapped: Any, function: Callable[..., Any], template: Any) -> Callable[..., Any]:
    import inspect  # only where something is skipped

    signature = inspect.signature(function)

    @functools.wraps(wrapped)
    def substitute(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        folder = None
        if module._API_LOG_LEVEL >= _DUMPS:  # noqa: SLF001  # there is no public place
            folder = module._dump_function_inputs(function, function.__name__, args, kwargs)  # noqa: SLF001
        result = make_result(template, dict(bound.arguments), function.__qualname__)
        if folder:
            module._dump_function_outputs(folder, result)  # noqa: SLF001
        return result

    return substitute


def make_result(template: Any, arguments: dict[str, Any], name: str) -> Any:
    """Make the result of a call that does not run: zeros, in the caller's own buffer if it gave one."""
    for argument in _OUT_ARGUMENTS:
        given: Any = arguments.get(argument)
        if hasattr(given, "zero_"):
            given.zero_()
            return [given] if name in _RETURN_LISTS else given
    if not hasattr(template, "outputs"):  # a function that chooses the template by the arguments
        template = template(save_dir=None, name=None, **arguments)
    results = [_make_output(template, spec, arguments) for spec in template.outputs.values() if not spec.optional]
    if name in _RETURN_LISTS:
        return results
    return results[0] if len(results) == 1 else tuple(results)


def _make_output(template: Any, spec: Any, arguments: dict[str, Any]) -> Any:
    import torch

    axes, example = _read_axes(template, arguments)
    shape = [axes[name] for name in spec.dim_names]
    return torch.zeros(shape, dtype=_choose_dtype(spec, arguments, example), device=example.device)


def _read_axes(template: Any, arguments: dict[str, Any]) -> tuple[dict[str, int], Any]:
    axes: dict[str, int] = {}
    example = None
    for key, spec in template.inputs.items():
        names = getattr(spec, "dim_names", None)
        value: Any = arguments.get(getattr(spec, "param", None) or key)
        if names and hasattr(value, "shape"):
            example = value if example is None else example
            for name, length in zip(names, value.shape, strict=False):
                axes.setdefault(name, int(length))
    return axes, example


def _choose_dtype(spec: Any, arguments: dict[str, Any], example: Any) -> Any:
    import torch

    for argument in _DTYPE_ARGUMENTS:
        if isinstance(arguments.get(argument), torch.dtype):
            return arguments[argument]
    named = getattr(torch, str(spec.dtype), None) if spec.dtype else None
    source = arguments.get(spec.dtype_from) if spec.dtype_from else None
    return named or getattr(source, "dtype", None) or example.dtype
