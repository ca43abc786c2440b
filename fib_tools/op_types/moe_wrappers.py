"""The ground truth of fused MoE: SGLang's Triton experts on any GPU, and FlashInfer's CUTLASS experts for bfloat16.

FlashInfer's trtllm kernels, which the Definitions describe, run on Blackwell only; that of e4m3 with block scales takes
weights as they are, the others in an order of their own. SGLang's layer reads its server's arguments, so the wrapper
calls what that layer calls: alignment of tokens to experts, product, activation, product.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fib_tools.op_types.ground_truth import AMPERE_ON, BLACKWELL, HOPPER_ON, GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.moe_parameters import MoeParameters, RoutingParameters
from fib_tools.op_types.moe_templates import block_template

__all__ = [
    "blackwell_only",
    "block_moe_ground_truth",
    "find_routing_call",
    "plain_moe_ground_truth",
    "routing_ground_truth",
]

_FUSED_TOPK = """
def choose({arguments}):
    weights = routing_logits.new_empty(len(routing_logits), TOP_K, dtype=torch.float32)
    experts = torch.empty_like(weights, dtype=torch.int32)
    fused_topk_deepseek(
        routing_logits, routing_bias.float(), N_GROUP, TOPK_GROUP, TOP_K, routed_scaling_factor, weights, experts
    )
    return weights, experts
"""

_GATE = """
def choose({arguments}):
    {bias}return moe_fused_gate(
        routing_logits, {bias_value}, TOP_K, scoring_func=SCORING, renormalize=RENORMALIZE,
        routed_scaling_factor=routed_scaling_factor, apply_routed_scaling_factor_on_output=True,
        num_expert_group=N_GROUP, topk_group=TOPK_GROUP,
    )
"""

_TOPK_SOFTMAX = """
def choose({arguments}):
    weights = routing_logits.new_empty(len(routing_logits), TOP_K, dtype=torch.float32)
    experts = torch.empty_like(weights, dtype=torch.int32)
    sgl_kernel.topk_softmax(weights, experts, routing_logits, renormalize=RENORMALIZE)
    return weights * routed_scaling_factor, experts
"""

_SCORING: Mapping[str, str] = {
    "ds": "sigmoid",
    "sigmoid_bias": "sigmoid",
    "sigmoid": "sigmoid",
    "sqrtsoftplus_bias": "sqrtsoftplus",
}
_SOFTMAX = ("default", "renormalize", "renormalize_naive")


def _fits_fused_topk(parameters: RoutingParameters) -> bool:
    """Tell whether FlashInfer's kernel is instantiated for the sizes; its docstring lists the bounds.

    It also refuses one group with more experts than one (`topk_group * n_group >= topk`), so not Kimi K2's choice.
    """
    groups, kept = parameters.groups
    size = parameters.num_experts // groups
    fits = parameters.num_experts <= 384 if groups == 1 else size <= 32 and size * kept <= 128 and groups <= 32
    fits = fits and kept * groups >= parameters.top_k
    return parameters.routing == "ds" and parameters.norm_topk_prob and parameters.top_k <= 8 and fits


def find_routing_call(parameters: RoutingParameters) -> Wrapper | None:
    """Find a kernel that chooses experts, as a wrapper whose body defines `choose`."""
    bias = ["routing_bias"] if parameters.has_bias else []
    arguments = ", ".join(["routing_logits", *bias, "routed_scaling_factor"])
    groups = dict(zip(("N_GROUP", "TOPK_GROUP"), parameters.groups, strict=True))
    if _fits_fused_topk(parameters):
        api = "flashinfer.fused_moe.fused_topk_deepseek"
        text, constants = _FUSED_TOPK, {"TOP_K": parameters.top_k, **groups}
        return _import_from("flashinfer", api, text.format(arguments=arguments), constants, (89, *HOPPER_ON))
    if parameters.routing in _SOFTMAX:
        constants = {"TOP_K": parameters.top_k, "RENORMALIZE": parameters.routing != "default"}
        return Wrapper(
            kind="sglang",
            api="sgl_kernel.topk_softmax",
            imports=("import sgl_kernel",),
            body=_TOPK_SOFTMAX.format(arguments=arguments),
            constants=constants,
        )
    if parameters.routing not in _SCORING:
        return None
    scoring = {"SCORING": _SCORING[parameters.routing], "RENORMALIZE": parameters.normalizes}
    none = "bias = torch.zeros_like(routing_logits[0], dtype=torch.float32)\n    "
    line, value = ("", "routing_bias.float()") if parameters.has_bias else (none, "bias")
    body = _GATE.format(arguments=arguments, bias=line, bias_value=value)
    api = "sglang.kernels.ops.moe.moe_fused_gate.moe_fused_gate"
    return _import_from("sglang", api, body, {"TOP_K": parameters.top_k, **scoring, **groups}, AMPERE_ON)


def _import_from(
    kind: Any, api: str, body: str, constants: Mapping[str, Any], capabilities: tuple[int, ...]
) -> Wrapper:
    module, _, name = api.rpartition(".")
    line = f"from {module} import {name}"
    return Wrapper(kind=kind, api=api, imports=(line,), body=body, constants=constants, capabilities=capabilities)


def routing_ground_truth(parameters: RoutingParameters) -> GroundTruth:
    """Call the router's kernel alone."""
    found = find_routing_call(parameters)
    if found is None:
        return no_kernel(f"neither FlashInfer nor SGLang has a kernel of {parameters.routing} routing on its own")
    body = found.body.replace("def choose(", "@torch.no_grad()\ndef run(", 1)
    return GroundTruth(wrappers=(replace(found, body=body),))


