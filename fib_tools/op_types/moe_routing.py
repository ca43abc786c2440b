"""moe_routing: the choice of experts on its own, without the experts."""

from __future__ import annotations

from pydantic import model_validator

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, MetaTensor, OpType, TemplateCall, const, scalar, source, tensor, var
from fib_tools.op_types.moe_hash_topk import HASH_TOPK, HASH_TOPK_RULES, hash_topk_work
from fib_tools.op_types.moe_parameters import RoutingParameters
from fib_tools.op_types.moe_routing_sources import routing_constants, routing_sentence, write_route
from fib_tools.op_types.moe_wrappers import routing_ground_truth
from fib_tools.op_types.rules import constant, random
from fib_tools.op_types.tolerance import chosen

__all__ = ["OP_TYPE", "ChoiceParameters"]

_DS_API = "flashinfer.fused_moe.fused_routing_dsv3.fused_topk_deepseek"
_ROWS = 4

_RUN = """
@torch.no_grad()
def run({arguments}):
    weights, experts = route({passed})
    return weights, experts.to(torch.int32)
"""


class ChoiceParameters(RoutingParameters):
    """How experts are chosen, by any kind but one that finds them chosen."""

    @model_validator(mode="after")
    def _validate_chooses(self) -> ChoiceParameters:
        if self.is_given:
            raise ValueError("given routing chooses nothing; use the kernel that did, such as hash_topk")
        return self


def _reference(parameters: RoutingParameters) -> str:
    bias = ["routing_bias"] if parameters.has_bias else []
    arguments = ", ".join(["routing_logits", *bias, "routed_scaling_factor"])
    passed = ", ".join([*(f"{name}.to(torch.float32)" for name in ["routing_logits", *bias]), "routed_scaling_factor"])
    run = _RUN.format(arguments=arguments, passed=passed)
    return source(f"{write_route(parameters)}\n\n{run}", **routing_constants(parameters))


def _define(parameters: RoutingParameters) -> Definition:
    inputs = {"routing_logits": tensor("float32", "num_tokens num_experts", "What the router gives each expert.")}
    if parameters.has_bias:
        inputs["routing_bias"] = tensor("float32", "num_experts", "Added to the scores for the choice only.")
    inputs["routed_scaling_factor"] = scalar("float32", "What the weights are multiplied by; 1 for none.")
    pieces = parameters.routing_pieces(parameters.routing)
    return Definition(
        name=format_name("moe_routing", *pieces, ("e", parameters.num_experts)),
        description=f"Choice of experts. {routing_sentence(parameters)}",
        op_type="moe_routing",
        axes={
            "num_tokens": var("Tokens."),
            "num_experts": const(parameters.num_experts, "Experts to choose from."),
            "top_k": const(parameters.top_k, "Experts for each token."),
        },
        constraints=["top_k <= num_experts"],
        inputs=inputs,
        outputs={
            "topk_weights": tensor("float32", "num_tokens top_k", "The weight of each chosen expert."),
            "topk_ids": tensor("int32", "num_tokens top_k", "The chosen experts, the best first."),
        },
        reference=_reference(parameters),
    )


def _is_covered(parameters: RoutingParameters) -> bool:
    """FlashInfer computes DeepSeek-V3's choice, whose weights always sum to the scaling factor.

    It asks for `topk_group * n_group >= topk`, which Kimi K2's one group of experts is not.
    """
    groups, kept = parameters.groups
    return parameters.routing == "ds" and parameters.norm_topk_prob and groups * kept >= parameters.top_k


def _template(parameters: RoutingParameters) -> TemplateCall | None:
    if not _is_covered(parameters):
        return None
    groups, kept = parameters.groups
    chosen = (_ROWS, parameters.top_k)
    return TemplateCall(
        fi_api=_DS_API,
        arguments={
            "scores": MetaTensor(shape=(_ROWS, parameters.num_experts), dtype="float32"),
            "bias": MetaTensor(shape=(parameters.num_experts,), dtype="float32"),
            "n_group": groups,
            "topk_group": kept,
            "topk": parameters.top_k,
            "routed_scaling_factor": parameters.routed_scaling_factor or 1.0,
            "topk_values": MetaTensor(shape=chosen, dtype="float32"),
            "topk_indices": MetaTensor(shape=chosen, dtype="int32"),
        },
    )


OP_TYPE = OpType(
    name="moe_routing",
    kernels=(
        KernelType(
            id="moe_routing",
            op_type="moe_routing",
            summary="the experts of each token, and their weights",
            parameters=ChoiceParameters,
            define=_define,
            fi_api=_DS_API,
            fi_covers=_is_covered,
            template=_template,
            sglang_symbols=(
                "flashinfer.fused_moe.fused_topk_deepseek",
                "sglang.kernels.ops.moe.moe_fused_gate.moe_fused_gate",
                "sglang.kernels.ops.moe.moe_topk_sigmoid.topk_sigmoid",
                "sglang.kernels.ops.moe.topk_softmax",
            ),
            ground_truth=routing_ground_truth,
            policy=chosen,
            policies={"topk_ids": chosen},
        ),
        HASH_TOPK,
    ),
    input_rules={
        "routing_logits": random(1.0),
        "routing_bias": random(0.1),
        "routed_scaling_factor": constant(2.5),
        **HASH_TOPK_RULES,
    },
    input_code={
        "routing_logits": "draw.normal({shape}, {dtype}, scale=2.5)",
        "routing_bias": "draw.normal({shape}, {dtype}, scale=0.3)",
        "routed_scaling_factor": "2.5",
    },
    axis_sizes={"num_tokens": 6},
    typical=frozenset({"routing_logits", "router_logits"}),
    work=hash_topk_work,
)
