"""mamba_ssu: the selective state space of Mamba-2, one token of each sequence or ragged prompts.

Dao and Gu, Transformers are SSMs (2024). For each head, with the state S of shape [dim, dstate]:
    step = softplus(dt + dt_bias)
    S = exp(step * A) * S + (step * x) B^T
    output = S C + D * x
Decode takes the tensors as serving engines call the kernel: a pool of states in four dimensions, and A, D, dt and
dt_bias spread over the head's elements, where Mamba-2 has one value a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from fib_tools.model.definition import Axis, Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import InputRule, KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.recurrent_wrappers import mamba_ground_truth
from fib_tools.op_types.rules import random, row_ids
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "MambaParameters", "MambaScanParameters"]


class MambaParameters(Parameters):
    """The heads of one state space."""

    silent: ClassVar[Mapping[str, Any]] = {"state_dtype": "float32"}

    num_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    d_state: int = Field(gt=0)
    num_groups: int = Field(gt=0)
    dtype: str = "bfloat16"
    state_dtype: str = "float32"
    """Element type of the state, as the engine keeps it."""

    @model_validator(mode="after")
    def _validate_heads_share_evenly(self) -> MambaParameters:
        if self.num_heads % self.num_groups:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_groups} groups evenly")
        return self


class MambaScanParameters(MambaParameters):
    """The heads of one state space, and the chunks its prefill kernel works in."""

    silent: ClassVar[Mapping[str, Any]] = {**MambaParameters.silent, "chunk_size": 128}

    chunk_size: int = Field(default=128, gt=0)
    """How the kernel cuts the work; the result is the same but for rounding."""


_DECODE = """
    @torch.no_grad()
    def run(state, x, dt, A, B, C, D, dt_bias, state_batch_indices):
        live = state_batch_indices >= 0
        slots = state_batch_indices[live].to(torch.int64)
        x32, dt32, B32, C32 = (t[live].to(torch.float32) for t in (x, dt, B, C))
        group = x.shape[1] // B.shape[1]
        B32, C32 = (t.repeat_interleave(group, dim=1).unsqueeze(2) for t in (B32, C32))

        step = F.softplus(dt32 + dt_bias.to(torch.float32))
        decay = torch.exp(step.unsqueeze(-1) * A.to(torch.float32))
        after = state[slots].to(torch.float32) * decay + (step * x32).unsqueeze(-1) * B32
        output = torch.zeros_like(x)
        output[live] = ((after * C32).sum(dim=-1) + D.to(torch.float32) * x32).to(x.dtype)
        new_state = state.clone()
        new_state[slots] = after.to(state.dtype)
        return output, new_state
"""

_SCAN = """
    @torch.no_grad()
    def run(x, dt, A, B, C, D, dt_bias, initial_states, cu_seqlens):
        x32 = x.to(torch.float32)
        group = x.shape[1] // B.shape[1]
        B32, C32 = (t.to(torch.float32).repeat_interleave(group, dim=1).unsqueeze(2) for t in (B, C))
        step = F.softplus(dt.to(torch.float32) + dt_bias.to(torch.float32))
        decay = torch.exp(step * A.to(torch.float32))[..., None, None]
        driven = (step.unsqueeze(-1) * x32).unsqueeze(-1)

        output = D.to(torch.float32)[:, None] * x32
        states = initial_states.to(torch.float32, copy=True)
        bounds = cu_seqlens.tolist()
        for sequence, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
            for t in range(start, end):
                states[sequence] = states[sequence] * decay[t] + driven[t] * B32[t]
                output[t] += (states[sequence] * C32[t]).sum(dim=-1)
        return output.to(x.dtype), states.to(initial_states.dtype)
