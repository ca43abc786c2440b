"""The norms of op_type `rmsnorm` that FlashInfer has no kernel for: without weight, and with an output gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fib_tools.model.definition import Axis, Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.tolerance import rounded

__all__ = ["RMSNORM_GATED", "RMSNORM_NOWEIGHT", "GatedRmsNormParameters", "NoWeightRmsNormParameters"]


class NoWeightRmsNormParameters(Parameters):
    """The size and constants of one norm without a learned scale."""

    silent: ClassVar[Mapping[str, Any]] = {"eps": 1e-6}

    hidden_size: int = Field(gt=0)
    eps: float = Field(default=1e-6, gt=0)
    dtype: str = "bfloat16"


class GatedRmsNormParameters(NoWeightRmsNormParameters):
    """The size, order and groups of one gated norm."""

    group_size: int | None = Field(default=None, gt=0)
    """Elements that are normalised together; None for the whole row."""
    norm_before_gate: bool = True
    """True where the normalised row is gated (gated delta net), False where the gated row is normalised (Mamba-2)."""
    activation: Literal["silu", "sigmoid"] = "silu"

    @model_validator(mode="after")
    def _validate_groups_divide_the_row(self) -> GatedRmsNormParameters:
        if self.group_size is not None and self.hidden_size % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide hidden_size {self.hidden_size}")
        return self


_NOWEIGHT = """
    @torch.no_grad()
    def run(hidden_states):
        x = hidden_states.to(torch.float32)
        return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)).to(hidden_states.dtype)
"""

_GATED = """
    @torch.no_grad()
    def run(hidden_states, gate, weight):
        x = hidden_states.to(torch.float32)
        opening = {activation}(gate.to(torch.float32))
        {before}groups = x.reshape(len(x), NUM_GROUPS, -1)
        groups = groups * torch.rsqrt(groups.square().mean(dim=-1, keepdim=True) + EPS)
        y = groups.reshape(x.shape) * weight.to(torch.float32)
        return {result}.to(hidden_states.dtype)
"""


def _axes(hidden_size: int) -> dict[str, Axis]:
    return {
        "batch_size": var("Rows: tokens, or tokens times heads for a norm over heads."),
        "hidden_size": const(hidden_size, "Elements of one row."),
    }


def _define_noweight(parameters: NoWeightRmsNormParameters) -> Definition:
    def rows(description: str) -> Any:
        return tensor(parameters.dtype, "batch_size hidden_size", description)

    return Definition(
        name=format_name("rmsnorm_noweight", ("h", parameters.hidden_size)),
        description=f"RMSNorm without a learned scale: x / sqrt(mean(x^2) + eps), eps = {parameters.eps}.",
        op_type="rmsnorm",
        axes=_axes(parameters.hidden_size),
        inputs={"hidden_states": rows("The rows to normalise.")},
        outputs={"output": rows("The normalised rows.")},
        reference=source(_NOWEIGHT, EPS=parameters.eps),
    )


def _gated_reference(parameters: GatedRmsNormParameters) -> str:
    body = _GATED.format(
        activation={"silu": "F.silu", "sigmoid": "torch.sigmoid"}[parameters.activation],
        before="" if parameters.norm_before_gate else "x = x * opening\n        ",
        result="(y * opening)" if parameters.norm_before_gate else "y",
    )
    num_groups = 1 if parameters.group_size is None else parameters.hidden_size // parameters.group_size
    return source(body, EPS=parameters.eps, NUM_GROUPS=num_groups)


def _gated_formula(parameters: GatedRmsNormParameters) -> str:
    opening = f"{parameters.activation}(gate)"
    if parameters.norm_before_gate:
        return f"norm(x) * weight * {opening}"
    return f"norm(x * {opening}) * weight"


def _define_gated(parameters: GatedRmsNormParameters) -> Definition:
    def rows(description: str) -> Any:
        return tensor(parameters.dtype, "batch_size hidden_size", description)

    group = parameters.group_size
    over = "" if group is None else f" over groups of {group} elements"
    return Definition(
        name=format_name(
            "rmsnorm_gated",
            "" if parameters.norm_before_gate else "gate_first",
            "" if parameters.activation == "silu" else parameters.activation,
            ("h", parameters.hidden_size),
            "" if group is None else ("g", group),
        ),
        description=f"Gated RMSNorm: {_gated_formula(parameters)}, norm(x) = x / sqrt(mean(x^2) + eps){over}, eps = {parameters.eps}.",
        op_type="rmsnorm",
        axes=_axes(parameters.hidden_size),
        inputs={
            "hidden_states": rows("The rows to normalise."),
            "gate": rows("The gate, before its activation."),
            "weight": tensor(parameters.dtype, "hidden_size", "The learned scale."),
        },
        outputs={"output": rows("The gated, normalised rows.")},
        reference=_gated_reference(parameters),
    )


_NOWEIGHT_KERNEL = """
    @torch.no_grad()
    def run(hidden_states):
        # The kernel always multiplies by a weight; one of ones changes nothing.
        weight = torch.ones(hidden_states.shape[-1], dtype=hidden_states.dtype, device=hidden_states.device)
        return flashinfer.norm.rmsnorm(hidden_states, weight, eps=EPS)
