"""Grouped-query attention, what its paged and its ragged form share: parameters, names, and the pieces of interfaces.

Ainslie et al., GQA (2023): each key-value head serves num_qo_heads / num_kv_heads query heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from fib_tools.model.definition import AxisConst, AxisVar, TensorSpec
from fib_tools.op_types.attention import FP8_SUFFIXES, Core, settle_scale, sm_scale_input
from fib_tools.op_types.base import MetaTensor, Parameters, const, scalar, tensor

__all__ = ["GqaParameters", "GqaPrefillParameters"]


class GqaParameters(Parameters):
    """The heads of one grouped-query attention and its variant."""

    silent: ClassVar[Mapping[str, Any]] = {"sm_scale": None}

    num_qo_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    head_dim_vo: int | None = Field(default=None, gt=0)
    """The width of values and outputs; None where it is head_dim."""
    window_left: int = Field(default=-1, ge=-1)
    """Keys before its own position that a query sees; -1 for all."""
    logits_soft_cap: float = Field(default=0.0, ge=0)
    sinks: bool = False
    sm_scale: float | None = Field(default=None, gt=0)
    """None for 1 / sqrt(head_dim)."""
    dtype: str = "bfloat16"
    kv_dtype: str | None = None
    """The element type of keys and values where it is not dtype: fp8."""

    @model_validator(mode="before")
    @classmethod
    def _settle_defaults(cls, data: Any) -> Any:
        """Write what equals a default as that default, so that equal kernels have equal parameters."""
        if not isinstance(data, dict):
            return data
        settled = dict(data)
        head_dim, scale = settled.get("head_dim"), settled.get("sm_scale")
        if head_dim is not None and settled.get("head_dim_vo") == head_dim:
            settled["head_dim_vo"] = None
        if settled.get("kv_dtype") == settled.get("dtype", "bfloat16"):
            settled["kv_dtype"] = None
        if isinstance(head_dim, int) and head_dim > 0 and isinstance(scale, (int, float)):
            plain = head_dim**-0.5
            settled["sm_scale"] = None if settle_scale(scale, plain) == plain else scale
        return settled

    @model_validator(mode="after")
    def _validate_heads_divide(self) -> GqaParameters:
        if self.num_qo_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_qo_heads} query heads cannot share {self.num_kv_heads} key-value heads")
        return self

    @model_validator(mode="after")
    def _validate_kv_dtype(self) -> GqaParameters:
        if self.kv_dtype not in (None, *FP8_SUFFIXES):
            raise ValueError(f"kv_dtype {self.kv_dtype!r} is neither the dtype {self.dtype!r} nor fp8")
        return self

    @property
    def core(self) -> Core:
        """The attention variant; a single query at the end of its sequence needs no causal mask."""
        return Core(window_left=self.window_left, soft_cap=self.logits_soft_cap, sinks=self.sinks)

    @property
    def scale(self) -> float:
        """The softmax scale."""
        return settle_scale(self.sm_scale, self.head_dim**-0.5)

    @property
    def value_dim(self) -> int:
        """The width of values and outputs."""
        return self.head_dim_vo or self.head_dim

    @property
    def value_axis(self) -> str:
        """The axis of that width."""
        return "head_dim_vo" if self.head_dim_vo else "head_dim"

    @property
    def cache_dtype(self) -> str:
        """The element type of keys and values."""
        return self.kv_dtype or self.dtype

    @property
    def is_fp8(self) -> bool:
        """Tell whether keys and values are fp8, with a scale each."""
        return self.kv_dtype is not None

    def head_pieces(self) -> list[tuple[str, int]]:
        """Name the heads."""
        vo = [("vo", self.head_dim_vo)] if self.head_dim_vo else []
        return [("h", self.num_qo_heads), ("kv", self.num_kv_heads), ("d", self.head_dim), *vo]

    def suffixes(self) -> list[str]:
        """Name the variant, in the order that names have it."""
        return [
            *([f"w{self.window_left}"] if self.window_left >= 0 else []),
            *([f"cap{self.logits_soft_cap:g}"] if self.logits_soft_cap else []),
            *(["sinks"] if self.sinks else []),
            *([FP8_SUFFIXES[self.kv_dtype]] if self.kv_dtype else []),
        ]

    def head_axes(self) -> dict[str, AxisConst | AxisVar]:
        """Declare the heads."""
        vo = {"head_dim_vo": const(self.head_dim_vo, "Width of a value.")} if self.head_dim_vo else {}
        return {
            "num_qo_heads": const(self.num_qo_heads, "Query heads on this device."),
            "num_kv_heads": const(self.num_kv_heads, "Key-value heads on this device."),
            "head_dim": const(self.head_dim, "Width of a query and a key." if vo else "Width of a head."),
            **vo,
        }

    def scalar_inputs(self) -> dict[str, TensorSpec]:
        """Declare what follows the tensors: the scales and the sinks."""
        inputs = {"sm_scale": sm_scale_input(self.scale)}
        if self.is_fp8:
            inputs["k_scale"] = scalar("float32", "What stored keys are multiplied by.")
            inputs["v_scale"] = scalar("float32", "What stored values are multiplied by.")
        if self.sinks:
            inputs["sinks"] = tensor("float32", "num_qo_heads", "One more logit for each head.")
        return inputs

    def loaded(self, keys: str, values: str) -> str:
        """Write the lines that read `keys` and `values` of a sequence in float32."""
        k_scale, v_scale = (" * k_scale", " * v_scale") if self.is_fp8 else ("", "")
        return f"keys = {keys}.to(torch.float32){k_scale}\nvalues = {values}.to(torch.float32){v_scale}"

    def template_semantics(self) -> dict[str, Any]:
        """Say in a template call what FlashInfer's templates leave out, for the gate to see."""
        scales = {"k_scale": 1.0, "v_scale": 1.0} if self.is_fp8 else {}
        sinks = {"sinks": MetaTensor(shape=(self.num_qo_heads,), dtype="float32")} if self.sinks else {}
        window = {"window_left": self.window_left} if self.window_left >= 0 else {}
        cap = {"logits_soft_cap": self.logits_soft_cap} if self.logits_soft_cap else {}
        return {"sm_scale": self.scale, **scales, **window, **cap, **sinks}


class GqaPrefillParameters(GqaParameters):
    """Several queries a sequence, the last of them at the last key."""

    causal: bool = True
    chunk: int | None = Field(default=None, gt=0)
    """Length of the pieces that attention stays within (Llama 4); None for no such pieces."""

    @property
    def core(self) -> Core:
        """The attention variant."""
        return Core(
            causal=self.causal,
            window_left=self.window_left,
            chunk=self.chunk,
            soft_cap=self.logits_soft_cap,
            sinks=self.sinks,
        )

    @property
    def mask_word(self) -> str:
        """The word that names have for the mask."""
        return "causal" if self.causal else "full"

    def suffixes(self) -> list[str]:
        """Name the variant, in the order that names have it."""
        return [*super().suffixes(), *([f"chunk{self.chunk}"] if self.chunk is not None else [])]

    def template_semantics(self) -> dict[str, Any]:
        """Say in a template call what FlashInfer's templates leave out, for the gate to see."""
        chunk = {"chunk": self.chunk} if self.chunk is not None else {}
        return {**super().template_semantics(), "causal": self.causal, **chunk}