"""


def _head_axes(parameters: MambaParameters) -> dict[str, Axis]:
    return {
        "nheads": const(parameters.num_heads, "Heads; each has a state."),
        "dim": const(parameters.head_dim, "Elements of one head."),
        "dstate": const(parameters.d_state, "Elements of the state for each element of a head."),
        "ngroups": const(parameters.num_groups, "Groups of heads that share B and C."),
    }


def _name(kernel: str, parameters: MambaParameters) -> str:
    heads = (("h", parameters.num_heads), ("d", parameters.head_dim))
    return format_name(kernel, *heads, ("s", parameters.d_state), ("ng", parameters.num_groups))


def _define_decode(parameters: MambaParameters) -> Definition:
    dtype, state = parameters.dtype, "state_cache_size nheads dim dstate"
    return Definition(
        name=_name("mamba_ssu_decode", parameters),
        description="Mamba-2 state update and read-out for one token of each sequence, with softplus of dt + dt_bias.",
        op_type="mamba_ssu",
        axes={
            "batch_size": var("Sequences."),
            "state_cache_size": var("Slots of the state pool."),
            **_head_axes(parameters),
        },
        constraints=["nheads % ngroups == 0", "state_cache_size >= batch_size"],
        inputs={
            "state": tensor(parameters.state_dtype, state, "The pool of states before."),
            "x": tensor(dtype, "batch_size nheads dim", "The token's values."),
            "dt": tensor(dtype, "batch_size nheads dim", "Step size before bias and softplus; one value a head."),
            "A": tensor("float32", "nheads dim dstate", "Decay rate, below 0; one value a head."),
            "B": tensor(dtype, "batch_size ngroups dstate", "Where the token is written in the state."),
            "C": tensor(dtype, "batch_size ngroups dstate", "How the state is read."),
            "D": tensor(dtype, "nheads dim", "Weight of the token itself; one value a head."),
            "dt_bias": tensor(dtype, "nheads dim", "Added to dt; one value a head."),
            "state_batch_indices": tensor(
                "int32", "batch_size", "Each sequence's slot in the pool, no two the same; below 0 the row is padding."
            ),
        },
        outputs={
            "output": tensor(dtype, "batch_size nheads dim", "The read-out of each token; 0 for padding."),
            "new_state": tensor(parameters.state_dtype, state, "The pool, each sequence's slot after the token."),
        },
        reference=source(_DECODE),
    )


def _define_scan(parameters: MambaScanParameters) -> Definition:
    dtype, state = parameters.dtype, "num_seqs nheads dim dstate"
    return Definition(
        name=_name("mamba_chunk_scan", parameters),
        description="Mamba-2 scan over ragged prompts from given states, with softplus of dt + dt_bias.",
        op_type="mamba_ssu",
        axes={
            "total_seq_len": var("Tokens of all sequences together."),
            "num_seqs": var("Sequences."),
            "len_cu_seqlens": var("Sequences plus one."),
            **_head_axes(parameters),
        },
        constraints=[
            "nheads % ngroups == 0",
            "len_cu_seqlens == num_seqs + 1",
            "total_seq_len == cu_seqlens[-1]",
        ],
        inputs={
            "x": tensor(dtype, "total_seq_len nheads dim", "The tokens' values."),
            "dt": tensor(dtype, "total_seq_len nheads", "Step size before bias and softplus."),
            "A": tensor("float32", "nheads", "Decay rate, below 0."),
            "B": tensor(dtype, "total_seq_len ngroups dstate", "Where each token is written in the state."),
            "C": tensor(dtype, "total_seq_len ngroups dstate", "How the state is read."),
            "D": tensor(dtype, "nheads", "Weight of the token itself."),
            "dt_bias": tensor(dtype, "nheads", "Added to dt."),
            "initial_states": tensor(parameters.state_dtype, state, "The state before each sequence's first token."),
            "cu_seqlens": tensor("int32", "len_cu_seqlens", "Where each sequence starts, and the total."),
        },
        outputs={
            "output": tensor(dtype, "total_seq_len nheads dim", "The read-out of each token."),
            "final_states": tensor(parameters.state_dtype, state, "The state after each sequence's last token."),
        },
        reference=source(_SCAN),
    )


def _per_head(low: float, high: float) -> InputRule:
    """Draw one value for each head (and row) and spread it over the axes behind, as Mamba-2 does."""

    def rule(request: InputRequest) -> torch.Tensor:
        axes = request.spec.shape or []
        behind = len(axes) if "nheads" not in axes else axes.index("nheads") + 1
        drawn = request.uniform(low, high, shape=request.shape[:behind])
        return drawn.reshape(*drawn.shape, *(1 for _ in axes[behind:])).expand(request.shape)

    return rule


_FI_API = "flashinfer.mamba.selective_state_update.selective_state_update"


def _decode_ground_truth(parameters: MambaParameters) -> GroundTruth:
    return mamba_ground_truth(
        "flashinfer.mamba.selective_state_update",
        head_dim=parameters.head_dim,
        d_state=parameters.d_state,
        heads_a_group=parameters.num_heads // parameters.num_groups,
    )


def _work(request: WorkRequest) -> Work | None:
    """Count tokens, states, and two products with the state for each token and head; not what is spread over a head."""
    if not request.has("x", "dt", "A", "B", "C", "D", "dt_bias"):
        return None
    heads, dim, width = request.axes.get("nheads", 0), request.axes.get("dim", 0), request.axes.get("dstate", 0)
    live, written = request.shape("x")[0], request.written()
    if request.has("state", "state_batch_indices"):
        live = request.count_distinct("state_batch_indices")
        states = request.read_rows("state", live)
        written += request.written_rows("new_state", live) - request.written("new_state")
    else:
        states = request.read("initial_states") if request.has("initial_states") else 0
    tokens = sum(request.read_rows(name, live) for name in ("x", "B", "C"))
    steps = request.read("dt") if len(request.shape("dt")) == 2 else 0
    return Work(
        read=tokens + steps + states, written=written, flops=4 * live * heads * dim * width, unit=request.unit("x")
    )


OP_TYPE = OpType(
    name="mamba_ssu",
    kernels=(
        KernelType(
            id="mamba_ssu_decode",
            op_type="mamba_ssu",
            summary="Mamba-2 state update and read-out for one token of each sequence",
            parameters=MambaParameters,
            define=_define_decode,
            fi_api=_FI_API,
            # No template: it has Mamba-1's three dimensions, and reads wrong axes from four.
            sglang_symbols=("sglang.kernels.ops.mamba.triton_ops.ssu_dispatch.selective_state_update",),
            ground_truth=_decode_ground_truth,
        ),
        KernelType(
            id="mamba_chunk_scan",
            op_type="mamba_ssu",
            summary="Mamba-2 scan over ragged prompts",
            parameters=MambaScanParameters,
            define=_define_scan,
            # FlashInfer's ssd_combined_fwd is for one size of head, state and chunk, and has a batch axis.
            sglang_symbols=("sglang.kernels.ops.mamba.triton_ops.ssd_combined.mamba_chunk_scan_combined",),
        ),
    ),
    input_rules={
        "state": random(0.1),
        "initial_states": random(0.1),
        "state_batch_indices": row_ids("state_cache_size"),
        "A": _per_head(-2.0, -1.0),
        "dt": _per_head(-1.0, 1.0),
        "D": _per_head(0.5, 1.5),
        "dt_bias": _per_head(-1.0, 0.0),
    },
    axis_sizes={"state_cache_size": 5, "total_seq_len": 11},
    test_sizes={"state_cache_size": (24, 160), "total_seq_len": (96, 768)},
    work=_work,
)