"""

_GATED_KERNEL = """
    @torch.no_grad()
    def run(hidden_states, gate, weight):
        return rms_norm_gated(
            x=hidden_states,
            weight=weight,
            bias=None,
            z=gate,
            eps=EPS,
            group_size=GROUP_SIZE,
            norm_before_gate=NORM_BEFORE_GATE,
            is_rms_norm=True,
            activation=ACTIVATION,
        )
"""


def _noweight_ground_truth(parameters: NoWeightRmsNormParameters) -> GroundTruth:
    wrapper = Wrapper(
        kind="flashinfer",
        api="flashinfer.norm.rmsnorm",
        imports=("import flashinfer",),
        constants={"EPS": parameters.eps},
        body=_NOWEIGHT_KERNEL,
    )
    return GroundTruth(wrappers=(wrapper,))


def _gated_ground_truth(parameters: GatedRmsNormParameters) -> GroundTruth:
    constants = {
        "EPS": parameters.eps,
        "GROUP_SIZE": parameters.group_size,
        "NORM_BEFORE_GATE": parameters.norm_before_gate,
        "ACTIVATION": "swish" if parameters.activation == "silu" else parameters.activation,
    }
    module = "sglang.kernels.ops.attention.fla.layernorm_gated"
    wrapper = Wrapper(
        kind="sglang",
        api=f"{module}.rms_norm_gated",
        imports=(f"from {module} import rms_norm_gated",),
        constants=constants,
        body=_GATED_KERNEL,
    )
    return GroundTruth(wrappers=(wrapper,))


RMSNORM_NOWEIGHT = KernelType(
    id="rmsnorm_noweight",
    op_type="rmsnorm",
    summary="x / sqrt(mean(x^2) + eps)",
    parameters=NoWeightRmsNormParameters,
    define=_define_noweight,
    sglang_symbols=("sglang.srt.layers.layernorm.RMSNormWithoutScale",),
    ground_truth=_noweight_ground_truth,
    policy=rounded,
)

RMSNORM_GATED = KernelType(
    id="rmsnorm_gated",
    op_type="rmsnorm",
    summary="norm(x) * weight * silu(gate), or the gate first",
    parameters=GatedRmsNormParameters,
    define=_define_gated,
    sglang_symbols=(
        "sglang.kernels.ops.attention.fla.layernorm_gated.RMSNorm",
        "sglang.kernels.ops.attention.fla.fused_norm_gate.rms_norm_gated",
    ),
    ground_truth=_gated_ground_truth,
    policy=rounded,
)
