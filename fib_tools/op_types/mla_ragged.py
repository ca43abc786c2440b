"""mla_ragged: multi-head latent attention of new tokens, with keys and values expanded to full heads.

DeepSeek-AI, DeepSeek-V2 (2024), section 2.1: a key is qk_nope_head_dim + qk_rope_head_dim wide, a value v_head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import (
    INPUT_CODE,
    INTEGER,
    WITHOUT_OUTLIERS,
    Core,
    indptr_axis,
    lse_output,
    ragged_keys,
    settle_scale,
    sm_scale_input,
    softmax_scale,
    write_reference,
)
from fib_tools.op_types.attention_work import ragged_attention_work
from fib_tools.op_types.attention_wrappers import mla_ragged_ground_truth
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth

__all__ = ["OP_TYPE", "MlaRaggedPrefillParameters"]


class MlaRaggedPrefillParameters(Parameters):
    """A ragged prefill kernel over expanded heads."""

    silent: ClassVar[Mapping[str, Any]] = {"sm_scale": None}

    num_qo_heads: int = Field(gt=0)
    head_dim_qk: int = Field(default=192, gt=0)
    head_dim_vo: int = Field(default=128, gt=0)
    causal: bool = True
    sm_scale: float | None = Field(default=None, gt=0)
    """None for 1 / sqrt(head_dim_qk)."""
    dtype: str = "bfloat16"

    @property
    def scale(self) -> float:
        """The softmax scale."""
        return settle_scale(self.sm_scale, self.head_dim_qk**-0.5)

    @model_validator(mode="before")
    @classmethod
    def _settle_scale(cls, data: Any) -> Any:
        """Write the plain scale as None, so that equal kernels have equal parameters."""
        if not isinstance(data, dict) or not isinstance(data.get("sm_scale"), (int, float)):
            return data
        width = data.get("head_dim_qk", 192)
        is_plain = isinstance(width, int) and width > 0 and settle_scale(data["sm_scale"], width**-0.5) == width**-0.5
        return {**data, "sm_scale": None} if is_plain else data


def _define(parameters: MlaRaggedPrefillParameters) -> Definition:
    core = Core(causal=parameters.causal)
    heads, keys = "total_q num_qo_heads", "total_kv num_qo_heads"
    inputs = {
        "q": tensor(parameters.dtype, f"{heads} head_dim_qk", "The queries of all sequences, in order."),
        "k": tensor(parameters.dtype, f"{keys} head_dim_qk", "The keys of all sequences, in order."),
        "v": tensor(parameters.dtype, f"{keys} head_dim_vo", "The values of all sequences, in order."),
        "qo_indptr": tensor(INTEGER, "len_indptr", "Where the queries of each sequence begin."),
        "kv_indptr": tensor(INTEGER, "len_indptr", "Where the keys of each sequence begin."),
        "sm_scale": sm_scale_input(parameters.scale),
    }
    loaded = "keys = k[held].to(torch.float32)\nvalues = v[held].to(torch.float32)"
    sizes = (("h", parameters.num_qo_heads), ("qk", parameters.head_dim_qk), ("vo", parameters.head_dim_vo))
    return Definition(
        name=format_name(f"mla_ragged_prefill_{'causal' if parameters.causal else 'full'}", *sizes),
        description=f"Latent attention of new tokens, expanded to full heads. {core.sentences}",
        op_type="mla_ragged",
        axes={
            "num_qo_heads": const(parameters.num_qo_heads, "Heads on this device, of queries, keys and values alike."),
            "head_dim_qk": const(parameters.head_dim_qk, "Width of a query and a key: plain part, then rotary part."),
            "head_dim_vo": const(parameters.head_dim_vo, "Width of a value."),
            "len_indptr": indptr_axis(),
            "total_q": var("Queries of all sequences."),
            "total_kv": var("Keys of all sequences."),
        },
        constraints=["total_q == qo_indptr[-1]", "total_kv == kv_indptr[-1]"],
        inputs=inputs,
        outputs={
            "output": tensor(parameters.dtype, f"{heads} head_dim_vo", "The attention output."),
            "lse": lse_output(heads),
        },
        reference=write_reference(
            core, inputs=inputs, keys=f"{ragged_keys(core)}\n{loaded}", decode=False, width="v.shape[-1]"
        ),
    )


def _ground_truth(parameters: MlaRaggedPrefillParameters) -> GroundTruth:
    widths = (parameters.head_dim_qk, parameters.head_dim_vo)
    inputs = list(_define(parameters).inputs)
    return mla_ragged_ground_truth(parameters.num_qo_heads, widths, inputs, causal=parameters.causal)


OP_TYPE = OpType(
    name="mla_ragged",
    kernels=(
        KernelType(
            id="mla_ragged_prefill",
            op_type="mla_ragged",
            summary="latent attention of new tokens, with keys and values expanded to full heads",
            parameters=MlaRaggedPrefillParameters,
            define=_define,
            fi_api="flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper.run",
            template=None,  # the template has one head_dim, and would declare values and output head_dim_qk wide
            sglang_symbols=("flashinfer.BatchPrefillWithRaggedKVCacheWrapper",),
            ground_truth=_ground_truth,
        ),
    ),
    input_rules={"sm_scale": softmax_scale("head_dim_qk")},
    input_code=INPUT_CODE,
    axis_sizes={"len_indptr": 4},
    without_outliers=WITHOUT_OUTLIERS,
    work=ragged_attention_work,
)
