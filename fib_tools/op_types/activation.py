"""activation: the element-wise step between the projections of a feed-forward block.

Gated forms take gate and up side by side in one tensor, [tokens, 2 * intermediate]; Shazeer, GLU Variants Improve
Transformer (2020).
The clamped form of gpt-oss has them interleaved: gate at even, up at odd positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import Axis, Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import (
    KernelType,
    MetaTensor,
    OpType,
    Parameters,
    TemplateCall,
    const,
    source,
    tensor,
    var,
)
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.tolerance import rounded

__all__ = ["OP_TYPE", "ActivationParameters", "SwigluOaiParameters"]


class ActivationParameters(Parameters):
    """The size of one activation."""

    intermediate_size: int = Field(gt=0)
    dtype: str = "bfloat16"


class SwigluOaiParameters(ActivationParameters):
    """The size and constants of the clamped SwiGLU of gpt-oss."""

    silent: ClassVar[Mapping[str, Any]] = {"alpha": 1.702, "limit": 7.0}

    alpha: float = Field(default=1.702, gt=0)
    limit: float = Field(default=7.0, gt=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One activation: its formula, and the expression that the reference returns in float32."""

    id: str
    formula: str
    expression: str
    letter: str = "i"
    """Of the row's length in names: `h` where published names have that."""
    gated: bool = True
    interleaved: bool = False
    in_flashinfer: bool = False
    torch_call: str = ""
    """In torch.nn.functional, where that is the kernel people run."""
    sglang_symbols: tuple[str, ...] = ()


_FORMS = (
    _Form(
        id="silu_and_mul",
        formula="silu(gate) * up",
        expression="F.silu(gate) * up",
        in_flashinfer=True,
        sglang_symbols=("sgl_kernel.silu_and_mul", "sglang.kernels.ops.activation.activation.silu_and_mul"),
    ),
    _Form(
        id="gelu_and_mul",
        formula="gelu(gate) * up, with the exact (erf) GELU",
        expression="F.gelu(gate) * up",
        in_flashinfer=True,
        sglang_symbols=("sgl_kernel.gelu_and_mul", "sglang.kernels.ops.activation.activation.gelu_and_mul"),
    ),
    _Form(
        id="gelu_tanh_and_mul",
        formula="gelu(gate) * up, with the tanh approximation of GELU",
        expression='F.gelu(gate, approximate="tanh") * up',
        in_flashinfer=True,
        sglang_symbols=("sgl_kernel.gelu_tanh_and_mul", "sglang.kernels.ops.activation.activation.gelu_tanh_and_mul"),
    ),
    _Form(
        id="silu",
        formula="silu(x) = x * sigmoid(x)",
        expression="F.silu(x)",
        letter="h",
        gated=False,
        torch_call="silu(input)",
    ),
    _Form(
        id="gelu",
        formula="gelu(x), exact (erf)",
        expression="F.gelu(x)",
        letter="h",
        gated=False,
        torch_call="gelu(input)",
    ),
    _Form(
        id="gelu_tanh",
        formula="gelu(x), with the tanh approximation",
        expression='F.gelu(x, approximate="tanh")',
        letter="h",
        gated=False,
        torch_call='gelu(input, approximate="tanh")',
    ),
    _Form(
        id="relu2",
        formula="max(x, 0)^2",
        expression="x.clamp(min=0).square()",
        gated=False,
        sglang_symbols=("sglang.kernels.ops.activation.activation.relu2",),
    ),
    _Form(
        id="swiglu_oai",
        formula="gate * sigmoid(alpha * gate) * (up + 1), gate clamped to at most limit, up to [-limit, limit]",
        expression="gate * torch.sigmoid(ALPHA * gate) * (up + 1)",
        interleaved=True,
        sglang_symbols=("sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe.swiglu_gpt_oss_sigmoid_alpha",),
    ),
)


