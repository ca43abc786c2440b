"""A picture of one transformer block: real weights, really run, every step a slice of a Perfetto trace."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.host.files import storage_errors, write_atomically
from fib_tools.host.paths import check_component
from fib_tools.phases.context import Context
from fib_tools.phases.trace_best import Best, annotate_best, find_best
from fib_tools.phases.trace_block_result import TraceBlockResult, TracedOperator
from fib_tools.phases.weights import DummyOption, Loading, WeightsArgument, load_tokenizer, load_weights

if TYPE_CHECKING:
    from fib_tools.capture.timeline import Span, Timeline

__all__ = ["trace_block"]

_FOLDER = "traces"
_SEED = 0


def trace_block(
    context: Context,
    model: WeightsArgument,
    *,
    layer: Annotated[int, Field(ge=0, description="The block, counted from 0; those before it run unrecorded.")] = 0,
    whole: Annotated[bool, Field(description="All blocks, not one.")] = False,
    prompt: Annotated[str | None, Field(description="Text; needs the model's tokenizer beside the weights.")] = None,
    tokens: Annotated[
        int, Field(ge=1, le=8192, description="Without a prompt: so many token ids drawn at random.")
    ] = 32,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], Field(description="What the weights are converted to.")
    ] = "bfloat16",
    device: Annotated[Literal["cpu", "cuda"], Field(description="Where to run it.")] = "cpu",
    dummy_weights: DummyOption = False,
    profiler: Annotated[
        Literal["torch"] | None,
        Field(description="Also write torch.profiler's view of the run, as <trace>.pt.trace.json for TensorBoard."),
    ] = None,
    gpu: Annotated[
        str | None,
        Field(
            description="Show the best Solutions on this model of GPU, as Traces spell it: NVIDIA H200. If left out, that of --device cuda, else any."
        ),
    ] = None,
    out: Annotated[
        Path | None, Field(description="The trace; traces/<model>_layer<N>.pftrace in the workspace if left out.")
    ] = None,
) -> TraceBlockResult:
    """Trace one transformer block into a Perfetto file: every step as a slice, with shapes, bytes, FLOPs and Definition.

    The block is executed for real, in torch, with attention and softmax taken apart; embedding, final norm and logits too.
    Counters show the bytes of live tensors and the bandwidth that steps achieve.
    On a GPU each step is waited for; with --profiler torch its kernels stand on tracks of their own, under what launched them.
    A call whose Definition has passed Solutions in the dataset names the fastest one, and its share of the GPU's limit.

    Exit status 0: the trace is written; 2: the weights or the request cannot be served.
    """
    # protobuf and torch are heavy
    from fib_tools.capture.forward.memory import ACTIVATIONS, MEMORY
    from fib_tools.capture.forward.profiler import SUFFIX
    from fib_tools.capture.perfetto import write_trace

    _check_device(device)
    target = _find_target(context, model, layer, out, whole=whole)
    begun = time.perf_counter()
    context.progress(f"loading {model}", 0, 3)
    how = Loading(layer=None if whole else layer, dtype=dtype, device=device, is_dummy=dummy_weights)
    loaded, weights = load_weights(context, model, how)
    inputs, described = _make_inputs(loaded, model, prompt, tokens)
    loading = time.perf_counter() - begun
    context.progress("running it", 1, 3)
    timeline, forward, document = _record(
        loaded,
        inputs,
        name=f"{Path(model).resolve().name}{'' if whole else f' layer {layer}'}",
        layers=None if whole else {layer},
        profiler=profiler,
    )
    timeline, best = _look_up(context, timeline, gpu or _find_gpu(loaded))
    details = {"model": model, "weights": weights, "input": described, "dtype": dtype, "device": device}
    written = write_trace(timeline.model_copy(update={"details": details}), target)
    profile = target.with_name(target.name.removesuffix(target.suffix) + SUFFIX)
    if document is not None:
        write_atomically(profile, document)
    context.progress("written", 3, 3)
    count = int(loaded.config.get_text_config().num_hidden_layers)
    return TraceBlockResult(
        model=model,
        path=str(target),
        layers=tuple(range(count)) if whole else (layer,),
        input=described,
        slices=written.slices,
        bytes=written.bytes,
        profile=None if document is None else str(profile),
        kernels=sum(span.kind == "kernel" for span in timeline.spans),
        load_seconds=round(loading, 2),
        forward_seconds=round(forward, 4),
        most_memory=_find_most(timeline, MEMORY),
        most_activations=_find_most(timeline, ACTIVATIONS),
        operators=tuple(_list_operators(timeline)),
        problems=best.problems,
    )


def _look_up(context: Context, timeline: Timeline, gpu: str | None) -> tuple[Timeline, Best]:
    """Write the best known Solutions on the spans; a dataset that is not there knows none."""
    named = {str(span.details["definition"]) for span in timeline.spans if "definition" in span.details}
    best = find_best(context.dataset, named, gpu=gpu)
    return annotate_best(timeline, best), best


def _find_target(context: Context, model: str, layer: int, out: Path | None, *, whole: bool) -> Path:
    if out is not None:
        return context.check_readable(out)
    folder = context.workspace.root / _FOLDER
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = Path(model).resolve()
    name = check_component(path.stem if path.is_file() else path.name)
    return folder / f"{name}_{'whole' if whole else f'layer{layer}'}.pftrace"


def _make_inputs(loaded: Any, model: str, prompt: str | None, tokens: int) -> tuple[dict[str, Any], str]:
    """Make token ids of a prompt, or draw them; say which."""
    import torch

    device = loaded.device
    if prompt is not None:
        todo = "leave --prompt out, and pass --tokens: the ids are then drawn at random"
        encoded = load_tokenizer(model, todo=todo)(prompt, return_tensors="pt")
        return {name: tensor.to(device) for name, tensor in encoded.items()}, f"the prompt {prompt!r}"
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(0, int(loaded.config.get_text_config().vocab_size), (1, tokens), generator=generator)
    return {"input_ids": ids.to(device)}, f"{tokens} token ids drawn with the seed {_SEED}"


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("torch sees no GPU", where="--device", todo="use --device cpu")


def _find_gpu(loaded: Any) -> str | None:
    """Name the model of GPU that the weights lie on, as Traces do."""
    import torch

    return torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None


def _record(
    loaded: Any, inputs: Mapping[str, Any], *, name: str, layers: set[int] | None, profiler: str | None
) -> tuple[Timeline, float, bytes | None]:
    """Run it once to have everything in memory, then record a run; with a profiler also what a GPU did, and its file."""
    import torch

    from fib_tools.capture.forward.profiler import run_profiler
    from fib_tools.capture.forward.record import record_forward
    from fib_tools.capture.timeline_kernels import place_kernels

    with torch.no_grad():
        loaded(**inputs)
    begun = time.perf_counter()
    if profiler is None:
        timeline = record_forward(loaded, inputs, name=name, layers=layers)
        return timeline, time.perf_counter() - begun, None
    with run_profiler(name, with_cuda=loaded.device.type == "cuda") as profile:
        begun = time.perf_counter()
        timeline = record_forward(loaded, inputs, name=name, layers=layers)
        seconds = time.perf_counter() - begun
    return place_kernels(timeline, profile.events), seconds, profile.document


def _list_operators(timeline: Timeline) -> list[TracedOperator]:
    return [
        TracedOperator(
            path=path.partition("/")[2],
            op_type=str(span.details["op_type"]),
            definition=str(span.details.get("definition", "")),
            microseconds=round(span.duration_ns / 1e3, 1),
            bytes=int(span.details["bytes"]),
            flops=int(span.details["flops"]),
            best=str(span.details.get("best_solution", "")),
            best_percent=_read_percent(span),
            best_gpu=str(span.details.get("best_measured_on", "")),
        )
        for path, span in zip(timeline.list_paths(), timeline.spans, strict=True)
        if span.kind == "operator"
    ]


def _find_most(timeline: Timeline, name: str) -> int:
    return max(int(value) for counter in timeline.counters if counter.name == name for _, value in counter.points)


def _read_percent(span: Span) -> float | None:
    percent = span.details.get("best_percent_of_limit")
    return None if percent is None else float(percent)
