"""kda: Kimi Delta Attention, the delta rule with a decay for each element of the key.

Kimi Team, Kimi Linear (2025). For each head, with the state S of shape [V, K]:
    S = S * exp(g)              (g has one value for each of the K columns)
    S = S + beta * (v - S k) k^T
    output = S (scale * q)
Queries and keys are made unit vectors first. The gates arrive finished: g = -exp(A_log) * softplus(raw + dt_bias),
beta in (0, 1), as FlashInfer's trace template and transformers have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fib_tools.model.definition import Axis, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import (
    KernelType,
    MetaTensor,
    OpType,
    Parameters,
    TemplateCall,
    const,
    scalar,
    source,
    tensor,
    var,
)
from fib_tools.op_types.ground_truth import GroundTruth
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.recurrent_wrappers import kda_decode_ground_truth, kda_prefill_ground_truth
from fib_tools.op_types.rules import positive, random
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "KdaParameters"]

_FI_API = "flashinfer.kda.recurrent_kda"


class KdaParameters(Parameters):
    """The heads of one Kimi Delta Attention."""

    silent: ClassVar[Mapping[str, Any]] = {"state_dtype": "bfloat16"}

    num_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    dtype: str = "bfloat16"
    state_dtype: str = "bfloat16"
    """Element type of the state; FlashInfer's kernel takes bfloat16 only."""


_STEP = """
def unit(x):
    x = x.to(torch.float32)
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def step(state, q, k, v, g, beta):
    state = state * torch.exp(g.to(torch.float32))[..., None, :]
    missing = v.to(torch.float32) - (state * k[..., None, :]).sum(dim=-1)
    state = state + (missing * beta.to(torch.float32)[..., None])[..., None] * k[..., None, :]
    return state, (state * q[..., None, :]).sum(dim=-1)
"""

_DECODE = """
@torch.no_grad()
def run(q, k, v, g, beta, initial_state, scale):
    token = (x[:, 0] for x in (unit(q) * scale, unit(k), v, g, beta))
    final_state, output = step(initial_state.to(torch.float32), *token)
    return output.unsqueeze(1).to(q.dtype), final_state.to(initial_state.dtype)
"""

_PREFILL = """
@torch.no_grad()
def run(q, k, v, g, beta, initial_state, cu_seqlens, scale):
    unit_q, unit_k = unit(q) * scale, unit(k)
    output = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    state = initial_state.to(torch.float32, copy=True)
    bounds = cu_seqlens.tolist()
    for sequence, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        for t in range(start, end):
            state[sequence], output[t] = step(state[sequence], unit_q[t], unit_k[t], v[t], g[t], beta[t])
    return output.to(q.dtype), state.to(initial_state.dtype)
"""


def _axes(parameters: KdaParameters, *, ragged: bool) -> dict[str, Axis]:
    leading: dict[str, Axis] = {
        "batch_size": var("Sequences."),
        "seq_len": const(1, "Tokens of each sequence."),
    }
    if ragged:
        leading = {
            "total_seq_len": var("Tokens of all sequences together."),
            "num_seqs": var("Sequences."),
            "len_cu_seqlens": var("Sequences plus one."),
        }
    return {
        **leading,
        "num_heads": const(parameters.num_heads, "Heads of queries, keys and values; each has a state."),
        "head_dim": const(parameters.head_dim, "Elements of one head."),
    }


def _inputs(parameters: KdaParameters, *, ragged: bool) -> dict[str, TensorSpec]:
    dtype, tokens = parameters.dtype, "total_seq_len" if ragged else "batch_size seq_len"
    sequences = "num_seqs" if ragged else "batch_size"
    inputs = {
        "q": tensor(dtype, f"{tokens} num_heads head_dim", "Queries, before they are made unit vectors."),
        "k": tensor(dtype, f"{tokens} num_heads head_dim", "Keys, before they are made unit vectors."),
        "v": tensor(dtype, f"{tokens} num_heads head_dim", "Values."),
        "g": tensor(dtype, f"{tokens} num_heads head_dim", "Logarithm of each key element's decay, at most 0."),
        "beta": tensor(dtype, f"{tokens} num_heads", "Strength of the update, in (0, 1)."),
        "initial_state": tensor(
            parameters.state_dtype,
            f"{sequences} num_heads head_dim head_dim",
            "The state before, [V, K] for each head.",
        ),
    }
    if ragged:
        inputs["cu_seqlens"] = tensor("int32", "len_cu_seqlens", "Where each sequence starts, and the total.")
    inputs["scale"] = scalar("float32", "Factor of the queries, usually 1 / sqrt(head_dim).")
    return inputs


