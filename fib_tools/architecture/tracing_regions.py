"""What is understood as a whole: attention, masks, hub kernels, RoPE, norms, experts. Found by generic marks, not by model."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fib_tools.architecture.structure_schema import OpKind
from fib_tools.architecture.tracing_model import ATTENTION_NAME
from fib_tools.architecture.tracing_probes import NormProbe, probe_mask, probe_norm, probe_rope
from fib_tools.architecture.tracing_recorder import Recorder, flatten, pause_recording

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Watcher"]

_ROPE_NAME = re.compile(r"^apply_(multimodal_|\w*_)?rotary|^apply_rotary|^apply_rope")
_NORM_NAME = re.compile(r"norm", re.IGNORECASE)
_CONV_NAME = re.compile(r"conv1d")


class Watcher:
    """Puts marks on a model and its modeling module, so that a recorder sees regions; takes them off again."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.recorder: Recorder | None = None
        self._masks: dict[int, dict[str, Any]] = {}
        self._norms: dict[str, NormProbe] = {}
        self._ropes: dict[str, dict[str, Any]] = {}
        self._kept: list[Any] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_registered(self._attend, self._make_mask))
        for module in _modeling_modules(self._model):
            for name, function in list(vars(module).items()):
                wrapped = self._wrap_function(name, function)
                if wrapped is not None:
                    self._stack.enter_context(_replaced(module, name, function, wrapped))
        for path, module in self._model.named_modules():
            self._mark_module(path, module)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _wrap_function(self, name: str, function: Any) -> Callable[..., Any] | None:
        if not inspect.isfunction(function):
            return None
        if _is_hub_function(function):
            kind = OpKind.CONV1D if _CONV_NAME.search(name) else OpKind.LINEAR_ATTENTION
            return self._make_hub_wrapper(name, function, kind)
        if _ROPE_NAME.match(name):
            return self._make_rope_wrapper(name, function)
        return None

    def _make_hub_wrapper(self, name: str, function: Any, kind: OpKind) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder
            if recorder is None:
                return function(*args, **kwargs)
            attributes = {"function": name, **_read_scalars(function, args, kwargs)}
            reads = list(flatten((args, kwargs)))
            return recorder.run_region(
                name, kind, lambda: function(*args, **kwargs), reads=reads, attributes=attributes
            )

        return run

    def _make_rope_wrapper(self, name: str, function: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder
            if recorder is None or recorder.is_in_region:
                return function(*args, **kwargs)
            key = f"{name} {[tuple(value.shape) for value in flatten((args, kwargs))]}"
            if key not in self._ropes:
                with pause_recording():
                    self._ropes[key] = probe_rope(function, args, kwargs)
            attributes = self._ropes[key]
            reads = list(flatten((args, kwargs)))
            return recorder.run_region(
                name, OpKind.ROPE, lambda: function(*args, **kwargs), reads=reads, attributes=attributes
            )

        return run

    def _mark_module(self, path: str, module: Any) -> None:
        kind, op = self._classify(module)
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and _is_hub_function(value):
                wrapped = self._wrap_function(name, value)
                setattr(module, name, wrapped)
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder
            if recorder is None:
                return original(*args, **kwargs)
            with recorder.inside(path):
                if op is None:
                    return original(*args, **kwargs)
                attributes = self._describe_module(kind, module, args, kwargs)
                reads = list(flatten((args, kwargs)))
                return recorder.run_region(
                    op, kind, lambda: original(*args, **kwargs), reads=reads, attributes=attributes
                )

        module.forward = forward
        self._stack.callback(module.__dict__.pop, "forward", None)

    def _classify(self, module: Any) -> tuple[OpKind | None, str | None]:
        own = [value for value in module._parameters.values() if value is not None]  # noqa: SLF001  # own parameters only
        is_leaf = next(module.children(), None) is None
        if is_leaf and _NORM_NAME.search(type(module).__name__) and all(value.dim() == 1 for value in own):
            return OpKind.NORM, "norm"
        if sum(value.dim() == 3 for value in own) >= 2 and "conv" not in type(module).__name__.lower():
            return OpKind.GROUPED_LINEAR, "experts"
        if any("inv_freq" in name for name in module._buffers):  # noqa: SLF001  # own buffers only
            return None, "rotary_table"
        return None, None

    def _describe_module(self, kind: OpKind | None, module: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        tensors = list(flatten((args, kwargs)))
        if kind is OpKind.NORM and tensors:
            key = f"{type(module).__module__}.{type(module).__name__}:{_norm_key(module)}:{len(tensors)}"
            if key not in self._norms:
                with pause_recording():
                    self._norms[key] = probe_norm(module, size=tensors[0].shape[-1], inputs=len(tensors))
            return dict(self._norms[key]._asdict(), size=int(tensors[0].shape[-1]))
        if kind is OpKind.GROUPED_LINEAR:
            shapes = {
                name: tuple(value.shape)
                for name, value in module._parameters.items()  # noqa: SLF001  # own parameters only
                if value is not None
            }
            return {"_weights": shapes, "_scalars": _own_scalars(module)}
        return {}

    def _attend(self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        import torch

        recorder = self.recorder
        shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        if recorder is None:
            return torch.empty(shape, dtype=query.dtype, device="meta"), None
        reads = [query, key, value, *flatten((attention_mask, kwargs))]
        attributes = self._describe_attention(module, reads, kwargs)
        attributes["_mask"] = None if attention_mask is None else self._find_mask(attention_mask)
        result = recorder.run_region(
            "attention",
            OpKind.ATTENTION,
            lambda: torch.empty(shape, dtype=query.dtype, device="meta"),
            reads=reads,
            attributes=attributes,
        )
        return result, None

    def _describe_attention(self, module: Any, reads: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        query, key, value = reads[:3]
        scaling = kwargs.get("scaling")
        return {
            "heads": int(query.shape[1]),
            "kv_heads": int(key.shape[1]),
            "head_dim": int(query.shape[-1]),
            "v_head_dim": int(value.shape[-1]),
            "sm_scale": float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5,
            "softcap": kwargs.get("softcap"),
            "sinks": kwargs.get("s_aux") is not None,
            "declared_window": kwargs.get("sliding_window"),
            "causal": bool(kwargs.get("is_causal", getattr(module, "is_causal", True))),
        }

    def _find_mask(self, tensor: Any) -> dict[str, Any] | None:
        """Find what is known of a mask, through slices and additions, in the recorded graph."""
        if id(tensor) in self._masks:
            return self._masks[id(tensor)]
        recorder = self.recorder
        if recorder is None:
            return None
        nodes = recorder.graph.back([recorder.edge_of(tensor)], stop=lambda node: node.kind is not None)
        found = [node.attributes["_mask"] for node in nodes if "_mask" in node.attributes]
        return found[-1] if found else None

    def _make_mask(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        batch, queries, keys = (
            int(kwargs.get(name, args[index] if len(args) > index else 1))
            for index, name in enumerate(("batch_size", "q_length", "kv_length"))
        )
        with pause_recording():
            known = probe_mask(kwargs.get("mask_function"), kwargs.get("local_size"))
        recorder = self.recorder

        def create() -> Any:
            return torch.empty((batch, 1, queries, keys), dtype=torch.bool, device="meta")

        if recorder is None:
            return create()
        mask = recorder.run_region("mask", None, create, reads=[], attributes={"_mask": known})
        self._masks[id(mask)] = known
        self._kept.append(mask)
        return mask


@contextlib.contextmanager
def _registered(attend: Any, make_mask: Any) -> Iterator[None]:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, make_mask)
    try:
        yield
    finally:
        type(ALL_ATTENTION_FUNCTIONS)._global_mapping.pop(ATTENTION_NAME, None)  # noqa: SLF001  # there is no unregister
        type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping.pop(ATTENTION_NAME, None)  # noqa: SLF001  # the same


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, old: Any, new: Any) -> Iterator[None]:
    setattr(module, name, new)
    try:
        yield
    finally:
        setattr(module, name, old)


def _modeling_modules(model: Any) -> list[ModuleType]:
    names = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(names) if ".modeling_" in name and name in sys.modules]


def _is_hub_function(function: Any) -> bool:
    """Recognise transformers' wrapper around functions that have a kernel on the hub."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and code.co_filename.endswith("hub_kernels.py"):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _read_scalars(function: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        bound = dict(kwargs)
    return {f"arg_{name}": value for name, value in bound.items() if isinstance(value, (int, float, str, bool))}


def _own_scalars(module: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, float, str, bool)) and not name.startswith("_")
    }


def _norm_key(module: Any) -> str:
    shapes = [tuple(value.shape) for value in module._parameters.values() if value is not None]  # noqa: SLF001  # own parameters only
    return f"{shapes}{sorted(_own_scalars(module).items())}"