_TRITON = """
def product(x, x_scale, weight, scale, out, chosen, *, last):
    weights, experts, rows, blocks, count = chosen
    invoke_fused_moe_kernel(
        x, weight, None, out, x_scale, scale, None, weights, experts, rows, blocks, count, last,
        1 if last else experts.shape[1], CONFIG, compute_type=triton.language.bfloat16, use_fp8_w8a8={fp8},
        use_int8_w8a8=False, use_int8_w8a16=False, use_int4_w4a16=False, per_channel_quant=False,
        block_shape={block},
    )


@torch.no_grad()
def run({arguments}):
    weights, experts = choose({routed})
    # Ids of other devices' experts become -1, which the kernels skip.
    local = experts - local_expert_offset
    local = torch.where((local >= 0) & (local < len(gemm1_weights)), local, -1).to(torch.int32)
    # SGLang's loader puts gate before up.
    {swap}
    chosen = (weights, local, *moe_align_block_size(local, CONFIG["BLOCK_SIZE_M"], len(gate_up)))
    made = dict(dtype=torch.bfloat16, device=hidden_states.device)
    {first}
    inner = sgl_kernel.silu_and_mul(inner)
    parts = torch.zeros(*experts.shape, gemm2_weights.shape[1], **made)
    {second}
    return parts.sum(dim=1)
"""

_FIRST = (
    "inner = torch.zeros(experts.numel(), gate_up.shape[1], **made)\n"
    "    product(hidden_states, {scale}, gate_up, {weight_scale}, inner, chosen, last=False)"
)
_MODULE = "sglang.srt.layers.moe.moe_runner.triton_utils"
_CONFIG = {
    "BLOCK_SIZE_M": 64,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 32,
    "num_warps": 4,
    "num_stages": 3,
}
"""SGLang's default for blocks of 128, where it has no tuned one."""


def _rows(arguments: list[str]) -> str:
    """Break the arguments over lines where they are too many for one."""
    rows = textwrap.wrap(f"{', '.join(arguments)},", width=108)
    return ", ".join(arguments) if len(rows) == 1 else "\n    " + "\n    ".join(rows) + "\n"


def _find_gap(parameters: MoeParameters) -> str:
    if parameters.activation != "swiglu" or parameters.expert_bias or parameters.swiglu_limit is not None:
        return "this wrapper knows plain SwiGLU without biases only"
    if parameters.routing == "llama4":
        return "this wrapper weights the output of an expert, Llama 4 its input"
    if not parameters.is_given and find_routing_call(parameters) is None:
        return f"no kernel of {parameters.routing} routing"
    return ""


def _router(parameters: MoeParameters) -> tuple[Wrapper, str]:
    """Give what defines `choose`, and what it is called with."""
    if parameters.is_given:
        body = "\ndef choose(weights, experts, scaling):\n    return weights * scaling, experts\n"
        return Wrapper(kind="torch", api="", body=body), "topk_weights, topk_ids, routed_scaling_factor"
    found = find_routing_call(parameters)
    if found is None:  # _find_gap has seen to it
        raise ValueError(f"no kernel of {parameters.routing} routing")
    bias = ", routing_bias" if parameters.has_bias else ""
    return found, f"routing_logits{bias}, routed_scaling_factor"


def _triton(parameters: MoeParameters, arguments: list[str], body: Mapping[str, str]) -> Wrapper:
    router, routed = _router(parameters)
    text = _TRITON.format(arguments=_rows(arguments), routed=routed, **body)
    return Wrapper(
        kind="sglang",
        api=f"{_MODULE}.fused_moe.fused_experts",
        imports=(
            "import sgl_kernel",
            "import triton",
            f"from {_MODULE}.fused_moe import invoke_fused_moe_kernel, moe_align_block_size",
            *(line for line in router.imports if line != "import sgl_kernel"),
            *(
                ("from sglang.kernels.ops.quantization.fp8_kernel import per_token_group_quant_fp8",)
                * ("group_quant" in text)
            ),
        ),
        constants={**router.constants, "CONFIG": _CONFIG},
        body=f"{router.body.strip()}\n\n\n{text.strip()}",
        capabilities=HOPPER_ON,
    )


