"""moe: fused mixture-of-experts layers, from router logits to the weighted sum of this device's experts.

One kernel type for each number format. In all of them an expert's first weight holds the rows of up, then those of
gate, as FlashInfer's trtllm kernels take them: loaders swap the halves of gate_up_proj, and de-interleave gpt-oss's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fib_tools.model.definition import AxisConst, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, TemplateCall, const, scalar, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth
from fib_tools.op_types.low_bit import count_blocks
from fib_tools.op_types.moe_inputs import MOE_INPUT_CODE, MOE_INPUT_RULES
from fib_tools.op_types.moe_parameters import MoeParameters, MoeW4a16Parameters, ScaledMoeParameters
from fib_tools.op_types.moe_references import (
    BF16,
    FP8_BLOCK,
    FP8_TENSOR,
    MXFP4,
    NVFP4,
    W4A16,
    Arithmetic,
    activation_sentence,
    write_moe,
)
from fib_tools.op_types.moe_routing_sources import routing_sentence
from fib_tools.op_types.moe_templates import (
    BF16_API,
    BLOCK_API,
    FP4_API,
    INT4_API,
    TENSOR_API,
    bf16_template,
    block_template,
    has_routing_method,
    int4_template,
    nvfp4_template,
    tensor_template,
)
from fib_tools.op_types.moe_work import moe_work
from fib_tools.op_types.moe_wrappers import blackwell_only, block_moe_ground_truth, plain_moe_ground_truth
from fib_tools.op_types.tolerance import chained, requantised, routed

__all__ = ["OP_TYPE"]

P = TypeVar("P", bound=MoeParameters)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form(Generic[P]):
    """One number format of activations and experts."""

    id: str
    word: str
    """How names begin."""
    sentence: str
    parameters: type[P]
    arithmetic: Arithmetic
    activations: str
    weights: str
    scales: str | None = None
    """Element type of the weights' scales, None without."""
    activation_scales: str | None = None
    block_axis: str = "num_{}_blocks"
    """How the axes of scales are called."""
    group_size: int = 1
    """Values of a row that share a scale."""
    is_block_square: bool = False
    """Whether as many rows share it too."""
    fi_api: str | None
    template: Callable[[P], TemplateCall | None] | None
    sglang_symbols: tuple[str, ...]

    @property
    def packs(self) -> bool:
        return self.weights == "int8"

    def group_of(self, parameters: P) -> int:
        return parameters.group_size if isinstance(parameters, MoeW4a16Parameters) else self.group_size

    def row_axis(self, side: str) -> str:
        """Name the last axis of a weight: hidden or intermediate, packed or plain."""
        return f"num_packed_{side}" if self.packs else f"{side}_size"

    def block(self, side: str) -> str:
        """Name the axis of scales along hidden or intermediate."""
        return self.block_axis.format(side)


