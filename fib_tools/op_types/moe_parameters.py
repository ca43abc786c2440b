"""The parameters that routers and experts share, and how they are spelled in names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fib_tools.op_types.base import Parameters

__all__ = ["Activation", "MoeParameters", "MoeW4a16Parameters", "Routing", "RoutingParameters", "ScaledMoeParameters"]

Routing = Literal[
    "default",
    "renormalize",
    "renormalize_naive",
    "ds",
    "sigmoid_bias",
    "sigmoid",
    "softmax_group",
    "llama4",
    "topk",
    "sparsemixer",
    "sqrtsoftplus_bias",
    "given",
]
Activation = Literal["swiglu", "swiglu_oai", "gelu", "gelu_tanh", "relu2"]

_GROUPED = ("ds", "softmax_group")
_BIASED = ("ds", "sigmoid_bias", "sqrtsoftplus_bias")
_NORMALIZED_BY_CHOICE = ("ds", "sigmoid_bias", "sigmoid", "softmax_group", "sqrtsoftplus_bias")
"""Where `norm_topk_prob` decides; the other kinds say in their own name whether weights are made to sum to one."""
_SPARSEMIXER_TOP_K = 2
_OAI_LIMIT = 7.0
"""`swiglu_limit` of gpt-oss, whose formula swiglu_oai is."""


class RoutingParameters(Parameters):
    """How each token chooses its experts."""

    num_experts: int = Field(gt=0)
    top_k: int = Field(gt=0)
    routing: Routing
    n_group: int | None = Field(default=None, gt=0)
    topk_group: int | None = Field(default=None, gt=0)
    routed_scaling_factor: float | None = None
    """What the model passes as the input of that name; the kernel is the same for all."""
    norm_topk_prob: bool = True

    @model_validator(mode="after")
    def _validate_experts_suffice(self) -> RoutingParameters:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} of {self.num_experts} experts")
        if self.routing == "sparsemixer" and self.top_k != _SPARSEMIXER_TOP_K:
            raise ValueError(f"sparsemixer takes top_k {_SPARSEMIXER_TOP_K}, not {self.top_k}")
        return self

    @model_validator(mode="after")
    def _validate_groups_fit(self) -> RoutingParameters:
        if not self.is_grouped:
            if self.groups != (1, 1):
                raise ValueError(f"{self.routing} routing knows no groups; leave n_group and topk_group out")
            return self
        groups, kept = self.groups
        if self.num_experts % groups or kept > groups:
            raise ValueError(f"{self.num_experts} experts in {groups} groups, of which {kept} are kept")
        if self.top_k > kept * (self.num_experts // groups):
            raise ValueError(f"top_k {self.top_k} of {kept} groups of {self.num_experts // groups} experts")
        return self

    @model_validator(mode="after")
    def _validate_renormalize_normalizes(self) -> RoutingParameters:
        if self.routing in {"renormalize", "renormalize_naive"} and not self.norm_topk_prob:
            raise ValueError(f"{self.routing} routing makes weights sum to one; without it is `default`")
        return self

    @property
    def is_grouped(self) -> bool:
        """Whether groups of experts are chosen first."""
        return self.routing in _GROUPED

    @property
    def is_given(self) -> bool:
        """Whether experts and weights are inputs, chosen by a kernel before, such as `hash_topk`."""
        return self.routing == "given"

    @property
    def has_bias(self) -> bool:
        """Whether a bias takes part in the choice, though not in the weights."""
        return self.routing in _BIASED

    @property
    def groups(self) -> tuple[int, int]:
        """The number of groups, and of those that are kept."""
        return self.n_group or 1, self.topk_group or 1

    @property
    def normalizes(self) -> bool:
        """Whether the weights of the routing kinds that leave it open are made to sum to one."""
        return self.routing in _NORMALIZED_BY_CHOICE and self.norm_topk_prob

    def routing_pieces(self, word: str) -> tuple[str | tuple[str, int], ...]:
        """Spell the routing for a name, after `word`."""
        plain = self.routing not in _NORMALIZED_BY_CHOICE or self.norm_topk_prob
        groups = (("ng", self.groups[0]), ("kg", self.groups[1])) if self.is_grouped else ()
        return (word, "" if plain else "nonorm", ("topk", self.top_k), *groups)


class MoeParameters(RoutingParameters):
    """Routing, the experts of one device, and what they compute."""

    num_local_experts: int = Field(gt=0)
    hidden_size: int = Field(gt=0, multiple_of=2)
    intermediate_size: int = Field(gt=0, multiple_of=2)
    """Of one expert, as this device holds it."""
    activation: Activation = "swiglu"
    swiglu_limit: float | None = Field(default=None, gt=0)
    """Where SwiGLU clamps its inputs, as DeepSeek-V4 does; None: nowhere, but 7 for swiglu_oai."""
    expert_bias: bool = False

    @model_validator(mode="after")
    def _validate_experts_are_some_of_all(self) -> MoeParameters:
        if self.num_local_experts > self.num_experts:
            raise ValueError(f"{self.num_local_experts} local experts of {self.num_experts}")
        return self

    @model_validator(mode="after")
    def _validate_limit_has_a_clamp(self) -> MoeParameters:
        if self.swiglu_limit is not None and not self.activation.startswith("swiglu"):
            raise ValueError(f"{self.activation} does not clamp; leave swiglu_limit out")
        return self

    @property
    def is_gated(self) -> bool:
        """Whether the first product has two halves."""
        return self.activation != "relu2"

    @property
    def clamp_limit(self) -> float | None:
        """Where the inputs of the activation are clamped, by default as well."""
        return _OAI_LIMIT if self.swiglu_limit is None and self.activation == "swiglu_oai" else self.swiglu_limit

    @property
    def gemm1_out_size(self) -> int:
        """Rows of an expert's first weight."""
        return self.intermediate_size * (2 if self.is_gated else 1)

    def qualifier(self) -> str:
        """Spell `num_experts` where it is not what a published name means: the local ones, or those of EP 8."""
        others = super().qualifier()
        if self.num_experts in {self.num_local_experts, 8 * self.num_local_experts}:
            return others
        return "_".join(part for part in (f"of{self.num_experts}", others) if part)

    def name_pieces(self, word: str) -> tuple[str | tuple[str, int], ...]:
        """Spell everything but the number format for a name."""
        routing = {"ds": "ds_routing", "renormalize": "renorm"}.get(self.routing, self.routing)
        usual = _OAI_LIMIT if self.activation == "swiglu_oai" else None
        limit = "" if self.clamp_limit == usual else f"limit{self.clamp_limit:g}"
        return (
            word,
            *self.routing_pieces(routing),
            ("e", self.num_local_experts),
            ("h", self.hidden_size),
            ("i", self.intermediate_size),
            "" if self.activation == "swiglu" else self.activation,
            limit,
            "bias" if self.expert_bias else "",
        )


class ScaledMoeParameters(MoeParameters):
    """Of the formats whose products are scaled after the sum, where a bias or an added one has no defined scale."""

    @model_validator(mode="after")
    def _validate_scales_commute(self) -> ScaledMoeParameters:
        if self.expert_bias or self.swiglu_limit is not None or self.activation == "swiglu_oai":
            raise ValueError("neither bias nor clamp is defined with output scales; use a format with block scales")
        return self


class MoeW4a16Parameters(MoeParameters):
    """Of 4-bit integer weights."""

    silent: ClassVar[Mapping[str, Any]] = {"group_size": 32}

    group_size: int = Field(default=32, gt=0, multiple_of=2)
