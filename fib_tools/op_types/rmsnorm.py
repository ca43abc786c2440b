"""rmsnorm: root mean square normalisation, plain and with the residual add fused in.

Zhang and Sennrich, Root Mean Square Layer Normalization (2019): y = x / sqrt(mean(x^2) + eps) * w.
Gemma stores w - 1, so its kernels multiply by (1 + w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import Definition, TensorSpec
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
from fib_tools.op_types.rmsnorm_gated import RMSNORM_GATED, RMSNORM_NOWEIGHT
from fib_tools.op_types.tolerance import rounded

__all__ = ["OP_TYPE", "RmsNormParameters"]


class RmsNormParameters(Parameters):
    """The size and constants of one norm."""

    silent: ClassVar[Mapping[str, Any]] = {"eps": 1e-6}

    hidden_size: int = Field(gt=0)
    eps: float = Field(default=1e-6, gt=0)
    dtype: str = "bfloat16"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One of the four norms: with or without the residual add, with weight or 1 + weight."""

    id: str
    fused: bool
    weight_offset: float

    @property
    def fi_api(self) -> str:
        return f"flashinfer.norm.{self.id}"

    @property
    def formula(self) -> str:
        scale = "(1 + weight)" if self.weight_offset else "weight"
        return f"x / sqrt(mean(x^2) + eps) * {scale}" + (" with x = hidden_states + residual" if self.fused else "")


_NORM = """
    @torch.no_grad()
    def run(hidden_states, weight):
        x = hidden_states.to(torch.float32)
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)
        return (x * scale * (weight.to(torch.float32) + WEIGHT_OFFSET)).to(hidden_states.dtype)
"""

_FUSED_ADD = """
    @torch.no_grad()
    def run(hidden_states, residual, weight):
        x = hidden_states.to(torch.float32) + residual.to(torch.float32)
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)
        output = (x * scale * (weight.to(torch.float32) + WEIGHT_OFFSET)).to(hidden_states.dtype)
        return output, x.to(residual.dtype)
"""


def _define(form: _Form, parameters: RmsNormParameters) -> Definition:
    def rows(description: str) -> TensorSpec:
        return tensor(parameters.dtype, "batch_size hidden_size", description)

    inputs = {"hidden_states": rows("The rows to normalise.")}
    outputs = {"output": rows("The normalised rows.")}
    if form.fused:
        inputs["residual"] = rows("The residual stream, added before normalising.")
        outputs["residual_output"] = rows("The sum: the residual stream from here on.")
    inputs["weight"] = tensor(parameters.dtype, "hidden_size", "The learned scale.")
    return Definition(
        name=format_name(form.id, ("h", parameters.hidden_size)),
        description=f"RMSNorm: {form.formula}, eps = {parameters.eps}.",
        op_type="rmsnorm",
        axes={
            "batch_size": var("Rows: tokens, or tokens times heads for a norm over heads."),
            "hidden_size": const(parameters.hidden_size, "Elements that are normalised together."),
        },
        inputs=inputs,
        outputs=outputs,
        reference=source(_FUSED_ADD if form.fused else _NORM, EPS=parameters.eps, WEIGHT_OFFSET=form.weight_offset),
    )


def _template(form: _Form, parameters: RmsNormParameters) -> TemplateCall:
    rows = MetaTensor(shape=(4, parameters.hidden_size), dtype=parameters.dtype)
    weight = MetaTensor(shape=(parameters.hidden_size,), dtype=parameters.dtype)
    residual = {"residual": rows} if form.fused else {}
    arguments = {"input": rows, **residual, "weight": weight, "eps": parameters.eps}
    return TemplateCall(fi_api=form.fi_api, arguments=arguments)


_NORM_KERNEL = """
    @torch.no_grad()
    def run(hidden_states, weight):
        return flashinfer.norm.{id}(hidden_states, weight, eps=EPS)
"""

_FUSED_ADD_KERNEL = """
    @torch.no_grad()
    def run(hidden_states, residual, weight):
        # The kernel writes over both, as an engine wants it.
        output, residual_output = hidden_states.clone(), residual.clone()
        flashinfer.norm.{id}(output, residual_output, weight, eps=EPS)
        return output, residual_output
"""


def _ground_truth(form: _Form, parameters: RmsNormParameters) -> GroundTruth:
    body = (_FUSED_ADD_KERNEL if form.fused else _NORM_KERNEL).format(id=form.id)
    return GroundTruth(
        wrappers=(
            Wrapper(
                kind="flashinfer",
                api=form.fi_api,
                imports=("import flashinfer",),
                constants={"EPS": parameters.eps},
                body=body,
            ),
        )
    )


def _kernel(form: _Form) -> KernelType[RmsNormParameters]:
    return KernelType(
        id=form.id,
        op_type="rmsnorm",
        summary=form.formula,
        parameters=RmsNormParameters,
        define=partial(_define, form),
        fi_api=form.fi_api,
        template=partial(_template, form),
        sglang_symbols=(f"sgl_kernel.{form.id}",),
        ground_truth=partial(_ground_truth, form),
        policy=rounded,
    )


OP_TYPE = OpType(
    name="rmsnorm",
    kernels=(
        _kernel(_Form(id="rmsnorm", fused=False, weight_offset=0.0)),
        _kernel(_Form(id="gemma_rmsnorm", fused=False, weight_offset=1.0)),
        _kernel(_Form(id="fused_add_rmsnorm", fused=True, weight_offset=0.0)),
        _kernel(_Form(id="gemma_fused_add_rmsnorm", fused=True, weight_offset=1.0)),
        RMSNORM_NOWEIGHT,
        RMSNORM_GATED,
    ),
    input_code={
        "hidden_states": "draw.rows_of_many_sizes({shape}, {dtype})",
        "residual": "draw.rows_of_many_sizes({shape}, {dtype})",
    },
)