def _reference(form: _Form, parameters: ActivationParameters) -> str:
    lines = ["x = input.to(torch.float32)"]
    if form.gated:
        lines.append("gate, up = " + ("x[..., 0::2], x[..., 1::2]" if form.interleaved else "x.chunk(2, dim=-1)"))
    constants: dict[str, object] = {}
    if isinstance(parameters, SwigluOaiParameters):
        lines += ["gate = gate.clamp(max=LIMIT)", "up = up.clamp(min=-LIMIT, max=LIMIT)"]
        constants = {"ALPHA": parameters.alpha, "LIMIT": parameters.limit}
    lines.append(f"return ({form.expression}).to(input.dtype)")
    body = "\n".join(["@torch.no_grad()", "def run(input):", *(f"    {line}" for line in lines)])
    return source(body, **constants)


def _define(form: _Form, parameters: ActivationParameters) -> Definition:
    size = parameters.intermediate_size
    axes: dict[str, Axis] = {
        "num_tokens": var("Rows: tokens, or tokens routed to an expert."),
        "intermediate_size": const(size, "Elements of one output row."),
    }
    columns, constraints = "intermediate_size", []
    if form.gated:
        columns, constraints = "gate_up_size", ["gate_up_size == 2 * intermediate_size"]
        axes["gate_up_size"] = const(2 * size, "Elements of one input row: gate and up together.")
    order = "interleaved, gate first" if form.interleaved else "the gate half first"
    what = f"Gate and up, {order}." if form.gated else "The rows to activate."
    constants = ""
    if isinstance(parameters, SwigluOaiParameters):
        constants = f" with alpha = {parameters.alpha}, limit = {parameters.limit}"
    return Definition(
        name=format_name(form.id, (form.letter, size)),
        description=f"{form.formula}{constants}.",
        op_type="activation",
        axes=axes,
        constraints=constraints,
        inputs={"input": tensor(parameters.dtype, f"num_tokens {columns}", what)},
        outputs={"output": tensor(parameters.dtype, "num_tokens intermediate_size", "The activated rows.")},
        reference=_reference(form, parameters),
    )


def _template(form: _Form, parameters: ActivationParameters) -> TemplateCall:
    rows = MetaTensor(shape=(4, 2 * parameters.intermediate_size), dtype=parameters.dtype)
    return TemplateCall(fi_api=f"flashinfer.activation.{form.id}", arguments={"input": rows})


_KERNELS: Mapping[str, str] = {
    "relu2": "return relu2(input)",
    "swiglu_oai": "return swiglu_gpt_oss_sigmoid_alpha(input, ALPHA, LIMIT)",
}
"""How SGLang's functions are called; those of FlashInfer take the input alone."""


def _ground_truth(form: _Form, parameters: ActivationParameters) -> GroundTruth:
    if form.torch_call:
        body = f"@torch.no_grad()\ndef run(input):\n    return torch.nn.functional.{form.torch_call}"
        api = f"torch.nn.functional.{form.torch_call.partition('(')[0]}"
        return GroundTruth(wrappers=(Wrapper(kind="torch", api=api, body=body),))
    api = f"flashinfer.activation.{form.id}" if form.in_flashinfer else form.sglang_symbols[-1]
    module, _, name = api.rpartition(".")
    constants: dict[str, object] = {}
    if isinstance(parameters, SwigluOaiParameters):
        constants = {"ALPHA": parameters.alpha, "LIMIT": parameters.limit}
    line = f"return flashinfer.activation.{form.id}(input)"
    wrapper = Wrapper(
        kind="flashinfer" if form.in_flashinfer else "sglang",
        api=api,
        imports=("import flashinfer" if form.in_flashinfer else f"from {module} import {name}",),
        constants=constants,
        body=f"@torch.no_grad()\ndef run(input):\n    {_KERNELS.get(form.id, line)}",
    )
    return GroundTruth(wrappers=(wrapper,))


def _kernel(form: _Form) -> KernelType[Any]:
    return KernelType(
        id=form.id,
        op_type="activation",
        summary=form.formula,
        parameters=SwigluOaiParameters if form.id == "swiglu_oai" else ActivationParameters,
        define=partial(_define, form),
        fi_api=f"flashinfer.activation.{form.id}" if form.in_flashinfer else None,
        template=partial(_template, form) if form.in_flashinfer else None,
        sglang_symbols=form.sglang_symbols,
        ground_truth=partial(_ground_truth, form),
        policy=rounded,
    )


OP_TYPE = OpType(name="activation", kernels=tuple(_kernel(form) for form in _FORMS))
