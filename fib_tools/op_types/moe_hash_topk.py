"""The choice of experts by token id: a table names them, and the router only weighs them (DeepSeek-V4's first layers)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, MetaTensor, Parameters, TemplateCall, const, source, tensor, var
from fib_tools.op_types.ground_truth import AMPERE_ON, GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["HASH_TOPK", "HASH_TOPK_RULES", "HashTopkParameters", "hash_topk_work"]

_API = "flashinfer.fused_moe.hash_topk.hash_topk"
_ROWS = 4
_WARP = 32
"""FlashInfer's kernel gives each token one warp, a thread to each expert."""


class HashTopkParameters(Parameters):
    """The table and the experts that it names."""

    num_routed_experts: int = Field(gt=0)
    topk: int = Field(gt=0)
    vocab: int = Field(gt=0)

    @model_validator(mode="after")
    def _validate_experts_suffice(self) -> HashTopkParameters:
        if self.topk > self.num_routed_experts:
            raise ValueError(f"topk {self.topk} of {self.num_routed_experts} experts")
        return self


_RUN = """
    @torch.no_grad()
    def run(router_logits, input_ids, tid2eid):
        experts = tid2eid[input_ids.to(torch.int64)]
        scores = torch.sqrt(F.softplus(router_logits.to(torch.float32)))
        weights = scores.gather(1, experts.to(torch.int64))
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), experts.to(torch.int32)
"""


def _define(parameters: HashTopkParameters) -> Definition:
    pieces = (("e", parameters.num_routed_experts), ("k", parameters.topk), ("v", parameters.vocab))
    return Definition(
        name=format_name("hash_topk", *pieces),
        description="The experts that a table names for each token id. Weights are their scores "
        "sqrt(softplus(logit)), made to sum to one; a scaling factor is left to what uses them.",
        op_type="moe_routing",
        axes={
            "num_tokens": var("Tokens."),
            "num_routed_experts": const(parameters.num_routed_experts, "Experts to choose from."),
            "topk": const(parameters.topk, "Experts for each token."),
            "vocab": const(parameters.vocab, "Token ids that the table knows."),
        },
        constraints=["topk <= num_routed_experts"],
        inputs={
            "router_logits": tensor("float32", "num_tokens num_routed_experts", "What the router gives each expert."),
            "input_ids": tensor("int64", "num_tokens", "The token ids."),
            "tid2eid": tensor("int32", "vocab topk", "The experts of each token id."),
        },
        outputs={
            "topk_weights": tensor("float32", "num_tokens topk", "The weight of each expert."),
            "topk_ids": tensor("int32", "num_tokens topk", "The experts, in the table's order."),
        },
        reference=source(_RUN),
    )


def _is_covered(parameters: HashTopkParameters) -> bool:
    return parameters.topk <= _WARP


def _template(parameters: HashTopkParameters) -> TemplateCall | None:
    if not _is_covered(parameters):
        return None
    return TemplateCall(
        fi_api=_API,
        arguments={
            "router_logits": MetaTensor(shape=(_ROWS, parameters.num_routed_experts), dtype="float32"),
            "input_ids": MetaTensor(shape=(_ROWS,), dtype="int64"),
            "tid2eid": MetaTensor(shape=(parameters.vocab, parameters.topk), dtype="int32"),
            "num_fused_shared_experts": 0,
            "routed_scaling_factor": 1.0,
        },
    )


def _token_ids(request: InputRequest) -> torch.Tensor:
    return request.integers(0, request.axes.get("vocab", 1))


def _table(request: InputRequest) -> torch.Tensor:
    """Name distinct experts for each token id, evenly apart, as drawing them one by one takes seconds."""
    import torch

    rows, chosen = request.shape
    experts = request.axes.get("num_routed_experts", chosen)
    first = request.integers(0, experts, (rows, 1))
    step = request.integers(1, max(experts // max(chosen, 1), 1) + 1, (rows, 1))
    return (first + step * torch.arange(chosen, dtype=request.dtype, device=request.device)) % experts


_KERNEL = """
    @torch.no_grad()
    def run(router_logits, input_ids, tid2eid):
        return hash_topk(router_logits, input_ids, tid2eid)
"""
_CAPABILITIES = tuple(capability for capability in AMPERE_ON if capability != 87)  # FlashInfer's own list


def _ground_truth(parameters: HashTopkParameters) -> GroundTruth:
    if not _is_covered(parameters):
        return no_kernel(f"FlashInfer's hash_topk chooses up to {_WARP} experts, not {parameters.topk}")
    wrapper = Wrapper(
        kind="flashinfer",
        api="flashinfer.fused_moe.hash_topk",
        imports=("from flashinfer.fused_moe import hash_topk",),
        body=_KERNEL,
        capabilities=_CAPABILITIES,
    )
    return GroundTruth(wrappers=(wrapper,))


def hash_topk_work(request: WorkRequest) -> Work | None:
    """Count the logits of the experts that the table names, one of each pair; of another choice all logits count."""
    if not request.has("router_logits", "input_ids", "tid2eid"):
        return None
    tokens, experts = request.shape("router_logits")
    chosen = request.read("router_logits") // max(experts, 1) * min(request.shape("tid2eid")[1], experts)
    return Work(read=chosen if tokens else 0, written=request.written())


HASH_TOPK = KernelType(
    id="hash_topk",
    op_type="moe_routing",
    summary="the experts that a table names for each token id, and their weights",
    parameters=HashTopkParameters,
    define=_define,
    fi_api=_API,
    fi_covers=_is_covered,
    template=_template,
    sglang_symbols=("sglang.kernels.ops.moe.dsv4.hash_topk",),
    ground_truth=_ground_truth,
)
HASH_TOPK_RULES = {"input_ids": _token_ids, "tid2eid": _table}