def _axes(form: _Form[P], parameters: P) -> dict[str, AxisConst]:
    hidden, inner, out = parameters.hidden_size, parameters.intermediate_size, parameters.gemm1_out_size
    axes = {
        "num_experts": const(parameters.num_experts, "Experts on all devices."),
        "num_local_experts": const(parameters.num_local_experts, "Experts on this device."),
        **({"top_k": const(parameters.top_k, "Experts for each token.")} if parameters.is_given else {}),
        "hidden_size": const(hidden, "Features of a token."),
        "intermediate_size": const(inner, "Features between the two products."),
        "gemm1_out_size": const(out, "Rows of an expert's first weight: up and gate, or one of them without a gate."),
    }
    if form.packs:
        axes["num_packed_hidden"] = const(hidden // 2, "Bytes of hidden_size values of 4 bits.")
        axes["num_packed_intermediate"] = const(inner // 2, "Bytes of intermediate_size values of 4 bits.")
    if form.scales:
        group = form.group_of(parameters)
        what = f"Blocks of {group} along"
        axes[form.block("hidden")] = const(count_blocks(hidden, group), f"{what} hidden_size.")
        axes[form.block("intermediate")] = const(count_blocks(inner, group), f"{what} intermediate_size.")
        if form.is_block_square:
            axes["num_gemm1_out_blocks"] = const(count_blocks(out, group), f"{what} gemm1_out_size.")
    return axes


def _constraints(form: _Form[P], parameters: P) -> list[str]:
    constraints = [
        "num_local_experts <= num_experts",
        "gemm1_out_size == 2 * intermediate_size" if parameters.is_gated else "gemm1_out_size == intermediate_size",
    ]
    if form.packs:
        constraints += ["num_packed_hidden == hidden_size // 2", "num_packed_intermediate == intermediate_size // 2"]
    if form.scales:
        group = form.group_of(parameters)
        sides = {form.block("hidden"): "hidden_size", form.block("intermediate"): "intermediate_size"}
        if form.is_block_square:
            sides["num_gemm1_out_blocks"] = "gemm1_out_size"
        constraints += [f"{blocks} == ({size} + {group - 1}) // {group}" for blocks, size in sides.items()]
    return constraints


def _weight_inputs(form: _Form[P], parameters: P) -> dict[str, TensorSpec]:
    hidden, inner = form.row_axis("hidden"), form.row_axis("intermediate")
    experts = "num_local_experts"
    first_rows, second_rows = (
        ("num_gemm1_out_blocks", "num_hidden_blocks") if form.is_block_square else ("gemm1_out_size", "hidden_size")
    )
    halves = "first the rows of up, then those of gate" if parameters.is_gated else "one row for each feature"
    inputs = {
        "gemm1_weights": tensor(
            form.weights, f"{experts} gemm1_out_size {hidden}", f"The first weight of each local expert: {halves}."
        )
    }
    if form.scales:
        axes = f"{experts} {first_rows} {form.block('hidden')}"
        inputs["gemm1_weights_scale"] = tensor(form.scales, axes, "What each block of gemm1_weights is multiplied by.")
    if parameters.expert_bias:
        inputs["gemm1_bias"] = tensor(
            "float32", f"{experts} gemm1_out_size", "Added to the first product, in the order of its rows."
        )
    inputs["gemm2_weights"] = tensor(
        form.weights, f"{experts} hidden_size {inner}", "The second (down) weight of each local expert."
    )
    if form.scales:
        axes = f"{experts} {second_rows} {form.block('intermediate')}"
        inputs["gemm2_weights_scale"] = tensor(form.scales, axes, "What each block of gemm2_weights is multiplied by.")
    if parameters.expert_bias:
        inputs["gemm2_bias"] = tensor("float32", f"{experts} hidden_size", "Added to the second product.")
    return inputs


def _output_scale_inputs(form: _Form[P], parameters: P) -> dict[str, TensorSpec]:
    names = form.arithmetic.output_scales
    if names is None:
        return {}
    meanings = (
        ("What up is multiplied by", "What gate is multiplied by, before the activation")
        if parameters.is_gated
        else ("What relu(x)^2 is multiplied by", "What the first product is multiplied by")
    )
    texts = (*meanings, "What the second product is multiplied by")
    return {name: tensor("float32", "num_local_experts", f"{text}.") for name, text in zip(names, texts, strict=True)}


def _routing_inputs(parameters: MoeParameters) -> dict[str, TensorSpec]:
    if parameters.is_given:
        return {
            "topk_weights": tensor("float32", "seq_len top_k", "The weight of each chosen expert."),
            "topk_ids": tensor("int32", "seq_len top_k", "The chosen experts."),
        }
    inputs = {"routing_logits": tensor("float32", "seq_len num_experts", "What the router gives each expert.")}
    if parameters.has_bias:
        inputs["routing_bias"] = tensor("bfloat16", "num_experts", "Added to the scores for the choice only.")
    return inputs


def _inputs(form: _Form[P], parameters: P) -> dict[str, TensorSpec]:
    inputs = _routing_inputs(parameters)
    features = "hidden_size" if form.activations != "int8" else "num_packed_hidden"
    inputs["hidden_states"] = tensor(form.activations, f"seq_len {features}", "The tokens.")
    if form.activation_scales:
        blocks = form.block("hidden")
        axes = f"{blocks} seq_len" if form.is_block_square else f"seq_len {blocks}"
        inputs["hidden_states_scale"] = tensor(
            form.activation_scales, axes, "What each block of a token is multiplied by."
        )
    return {
        **inputs,
        **_weight_inputs(form, parameters),
        **_output_scale_inputs(form, parameters),
        "local_expert_offset": scalar("int32", "The id of the first local expert."),
        "routed_scaling_factor": scalar("float32", "What the weights of experts are multiplied by; 1 for none."),
    }


def _define(form: _Form[P], parameters: P) -> Definition:
    inputs = _inputs(form, parameters)
    return Definition(
        name=format_name(*parameters.name_pieces(form.word)),
        description=(
            f"Fused mixture of experts, {form.sentence}. {routing_sentence(parameters)} "
            f"{activation_sentence(parameters)} Experts outside [local_expert_offset, local_expert_offset + "
            "num_local_experts) add nothing."
            + (" The weight multiplies the input of an expert." if parameters.routing == "llama4" else "")
        ),
        op_type="moe",
        axes={"seq_len": var("Tokens."), **_axes(form, parameters)},
        constraints=_constraints(form, parameters),
        inputs=inputs,
        outputs={"output": tensor("bfloat16", "seq_len hidden_size", "The weighted sum of the local experts.")},
        reference=write_moe(form.arithmetic, parameters, arguments=list(inputs), group_size=form.group_of(parameters)),
    )


def _ground_truth(form: _Form[P], parameters: P) -> GroundTruth:
    arguments = list(_inputs(form, parameters))
    if form.id == "moe_fp8_block_scale":
        return block_moe_ground_truth(parameters, arguments)
    if form.id == "moe_bf16":
        return plain_moe_ground_truth(parameters, arguments)
    return blackwell_only(f"{form.fi_api}, the kernel of this format that takes plain weights,")


def _kernel(form: _Form[P]) -> KernelType[P]:
    return KernelType(
        id=form.id,
        op_type="moe",
        summary=f"routing and experts, {form.sentence}",
        parameters=form.parameters,
        define=partial(_define, form),
        fi_api=form.fi_api,
        fi_covers=has_routing_method,
        template=form.template,
        sglang_symbols=form.sglang_symbols,
        ground_truth=partial(_ground_truth, form),
        policy=routed(chained if form.id == "moe_bf16" else requantised),
    )


_FP8 = "float8_e4m3fn"
_TRITON = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe.fused_experts"
_CUTLASS = "flashinfer.fused_moe.cutlass_fused_moe"

_BLOCK_FORM = _Form(
    id="moe_fp8_block_scale",
    word="moe_fp8_block_scale",
    sentence="e4m3 with scales of 1x128 blocks of tokens and 128x128 blocks of weights",
    parameters=MoeParameters,
    arithmetic=FP8_BLOCK,
    activations=_FP8,
    activation_scales="float32",
    weights=_FP8,
    scales="float32",
    group_size=128,
    is_block_square=True,
    fi_api=BLOCK_API,
    template=block_template,
    sglang_symbols=(
        "deep_gemm.m_grouped_fp8_gemm_nt_contiguous",
        "flashinfer.fused_moe.trtllm_fp8_block_scale_moe",
        _TRITON,
    ),
)
_TENSOR_FORM = _Form(
    id="moe_fp8_tensor",
    word="moe_fp8_per_tensor",
    sentence="e4m3 with one scale for each product of an expert",
    parameters=ScaledMoeParameters,
    arithmetic=FP8_TENSOR,
    activations=_FP8,
    weights=_FP8,
    fi_api=TENSOR_API,
    template=tensor_template,
    sglang_symbols=("flashinfer.fused_moe.trtllm_fp8_per_tensor_scale_moe", _CUTLASS, _TRITON),
)
_NVFP4_FORM = _Form(
    id="moe_nvfp4",
    word="moe_nvfp4",
    sentence="NVFP4: two e2m1 to a byte, the first in the low half, an e4m3 scale for 16, and scales of each product",
    parameters=ScaledMoeParameters,
    arithmetic=NVFP4,
    activations="int8",
    activation_scales=_FP8,
    weights="int8",
    scales=_FP8,
    block_axis="num_fp4_{}_blocks",
    group_size=16,
    fi_api=FP4_API,
    template=nvfp4_template,
    sglang_symbols=("flashinfer.fused_moe.trtllm_fp4_block_scale_moe", _CUTLASS),
)
_MXFP4_FORM = _Form(
    id="moe_mxfp4",
    word="moe_mxfp4",
    sentence="MXFP4 weights: two e2m1 to a byte, the first in the low half, an e8m0 scale for 32; bfloat16 tokens",
    parameters=MoeParameters,
    arithmetic=MXFP4,
    activations="bfloat16",
    weights="int8",
    scales="int8",
    block_axis="num_fp4_{}_blocks",
    group_size=32,
    fi_api=FP4_API,
    template=None,
    sglang_symbols=("flashinfer.fused_moe.trtllm_fp4_block_scale_moe", "triton_kernels.matmul_ogs.matmul_ogs"),
)
_BF16_FORM = _Form(
    id="moe_bf16",
    word="moe_bf16",
    sentence="bfloat16",
    parameters=MoeParameters,
    arithmetic=BF16,
    activations="bfloat16",
    weights="bfloat16",
    fi_api=BF16_API,
    template=bf16_template,
    sglang_symbols=("flashinfer.fused_moe.trtllm_bf16_moe", _CUTLASS, _TRITON),
)
_W4A16_FORM = _Form(
    id="moe_w4a16",
    word="moe_w4a16",
    sentence="weights of 4-bit integers, two's complement, two to a byte, the first in the low half, and bfloat16 tokens",
    parameters=MoeW4a16Parameters,
    arithmetic=W4A16,
    activations="bfloat16",
    weights="int8",
    scales="bfloat16",
    block_axis="num_mxint4_{}_blocks",
    group_size=32,
    fi_api=INT4_API,
    template=int4_template,
    sglang_symbols=(
        "flashinfer.fused_moe.trtllm_mxint4_block_scale_moe",
        "sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe.fused_marlin_moe",
    ),
)

OP_TYPE = OpType(
    name="moe",
    kernels=(
        _kernel(_BLOCK_FORM),
        _kernel(_TENSOR_FORM),
        _kernel(_NVFP4_FORM),
        _kernel(_MXFP4_FORM),
        _kernel(_BF16_FORM),
        _kernel(_W4A16_FORM),
    ),
    input_rules=MOE_INPUT_RULES,
    packed=frozenset({"gemm1_weights", "gemm2_weights"}),
    input_code=MOE_INPUT_CODE,
    test_sizes={"seq_len": (48, 512)},
    axis_sizes={"seq_len": 4},
    work=moe_work,
)
