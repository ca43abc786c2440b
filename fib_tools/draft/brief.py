"""The brief of a kernel: everything a drafter must know, in at most 8 KB, what changes least first.

A service keeps the beginning of a prompt in its cache: the contract is the same for all kernels of a language, the kernel
for all attempts; what was tried comes last, in the question itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fib_tools.draft.target import Shape, Target, format_axes, format_us, list_gpu_facts
from fib_tools.model.definition import TensorSpec
from fib_tools.model.solution import Language

__all__ = ["BRIEF_BYTES", "write_brief", "write_contract", "write_interface"]

BRIEF_BYTES = 8192
_MOST_SHAPES = 16
_LONGEST_TEXT = 400
"""Characters of a description: those of others can be essays."""
_CUT = "\n... (cut: the rest of the reference is not shown)\n"

_CONTRACT = """\
You write kernels for a {device}. Your answer is judged by a machine: it is built, run in a confined process, compared with a \
reference on inputs you have not seen, and timed {cold}on several sizes. Nobody reads along.

Answer with
TECHNIQUE: two to five words
WHY: one sentence
and then one fenced code block with the whole source file, {file}.

{language}

Rules (who breaks one is rejected, however fast)
- Every call computes its outputs from its inputs: nothing is kept from call to call, by content or by address, but \
workspaces and compiled code. Inputs are never written to.
- No other library's kernels (flashinfer, sglang, vllm, deep_gemm); torch operations are allowed, though they are what is slow.
- No files, processes, threads, ctypes, environment, clocks, profilers, eval, monkey patches; no `except` around a kernel.
{streams}- Any length of the var axes must work, 1 included, and every value: zeros, huge ones, infinities where the reference allows them.
- Outputs are plain contiguous tensors of their own with the declared shape and dtype.
"""

_STREAMS = """\
- All work on the current stream, or joined with it before the call returns. The call must be capturable in a CUDA graph: \
no synchronisation with the host, no .item().
"""

_LANGUAGES: dict[Language, tuple[str, str]] = {
    Language.TRITON: (
        "main.py",
        "Language: Python with Triton. Define `run({arguments})`: outputs are given as the last arguments and are filled; return nothing.",
    ),
    Language.PYTHON: (
        "main.py",
        "Language: Python with torch. Define `run({inputs})`, which returns {returned}.",
    ),
    Language.CUDA: (
        "main.cu",
        'Language: CUDA C++ as a torch extension: include <torch/extension.h>, define `void run({arguments})` over torch::Tensor \
(scalars as double, int64_t or bool), outputs last, and bind it: PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{ m.def("run", &run); }}. \
Launch on at::cuda::getCurrentCUDAStream().',
    ),
    Language.TILELANG: (
        "main.py",
        "Language: Python with TileLang. Define `run({arguments})`: outputs are given as the last arguments and are filled; return nothing.",
    ),
}


def write_interface(target: Target) -> str:
    """Say in a few words what a source has to define."""
    definition = target.definition
    inputs, outputs = list(definition.inputs), list(definition.outputs)
    if target.language is Language.PYTHON:
        return f"define `run({', '.join(inputs)})`, which returns {_join_outputs(outputs)}"
    return f"define `run({', '.join([*inputs, *outputs])})`, which fills {', '.join(outputs)} and returns nothing"


def _join_outputs(outputs: list[str]) -> str:
    return outputs[0] if len(outputs) == 1 else f"the tuple ({', '.join(outputs)})"


def write_contract(target: Target) -> str:
    """Say what an answer is, and what is forbidden."""
    definition = target.definition
    file, language = _LANGUAGES[target.language]
    outputs = list(definition.outputs)
    said = language.format(
        arguments=", ".join([*definition.inputs, *outputs]),
        inputs=", ".join(definition.inputs),
        returned=_join_outputs(outputs),
    )
    place = (
        {"device": "CPU", "cold": "", "streams": ""}
        if target.is_cpu
        else {"device": "GPU", "cold": "with a cold L2 ", "streams": _STREAMS}
    )
    return _CONTRACT.format(file=file, language=said, **place)


def write_brief(target: Target, elsewhere: Sequence[str] = ()) -> str:
    """Describe the kernel, the device and the sizes; a long reference is cut before anything else is.

    What is known from `elsewhere`, in lines, comes last.
    """
    head, tail = _write_head(target), _write_tail(target)
    tail += "".join(f"{line}\n" for line in ["", *elsewhere] if elsewhere)
    room = BRIEF_BYTES - len((head + tail).encode()) - len("```python\n```\n") - len(_CUT)
    return f"{head}```python\n{_cut(target.definition.reference.strip(), room)}\n```\n{tail}"


def _write_head(target: Target) -> str:
    definition = target.definition
    constants = ", ".join(f"{name} = {length}" for name, length in definition.const_axes.items())
    lines = [
        f"# {definition.name} ({definition.op_type})",
        *([_shorten(definition.description)] if definition.description else []),
    ]
    lines += ["", "Inputs, in calling order:", *_list_tensors(definition.inputs.items())]
    lines += ["Outputs:", *_list_tensors(definition.outputs.items())]
    lines.append(f"Axes: {constants or 'no constant ones'}; variable: {', '.join(definition.var_axes) or 'none'}")
    if definition.constraints:
        lines.append(f"Constraints: {'; '.join(definition.constraints)}")
    for name, bound in target.bounds.items():
        if bound.to_tolerance().is_by_value:
            share = f", for {bound.hit_ratio:.2%} of the values" if bound.hit_ratio < 1 else ""
            lines.append(
                f"{name} must be within {bound.atol:.3g} x its row's rms + {bound.rtol:.3g} x |value| of the reference's{share}"
            )
    return "\n".join([*lines, "", "Reference, which says what is computed and not how:", ""])


def _list_tensors(specs: Iterable[tuple[str, TensorSpec]]) -> list[str]:
    return [f"- {name}: {spec.dtype.value}{_spell_shape(spec)}{_describe(spec)}" for name, spec in specs]


def _spell_shape(spec: TensorSpec) -> str:
    return " scalar" if spec.shape is None else f"[{', '.join(spec.shape)}]"


def _describe(spec: TensorSpec) -> str:
    return f", {_shorten(spec.description)}" if spec.description else ""


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _write_tail(target: Target) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in target.versions.items())
    capability = f", sm_{target.capability}" if target.capability else ""
    lines = ["", f"## {target.hardware}{capability}{f' ({versions})' if versions else ''}"]
    lines += [f"- {fact}" for fact in list_gpu_facts(target.capability)]
    if target.bandwidth:
        lines.append(f"- measured: {target.bandwidth / 1e12:.2f} TB/s of a copy (read plus written)")
    if target.flops_per_second:
        lines.append(f"- measured: {target.flops_per_second / 1e12:.0f} TFLOP/s in this kernel's arithmetic")
    against = (
        f"baseline ({target.baseline})" if target.baseline else "no baseline was measured on it, the reference counts"
    )
    lines += ["", f"## Sizes that count; {against}", _describe_weights(target), _HEAD]
    return "\n".join([*lines, *_list_shapes(target), ""])


def _describe_weights(target: Target) -> str:
    """Say how the ratios of the sizes become one figure."""
    mean = f"the score is the geometric mean of the ratios to the {'baseline' if target.baseline else 'reference'}"
    if target.is_weighted:
        return f"Weights are shares of what occurs; {mean}, weighted so."
    counted = sum(bool(shape.count) for shape in target.shapes)
    missing = f"only {counted} of {len(target.shapes)} Workloads say" if counted else "no Workload says"
    return f"All weigh the same, since {missing} how often it occurs; {mean}."


def _list_shapes(target: Target) -> list[str]:
    """List the heaviest sizes; all count, and of very many the brief shows some."""
    weights = target.weights
    ranked = sorted(target.shapes, key=lambda shape: -weights[shape.workload])
    lines = [_write_shape(shape, weights[shape.workload]) for shape in ranked[:_MOST_SHAPES]]
    more = len(ranked) - len(lines)
    return [*lines, f"... and {more} lighter ones"] if more else lines


_HEAD = "axes | weight | MB moved | GFLOP | limit us, bound by | baseline us, % of limit | reference us"


def _write_shape(shape: Shape, weight: float) -> str:
    limit = f"{format_us(shape.limit_ms)} {shape.bound}" if shape.limit_ms else "-"
    share = f", {100 * shape.limit_ms / shape.baseline_ms:.0f}%" if shape.limit_ms and shape.baseline_ms else ""
    cells = (
        format_axes(shape.axes),
        f"{weight:.1%}",
        f"{shape.bytes / 1e6:.3g}" if shape.bytes else "-",
        f"{shape.flops / 1e9:.3g}" if shape.bytes else "-",
        limit,
        f"{format_us(shape.baseline_ms)}{share}",
        format_us(shape.reference_ms),
    )
    return " | ".join(cells)


def _cut(text: str, room: int) -> str:
    data = text.encode()
    if len(data) <= room:
        return text
    kept = data[: max(0, room)].decode(errors="ignore")
    return kept[: kept.rfind("\n") + 1] + _CUT.strip("\n")