_TRTLLM = """
@torch.no_grad()
def run({arguments}):
    return trtllm_fp8_block_scale_moe(
        routing_logits, {bias}, hidden_states, hidden_states_scale, gemm1_weights, gemm1_weights_scale, gemm2_weights,
        gemm2_weights_scale, NUM_EXPERTS, TOP_K, N_GROUP, TOPK_GROUP, INTERMEDIATE_SIZE, local_expert_offset,
        NUM_LOCAL_EXPERTS, routed_scaling_factor, routing_method_type=ROUTING_METHOD,
    )
"""
_TRTLLM_GPUS = (100, 103)


def _trtllm(parameters: MoeParameters, arguments: list[str]) -> tuple[Wrapper, ...]:
    """Call the API that the Definition describes, where its routing and activation are among those it knows."""
    call = block_template(parameters)
    if call is None or parameters.activation != "swiglu" or parameters.intermediate_size % 128:
        return ()
    names = ("num_experts", "top_k", "n_group", "topk_group", "intermediate_size", "local_num_experts")
    values = {name: call.arguments[name] for name in names}
    wrapper = Wrapper(
        kind="flashinfer",
        api="flashinfer.fused_moe.trtllm_fp8_block_scale_moe",
        imports=("from flashinfer.fused_moe import trtllm_fp8_block_scale_moe",),
        constants={
            "NUM_EXPERTS": values["num_experts"],
            "TOP_K": values["top_k"],
            "N_GROUP": values["n_group"],
            "TOPK_GROUP": values["topk_group"],
            "INTERMEDIATE_SIZE": values["intermediate_size"],
            "NUM_LOCAL_EXPERTS": values["local_num_experts"],
            "ROUTING_METHOD": call.selector["routing_method_type"],
        },
        body=_TRTLLM.format(arguments=_rows(arguments), bias="routing_bias" if parameters.has_bias else "None").strip(),
        capabilities=_TRTLLM_GPUS,
    )
    return (wrapper,)


def block_moe_ground_truth(parameters: MoeParameters, arguments: list[str]) -> GroundTruth:
    """Call FlashInfer's or SGLang's experts in e4m3 with block scales; between the products they round to e4m3 again."""
    blackwell = "FlashInfer's trtllm_fp8_block_scale_moe runs on Blackwell only"
    own = _trtllm(parameters, arguments)
    if gap := _find_gap(parameters):
        return GroundTruth(wrappers=own, reason=f"{blackwell}; {gap}")
    if parameters.intermediate_size % 128:
        return no_kernel(f"{blackwell}; a block of scales would span gate and up, which the wrapper has to swap")
    body = {
        "fp8": "True",
        "block": "[128, 128]",
        "swap": "gate_up = torch.cat(gemm1_weights.chunk(2, dim=1)[::-1], dim=1)\n"
        "    gate_up_scale = torch.cat(gemm1_weights_scale.chunk(2, dim=1)[::-1], dim=1)",
        "first": _FIRST.format(scale="hidden_states_scale.T", weight_scale="gate_up_scale"),
        "second": "values, scales = per_token_group_quant_fp8(inner, 128)\n"
        "    product(values, scales, gemm2_weights, gemm2_weights_scale, parts, chosen, last=True)",
    }
    return GroundTruth(wrappers=(*own, _triton(parameters, arguments, body)), reason=blackwell)


_CUTLASS = """
@torch.no_grad()
def run({arguments}):
    weights, experts = choose({routed})
    # The kernel's experts are a rank's: those of others weigh nothing, whatever they are called.
    local = experts - local_expert_offset
    outside = (local < 0) | (local >= len(gemm1_weights))
    local, weights = local.masked_fill(outside, 0).to(torch.int32), weights.masked_fill(outside, 0.0)
    return cutlass_fused_moe(
        hidden_states, local, weights, gemm1_weights, gemm2_weights, torch.bfloat16, quant_scales=[]
    )[0]
"""


def plain_moe_ground_truth(parameters: MoeParameters, arguments: list[str]) -> GroundTruth:
    """Call FlashInfer's CUTLASS experts, else SGLang's, in bfloat16."""
    if gap := _find_gap(parameters):
        return no_kernel(gap)
    router, routed = _router(parameters)
    cutlass = Wrapper(
        kind="flashinfer",
        api="flashinfer.fused_moe.cutlass_fused_moe",
        imports=("from flashinfer.fused_moe import cutlass_fused_moe", *router.imports),
        constants=router.constants,
        body=f"{router.body.strip()}\n\n\n{_CUTLASS.format(arguments=_rows(arguments), routed=routed).strip()}",
        capabilities=HOPPER_ON,
    )
    body = {
        "fp8": "False",
        "block": "None",
        "swap": "gate_up = torch.cat(gemm1_weights.chunk(2, dim=1)[::-1], dim=1)",
        "first": _FIRST.format(scale="None", weight_scale="None"),
        "second": "product(inner, None, gemm2_weights, None, parts, chosen, last=True)",
    }
    return GroundTruth(wrappers=(cutlass, _triton(parameters, arguments, body)))


def blackwell_only(what: str) -> GroundTruth:
    """Say which GPUs a format needs."""
    needed = ", ".join(f"sm_{capability}" for capability in BLACKWELL)
    return no_kernel(f"{what} needs Blackwell ({needed})")
