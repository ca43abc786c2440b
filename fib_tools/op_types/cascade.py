"""cascade: merging two attention results over different keys into the result over all of them.

Both states carry a base-2 log-sum-exp s; the merged output weighs each by 2^s (Ye et al., Cascade Inference, 2024).
"""

from __future__ import annotations

import math

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
from fib_tools.op_types.tolerance import rounded

__all__ = ["OP_TYPE", "MergeStateParameters"]


class MergeStateParameters(Parameters):
    """The heads of the states."""

    num_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    dtype: str = "bfloat16"


_REFERENCE = """
    @torch.no_grad()
    def run(v_a, s_a, v_b, s_b):
        top = torch.maximum(s_a, s_b)
        top = torch.where(torch.isneginf(top), 0.0, top)
        weight_a = torch.exp2(s_a - top)[..., None]
        weight_b = torch.exp2(s_b - top)[..., None]
        total = weight_a + weight_b
        v_merged = v_a.to(torch.float32) * weight_a + v_b.to(torch.float32) * weight_b
        v_merged = v_merged / torch.where(total > 0, total, 1.0)
        return v_merged.to(v_a.dtype), torch.log2(total[..., 0]) + top
"""


def _define(parameters: MergeStateParameters) -> Definition:
    def values(description: str) -> TensorSpec:
        return tensor(parameters.dtype, "seq_len num_heads head_dim", description)

    def sums(description: str) -> TensorSpec:
        return tensor("float32", "seq_len num_heads", description)

    return Definition(
        name=format_name("merge_state", ("h", parameters.num_heads), ("d", parameters.head_dim)),
        description="Merge two attention states: v = (v_a 2^s_a + v_b 2^s_b) / (2^s_a + 2^s_b), s the log of the sum. "
        "Two empty states, with s -inf, give output 0 and s -inf.",
        op_type="cascade",
        axes={
            "seq_len": var("Queries."),
            "num_heads": const(parameters.num_heads, "Query heads on this device."),
            "head_dim": const(parameters.head_dim, "Width of an output head."),
        },
        inputs={
            "v_a": values("The attention output over the first keys."),
            "s_a": sums("Its base-2 log-sum-exp; -inf where it saw no key."),
            "v_b": values("The attention output over the other keys."),
            "s_b": sums("Its base-2 log-sum-exp; -inf where it saw no key."),
        },
        outputs={
            "v_merged": values("The attention output over all keys."),
            "s_merged": sums("Its base-2 log-sum-exp."),
        },
        reference=source(_REFERENCE),
    )


_API = "flashinfer.cascade.merge_state"


def _template(parameters: MergeStateParameters) -> TemplateCall:
    values = MetaTensor(shape=(5, parameters.num_heads, parameters.head_dim), dtype=parameters.dtype)
    sums = MetaTensor(shape=(5, parameters.num_heads), dtype="float32")
    return TemplateCall(fi_api=_API, arguments={"v_a": values, "s_a": sums, "v_b": values, "s_b": sums})


_KERNEL = """
    @torch.no_grad()
    def run(v_a, s_a, v_b, s_b):
        return flashinfer.cascade.merge_state(v_a, s_a, v_b, s_b)
"""


_SGLANG_KERNEL = """
    @torch.no_grad()
    def run(v_a, s_a, v_b, s_b):
        # The kernel's sums are natural logarithms.
        v_merged, s_merged = sgl_kernel.merge_state_v2(v_a, s_a * LN_2, v_b, s_b * LN_2)
        return v_merged, s_merged / LN_2
"""

_MOST_THREADS = 1024
"""Of a block, in CUDA."""


def _fits_flashinfer(parameters: MergeStateParameters) -> bool:
    """Tell whether FlashInfer can launch: its block has all heads, a thread for 16 bytes (`cascade.cuh`, MergeState)."""
    width = 4 if parameters.dtype == "float32" else 2
    values = max(16 // width, parameters.head_dim // 32)
    return parameters.head_dim // values * parameters.num_heads <= _MOST_THREADS


def _ground_truth(parameters: MergeStateParameters) -> GroundTruth:
    flashinfer = Wrapper(kind="flashinfer", api=_API, imports=("import flashinfer",), body=_KERNEL)
    sglang = Wrapper(
        kind="sglang",
        api="sgl_kernel.merge_state_v2",
        imports=("import sgl_kernel",),
        constants={"LN_2": math.log(2)},
        body=_SGLANG_KERNEL,
    )
    if _fits_flashinfer(parameters):
        return GroundTruth(wrappers=(flashinfer, sglang))
    threads = "FlashInfer's merge_state needs more threads than a block has"
    return GroundTruth(wrappers=(sglang,), reason=threads)


OP_TYPE = OpType(
    name="cascade",
    kernels=(
        KernelType(
            id="merge_state",
            op_type="cascade",
            summary="merge of two attention states over different keys",
            parameters=MergeStateParameters,
            define=_define,
            fi_api=_API,
            fi_covers=_fits_flashinfer,
            template=_template,
            sglang_symbols=("flashinfer.cascade.merge_state", "sgl_kernel.merge_state", "sgl_kernel.merge_state_v2"),
            ground_truth=_ground_truth,
            policy=rounded,
        ),
    ),
)
