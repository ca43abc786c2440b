"""A timeline such as the hooks in a running model make: layers, modules, operators, steps, kernels on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fib_tools.capture.timeline import Counter, Kind, Span, TensorNote, Timeline

START = 5_000_000_000
HIDDEN, TOKENS = 256, 16


def note(name: str, key: int | None, *shape: int) -> TensorNote:
    """A contiguous bfloat16 tensor."""
    strides: list[int] = []
    elements = 1
    for length in reversed(shape):
        strides.insert(0, elements)
        elements *= length
    return TensorNote(
        name=name, shape=shape, dtype="bfloat16", strides=tuple(strides), bytes=2 * max(elements, 1), key=key
    )


@dataclass
class Recorder:
    """A clock that goes on with each span, and the spans so far."""

    now: int = START
    spans: list[dict[str, Any]] = field(default_factory=list)
    key: int = 100

    def begin(self, name: str, kind: Kind, parent: int | None, **fields: Any) -> int:
        self.now += 100
        self.spans.append({"name": name, "kind": kind, "parent": parent, "start_ns": self.now, **fields})
        return len(self.spans) - 1

    def end(self, index: int) -> None:
        self.now += 100
        self.spans[index]["end_ns"] = self.now

    def new_key(self) -> int:
        self.key += 1
        return self.key

    def finish(self) -> tuple[Span, ...]:
        order = sorted(range(len(self.spans)), key=lambda index: (self.spans[index]["start_ns"], index))
        places = {old: new for new, old in enumerate(order)}
        moved = [{**self.spans[old], "parent": places.get(self.spans[old]["parent"])} for old in order]
        return tuple(Span(**fields) for fields in moved)


def _run_operator(recorder: Recorder, parent: int, name: str, source: int, *, with_steps: bool) -> int:
    target = recorder.new_key()
    flops, moved = 2 * TOKENS * HIDDEN * HIDDEN, 2 * (2 * TOKENS * HIDDEN + HIDDEN * HIDDEN)
    details = {
        "op_type": "gemm",
        "definition": f"gemm_n{HIDDEN}_k{HIDDEN}",
        "flops": flops,
        "bytes": moved,
        "arithmetic_intensity": flops / moved,
        "is_prefill": True,
    }
    inputs = (note("x", source, 1, TOKENS, HIDDEN), note("weight", None, HIDDEN, HIDDEN))
    outputs = (note("out", target, 1, TOKENS, HIDDEN),)
    operator = recorder.begin(name, "operator", parent, inputs=inputs, outputs=outputs, details=details)
    if with_steps:
        for number in range(2):
            recorder.end(recorder.begin(f"pass {number}", "step", operator, details={"op_type": "softmax"}))
    start = recorder.now + 50
    recorder.spans.append(
        {
            "name": f"kernel_of_{name}",
            "kind": "kernel",
            "parent": operator,
            "start_ns": start,
            "end_ns": start + 150,
            "details": {"op_type": "gemm", "grid": "[32, 1, 1]"},
        }
    )
    recorder.end(operator)
    return target


def make_timeline(layers: int = 2, modules: int = 2, operators: int = 3) -> Timeline:
    recorder = Recorder()
    model = recorder.begin("LlamaForCausalLM", "model", None, details={"op_type": "model"})
    data = recorder.new_key()
    for layer in range(layers):
        of_layer = recorder.begin(
            f"layers.{layer}", "layer", model, inputs=(note("hidden_states", data, 1, TOKENS, HIDDEN),)
        )
        for module in range(modules):
            of_module = recorder.begin(f"module_{module}", "module", of_layer)
            for number in range(operators):
                data = _run_operator(recorder, of_module, f"proj_{number}", data, with_steps=number == 0)
            recorder.end(of_module)
        recorder.end(of_layer)
    recorder.end(model)
    moments = range(START, recorder.now, 500)
    counters = (
        Counter(
            name="memory", unit="bytes", points=tuple((moment, 1000 * place) for place, moment in enumerate(moments))
        ),
        Counter(name="achieved bandwidth", unit="GB/s", points=tuple((moment, 812.5) for moment in moments)),
    )
    return Timeline(
        name="Llama on a test", spans=recorder.finish(), counters=counters, details={"model": "llama", "layers": layers}
    )


EXTREME = Timeline(
    name="x",
    clock="realtime",
    spans=(
        Span(name="a", kind="model", start_ns=0, end_ns=2**62, details={"least": -(2**63), "none": "", "no": False}),
        Span(
            name="b",
            kind="operator",
            start_ns=0,
            end_ns=0,
            parent=0,
            inputs=(note("a.b", -1), note("\N{GREEK SMALL LETTER ALPHA}", 2**62, 0, 3)),
            outputs=(note("out", -1, 4),),
            details={"share": 1.0, "count": 1},
        ),
        Span(name="k", kind="kernel", track="GPU 0 stream 7", start_ns=0, end_ns=9, parent=1),
        Span(name="part of k", kind="step", track="GPU 0 stream 7", start_ns=0, end_ns=9, parent=2),
        Span(name="on its own", kind="kernel", start_ns=3, end_ns=3),
    ),
    counters=(
        Counter(name="a (b)", unit="b", points=((0, 1.0), (0, 2), (1, -3))),
        Counter(name="calls", unit="", points=()),
    ),
)
"""The least and the most that fields may hold, ties in time, a kernel in a stream, kernels of nobody."""