def _define(parameters: KdaParameters, *, ragged: bool) -> Definition:
    tokens, sequences = ("total_seq_len", "num_seqs") if ragged else ("batch_size seq_len", "batch_size")
    of = "over ragged prompts" if ragged else "for one token of each sequence"
    state = f"{sequences} num_heads head_dim head_dim"
    return Definition(
        name=format_name(
            "kda_prefill" if ragged else "kda_decode", ("h", parameters.num_heads), ("d", parameters.head_dim)
        ),
        description=f"Kimi Delta Attention {of}, K-last state; queries and keys are made unit vectors.",
        op_type="kda",
        axes=_axes(parameters, ragged=ragged),
        constraints=["len_cu_seqlens == num_seqs + 1", "total_seq_len == cu_seqlens[-1]"] if ragged else [],
        inputs=_inputs(parameters, ragged=ragged),
        outputs={
            "output": tensor(parameters.dtype, f"{tokens} num_heads head_dim", "The read-out of each token."),
            "final_state": tensor(parameters.state_dtype, state, "The state after each sequence's last token."),
        },
        reference=source(_STEP.strip() + "\n\n" + (_PREFILL if ragged else _DECODE)),
    )


def _template(parameters: KdaParameters) -> TemplateCall:
    heads = (parameters.num_heads, parameters.head_dim)
    rows = MetaTensor(shape=(4, 1, *heads), dtype=parameters.dtype)
    arguments = {
        **dict.fromkeys(("q", "k", "v", "g"), rows),
        "beta": MetaTensor(shape=(4, 1, parameters.num_heads), dtype=parameters.dtype),
        "initial_state": MetaTensor(shape=(4, *heads, parameters.head_dim), dtype=parameters.state_dtype),
        "scale": parameters.head_dim**-0.5,
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": True,
    }
    return TemplateCall(fi_api=_FI_API, arguments=arguments)


def _decode_ground_truth(parameters: KdaParameters) -> GroundTruth:
    dtypes = (parameters.dtype, parameters.state_dtype)
    return kda_decode_ground_truth(_FI_API, head_dim=parameters.head_dim, dtypes=dtypes)


def _prefill_ground_truth(_parameters: KdaParameters) -> GroundTruth:
    return kda_prefill_ground_truth()


def _make_log_decay(request: InputRequest) -> torch.Tensor:
    import torch

    drawn = torch.nn.functional.softplus(request.normal().to(torch.float32))
    return (-0.5 * drawn).to(request.dtype)


def _make_scale(request: InputRequest) -> Any:
    return float(request.axes.get("head_dim", 1) ** -0.5)


_FLA = "sglang.kernels.ops.attention.fla"


def _work(request: WorkRequest) -> Work | None:
    """Count all but the offsets, and three products with the state for each token and head."""
    if not request.has("q", "k", "v", "g", "beta", "initial_state"):
        return None
    read = request.read("q", "k", "v", "g", "beta", "initial_state")
    products = math.prod(request.shape("v")) * request.shape("q")[-1]
    return Work(read=read, written=request.written(), flops=6 * products, unit=request.unit("q"))


OP_TYPE = OpType(
    name="kda",
    kernels=(
        KernelType(
            id="kda_decode",
            op_type="kda",
            summary="Kimi Delta Attention for one token of each sequence",
            parameters=KdaParameters,
            define=partial(_define, ragged=False),
            fi_api=_FI_API,
            template=_template,
            sglang_symbols=(f"{_FLA}.fused_recurrent.fused_recurrent_kda_packed_decode",),
            ground_truth=_decode_ground_truth,
        ),
        KernelType(
            id="kda_prefill",
            op_type="kda",
            summary="Kimi Delta Attention over ragged prompts",
            parameters=KdaParameters,
            define=partial(_define, ragged=True),
            fi_api=_FI_API,
            # No template: it knows batches of equal length only.
            sglang_symbols=(f"{_FLA}.kda.chunk_kda",),
            ground_truth=_prefill_ground_truth,
        ),
    ),
    input_rules={
        "g": _make_log_decay,
        "beta": positive(0.05, 0.95),
        "initial_state": random(0.1),
        "scale": _make_scale,
    },
    axis_sizes={"total_seq_len": 11},
    test_sizes={"total_seq_len": (96, 768)},
    work=_work,
)
