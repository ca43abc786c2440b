"""Running a model once and recording what it does, as a timeline."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.observe import watch_model
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.recorder import Draft, Recorder, name_inputs
from fib_tools.capture.forward.steps import watch_steps
from fib_tools.capture.timeline import Counter, Kind, Span, Timeline, Value

if TYPE_CHECKING:
    import torch

__all__ = ["record_forward"]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)$")


def record_forward(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    *,
    name: str,
    layers: Collection[int] | None = None,
    details: Mapping[str, Value] | None = None,
) -> Timeline:
    """Run a forward and record it; of the layers only those with these numbers from inside.

    Attention should be `eager`, so that its steps can be seen: scores, mask, the passes of softmax, the sum of values.
    Counters: bytes of live tensors, with the weights and without (see `memory`), and the bandwidth that steps achieve.
    On a GPU every step is waited for, so that its slice is what it takes, the launch included.
    """
    import torch

    recorder = Recorder()
    if any(tensor.is_cuda for tensor in _list_weights(model)):
        recorder.wait = torch.cuda.synchronize
    hooks: list[Any] = []
    try:
        with Patches() as patches:
            _patch_softmax(patches, recorder)
            _patch_cache(patches, recorder)
            with watch_model(recorder, model), torch.no_grad(), watch_steps(recorder):
                for path, module in model.named_modules():
                    hooks += _hook(recorder, path, module, layers)
                recorder.memory.start(_list_weights(model), _list_inputs(inputs))
                model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    _name_steps(recorder.drafts)
    _sum_up(recorder.drafts)
    spans = tuple(draft.finish() for draft in recorder.drafts)
    counters = (*recorder.memory.stop(), _count_bandwidth(spans))
    return Timeline(name=name, spans=spans, counters=counters, details=dict(details or {}))


def _list_weights(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _list_inputs(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [tensor for _, tensor in name_inputs((), inputs)]


def _hook(recorder: Recorder, path: str, module: torch.nn.Module, layers: Collection[int] | None) -> Iterator[Any]:
    """Note when a module begins and ends; inside a layer that nobody asked for, nothing."""
    number = _LAYER.search(path)
    kind: Kind = "layer" if number else "module" if path else "model"
    name = ".".join(path.split(".")[-2:]) if number else path.rpartition(".")[2] or type(module).__name__
    is_left_out = number is not None and layers is not None and int(number[1]) not in layers
    drafts: list[Draft] = []

    def begin(_: Any, args: Any, options: Any) -> None:
        if recorder.is_on:
            drafts.append(recorder.open(name, kind, name_inputs(args, options)))
            drafts[-1].details["type"] = type(module).__name__
            recorder.is_on = not is_left_out

    def end(_: Any, args: Any, result: Any) -> None:
        del args
        if is_left_out and drafts:
            recorder.is_on = True
            drafts[-1].details["recorded"] = False
        if recorder.is_on and drafts:
            recorder.close(drafts.pop(), result)

    yield module.register_forward_pre_hook(begin, with_kwargs=True)
    yield module.register_forward_hook(end, always_call=True)


def _patch_softmax(patches: Patches, recorder: Recorder) -> None:
    """Execute softmax pass by pass, that inside attention too."""
    import torch

    def make(original: Any) -> Any:
        def softmax(input: torch.Tensor, dim: int, *more: Any, dtype: Any = None, **options: Any) -> Any:  # noqa: A002
            if not (recorder.is_on and recorder.is_inside):
                return original(input, dim, *more, dtype=dtype, **options)
            if recorder.parent is not None and recorder.parent.name == "softmax":
                return _compute_softmax(input, dim, dtype)
            with _span(recorder, "softmax", input):
                return _compute_softmax(input, dim, dtype)

        return softmax

    patches.wrap(torch.nn.functional, "softmax", make)


def _compute_softmax(scores: torch.Tensor, dim: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Find each row's maximum, take it off, exponentiate, sum up, divide: five passes."""
    import torch

    wide = scores if dtype is None else scores.to(dtype)
    exponentials = torch.exp(wide - wide.amax(dim=dim, keepdim=True))
    return exponentials / exponentials.sum(dim=dim, keepdim=True)


def _patch_cache(patches: Patches, recorder: Recorder) -> None:
    """Show what is written to the KV cache, and what is read from it."""
    from transformers.cache_utils import Cache

    def make(original: Any) -> Any:
        def update(self: Any, key_states: Any, value_states: Any, *more: Any, **options: Any) -> Any:
            if not recorder.is_on:
                return original(self, key_states, value_states, *more, **options)
            with _span(recorder, "kv_cache", key_states, value_states) as draft:
                result = original(self, key_states, value_states, *more, **options)
                draft.details["memory"] = "write and read"
            return result

        return update

    patches.wrap(Cache, "update", make)


@contextmanager
def _span(recorder: Recorder, name: str, *inputs: Any) -> Iterator[Draft]:
    draft = recorder.open(name, "operator", name_inputs(inputs, {}))
    try:
        yield draft
    finally:
        recorder.close(draft)


def _name_steps(drafts: list[Draft]) -> None:
    """Give steps the names that they have in a transformer, where their place tells which they are."""
    products: dict[int, list[Draft]] = {}
    for draft in drafts:
        if draft.parent is None or draft.kind != "step":
            continue
        parent = drafts[draft.parent]
        if parent.kind == "layer" and draft.name == "add":
            draft.name = "residual_add"
        elif parent.kind == "module" and draft.name == "mul" and parent.name in {"mlp", "feed_forward"}:
            draft.name = "gate_times_up"
        elif parent.name == "attention" and draft.name in {"mul", "add"}:
            draft.name = {"mul": "scale", "add": "mask"}[draft.name]
        elif parent.name == "attention" and draft.name in {"bmm", "mm", "matmul"}:
            products.setdefault(draft.parent, []).append(draft)
    for found in products.values():
        if len(found) == 2:  # queries with keys, then weights with values
            found[0].name, found[1].name = "qk", "pv"


def _sum_up(drafts: list[Draft]) -> None:
    """Give each span the bytes and FLOPs of its steps, and what they are to each other."""
    totals = {at: [0, 0] for at in range(len(drafts))}
    for at in range(len(drafts) - 1, -1, -1):
        draft, total = drafts[at], totals[at]
        if draft.kind == "step":
            total[:] = [int(draft.details[name]) for name in ("bytes", "flops")]
        if draft.parent is not None:
            above = totals[draft.parent]
            above[0], above[1] = above[0] + total[0], above[1] + total[1]
        intensity = round(total[1] / total[0], 4) if total[0] else 0.0
        own = {"bytes": total[0], "flops": total[1], "arithmetic_intensity": intensity}
        draft.details = {"op_type": draft.kind, **draft.details, **own}


def _count_bandwidth(spans: tuple[Span, ...]) -> Counter:
    """Give the bytes that steps read and wrote, over their time."""
    points: list[tuple[int, float]] = []
    for span in spans:
        moved = span.details.get("bytes")
        if span.kind == "step" and isinstance(moved, int) and span.duration_ns:
            points += [(span.start_ns, round(moved / span.duration_ns, 3)), (span.end_ns, 0.0)]
    return Counter(name="achieved bandwidth", unit="GB/s", points=tuple(points))
