"""A picture of one transformer block: real weights, really run, every step a slice of a Perfetto trace."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fib_tools.host.files import storage_errors
from fib_tools.host.paths import check_component
from fib_tools.model.base import Model
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.trace_best import Best, annotate_best, find_best
from fib_tools.phases.weights import load_tokenizer, load_weights

if TYPE_CHECKING:
    from fib_tools.capture.timeline import Span, Timeline

__all__ = ["TraceBlockResult", "TracedOperator", "trace_block"]

_FOLDER = "traces"
_SEED = 0
_SHOWN = 40


class TracedOperator(Model):
    """One operator of the block."""

    path: str
    op_type: str
    definition: str = ""
    """The Definition that it is a call of; empty for what only moves data, and for what no kernel type describes."""
    microseconds: float
    bytes: int
    flops: int
    best: str = ""
    """The fastest Solution that is known for such a call, as author/name; empty where none is."""
    best_percent: float | None = None
    """Of the limit of the GPU that it was measured on."""
    best_gpu: str = ""


class TraceBlockResult(Result):
    """What was traced, and where the trace lies."""

    rows = "operators"
    row_fields = ("path", "op_type", "definition", "microseconds", "bytes", "flops", "best", "best_percent", "best_gpu")

    model: str
    path: str
    layers: tuple[int, ...]
    """Those that were recorded from inside."""
    input: str
    slices: int
    bytes: int
    """Of the file."""
    load_seconds: float
    forward_seconds: float
    """Of the recorded forward: a third time at least what it takes unobserved."""
    most_memory: int
    """Bytes of live tensors, weights included, at the moment when there are most."""
    most_activations: int
    """The same less the weights."""
    operators: tuple[TracedOperator, ...]
    problems: tuple[str, ...] = ()
    """Of the dataset's Traces and evidence, where the best Solutions are looked up."""

    def summary(self) -> Summary:
        """Show the operators in order, what is known to be faster, then where to look at them."""
        columns = ("operator", "op_type", "Definition", "us", "bytes", "FLOPs")
        rows = tuple(
            (each.path, each.op_type, each.definition, f"{each.microseconds:.0f}", str(each.bytes), str(each.flops))
            for each in self.operators[:_SHOWN]
        )
        tables = (Table(title=self.model, columns=columns, rows=rows), *self._best_tables())
        return Summary(tables=tables, lines=tuple(self._conclude()))

    def _best_tables(self) -> Iterable[Table]:
        """List each Definition's best Solution once; calls of other lengths may have another one."""
        known = {(each.definition, each.best, _percent(each.best_percent), each.best_gpu) for each in self.operators}
        rows = tuple(sorted(row for row in known if row[1]))
        if rows:
            yield Table(title="best known", columns=("Definition", "Solution", "% of limit", "on"), rows=rows[:_SHOWN])

    def _conclude(self) -> Iterable[str]:
        left = len(self.operators) - _SHOWN
        if left > 0:
            yield f"... and {left} more operators"
        if self.problems:
            yield f"{len(self.problems)} problems with the dataset's Traces; the first: {self.problems[0]}"
        megabytes = (f"{each / 1e6:.2f} MB" for each in (self.most_memory, self.most_activations))
        yield "at most {} of tensors live at once, {} of them no weights".format(*megabytes)
        yield f"{self.path}: {self.slices} slices, {self.bytes / 1e6:.2f} MB; open it at https://ui.perfetto.dev"


def trace_block(
    context: Context,
    model: Annotated[
        str,
        Field(
            description="Folder or file of weights (safetensors, .pth, .gguf), or a model in the Hugging Face cache."
        ),
    ],
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
    gpu: Annotated[
        str | None,
        Field(
            description="Show the best Solutions on this model of GPU, as Traces spell it: NVIDIA H200; any if left out."
        ),
    ] = None,
    out: Annotated[
        Path | None, Field(description="The trace; traces/<model>_layer<N>.pftrace in the workspace if left out.")
    ] = None,
) -> TraceBlockResult:
    """Trace one transformer block into a Perfetto file: every step as a slice, with shapes, bytes, FLOPs and Definition.

    The block is executed for real, in torch, with attention and softmax taken apart; embedding, final norm and logits too.
    Counters show the bytes of live tensors and the bandwidth that steps achieve.
    A call whose Definition has passed Solutions in the dataset names the fastest one, and its share of the GPU's limit.

    Exit status 0: the trace is written; 2: the weights or the request cannot be served.
    """
    # protobuf and torch are heavy
    from fib_tools.capture.forward.memory import ACTIVATIONS, MEMORY
    from fib_tools.capture.perfetto import write_trace

    target = _find_target(context, model, layer, out, whole=whole)
    begun = time.perf_counter()
    context.progress(f"loading {model}", 0, 3)
    checkpoint, loaded = load_weights(context, model, layers=None if whole else layer + 1, dtype=dtype)
    inputs, described = _make_inputs(loaded, model, prompt, tokens)
    loading = time.perf_counter() - begun
    context.progress("running it", 1, 3)
    timeline, forward = _record(
        loaded,
        inputs,
        name=f"{Path(model).resolve().name}{'' if whole else f' layer {layer}'}",
        layers=None if whole else {layer},
    )
    timeline, best = _look_up(context, timeline, gpu)
    details = {"model": model, "weights": checkpoint.format, "input": described, "dtype": dtype}
    written = write_trace(timeline.model_copy(update={"details": details}), target)
    context.progress("written", 3, 3)
    count = int(loaded.config.num_hidden_layers)
    return TraceBlockResult(
        model=model,
        path=str(target),
        layers=tuple(range(count)) if whole else (layer,),
        input=described,
        slices=written.slices,
        bytes=written.bytes,
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

    if prompt is not None:
        todo = "leave --prompt out, and pass --tokens: the ids are then drawn at random"
        return dict(load_tokenizer(model, todo=todo)(prompt, return_tensors="pt")), f"the prompt {prompt!r}"
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(0, int(loaded.config.vocab_size), (1, tokens), generator=generator)
    return {"input_ids": ids}, f"{tokens} token ids drawn with the seed {_SEED}"


def _record(loaded: Any, inputs: Mapping[str, Any], *, name: str, layers: set[int] | None) -> tuple[Timeline, float]:
    """Run it once to have everything in memory, then record a run."""
    import torch

    from fib_tools.capture.forward.record import record_forward

    with torch.no_grad():
        loaded(**inputs)
    begun = time.perf_counter()
    timeline = record_forward(loaded, inputs, name=name, layers=layers)
    return timeline, time.perf_counter() - begun


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


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
