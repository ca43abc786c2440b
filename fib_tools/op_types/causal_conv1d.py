"""causal_conv1d: the short depthwise convolution before Mamba-2, GDN and KDA.

y[c, t] = activation(sum_j weight[c, j] * x[c, t - width + 1 + j] + bias[c]); what lies before the first token comes
from the state, the last width - 1 tokens seen.
Tensors have the layouts of the causal-conv1d package, which serving engines keep: tokens last in prefill.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fib_tools.model.definition import Axis, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.rules import indptr, random, row_ids
from fib_tools.op_types.work_request import Work, WorkRequest

__all__ = ["OP_TYPE", "CausalConv1dParameters"]


class CausalConv1dParameters(Parameters):
    """The channels and taps of one convolution."""

    channels: int = Field(gt=0)
    width: int = Field(gt=1)
    activation: Literal["silu", "none"] = "silu"
    bias: bool = False
    dtype: str = "bfloat16"


_DECODE = """
    @torch.no_grad()
    def run(x, conv_state, weight{bias_argument}, conv_state_indices):
        live = conv_state_indices >= 0
        slots = conv_state_indices[live].to(torch.int64)
        window = torch.cat([conv_state[slots], x[live].unsqueeze(-1)], dim=-1)
        y = (window.to(torch.float32) * weight.to(torch.float32)).sum(dim=-1){bias_term}
        output = torch.zeros_like(x)
        output[live] = {result}.to(x.dtype)
        new_conv_state = conv_state.clone()
        new_conv_state[slots] = window[..., 1:]
        return output, new_conv_state
"""

_PREFILL = """
    @torch.no_grad()
    def run(x, weight{bias_argument}, conv_states, query_start_loc, cache_indices, has_initial_state):
        channels, width = weight.shape
        taps = weight.to(torch.float32).unsqueeze(1)
        output, new_conv_states = torch.zeros_like(x), conv_states.clone()
        bounds, known = query_start_loc.tolist(), has_initial_state.tolist()
        for sequence, slot in enumerate(cache_indices.tolist()):
            start, end = bounds[sequence], bounds[sequence + 1]
            if slot < 0 or start == end:
                continue
            past = conv_states[slot] if known[sequence] else torch.zeros_like(conv_states[slot])
            window = torch.cat([past, x[:, start:end]], dim=1)
            y = F.conv1d(window.to(torch.float32).unsqueeze(0), taps, groups=channels).squeeze(0){bias_term}
            output[:, start:end] = {result}.to(x.dtype)
            new_conv_states[slot] = window[:, 1 - width :]
        return output, new_conv_states
"""


def _reference(parameters: CausalConv1dParameters, *, ragged: bool) -> str:
    shift = "bias.to(torch.float32)" + ("[:, None]" if ragged else "")
    text = (_PREFILL if ragged else _DECODE).format(
        bias_argument=", bias" if parameters.bias else "",
        bias_term=f" + {shift}" if parameters.bias else "",
        result="F.silu(y)" if parameters.activation == "silu" else "y",
    )
    return source(text)


def _weights(parameters: CausalConv1dParameters) -> dict[str, TensorSpec]:
    weights = {"weight": tensor(parameters.dtype, "channels width", "The taps of each channel, oldest token first.")}
    if parameters.bias:
        weights["bias"] = tensor(parameters.dtype, "channels", "Added to each channel.")
    return weights


def _channel_axes(parameters: CausalConv1dParameters) -> dict[str, Axis]:
    return {
        "state_cache_size": var("Slots of the state pool."),
        "channels": const(parameters.channels, "Channels, each with taps of its own."),
        "width": const(parameters.width, "Taps: the token and those before it."),
        "state_len": const(parameters.width - 1, "Tokens that the state keeps."),
    }


def _name(kernel: str, parameters: CausalConv1dParameters) -> str:
    bias = "bias" if parameters.bias else ""
    linear = "" if parameters.activation == "silu" else "linear"
    return format_name(kernel, bias, linear, ("c", parameters.channels), ("w", parameters.width))


def _define_decode(parameters: CausalConv1dParameters) -> Definition:
    dtype, state = parameters.dtype, "state_cache_size channels state_len"
    return Definition(
        name=_name("causal_conv1d_decode", parameters),
        description=f"Causal depthwise convolution of one token of each sequence, activation {parameters.activation}.",
        op_type="causal_conv1d",
        axes={"batch_size": var("Sequences."), **_channel_axes(parameters)},
        constraints=["state_len == width - 1", "state_cache_size >= batch_size"],
        inputs={
            "x": tensor(dtype, "batch_size channels", "The token of each sequence."),
            "conv_state": tensor(dtype, state, "The pool of the last tokens, newest last."),
            **_weights(parameters),
            "conv_state_indices": tensor(
                "int32", "batch_size", "Each sequence's slot in the pool, no two the same; below 0 the row is padding."
            ),
        },
        outputs={
            "output": tensor(dtype, "batch_size channels", "The filtered tokens; 0 for padding."),
            "new_conv_state": tensor(dtype, state, "The pool, each sequence's slot moved on by its token."),
        },
        reference=_reference(parameters, ragged=False),
    )


def _define_prefill(parameters: CausalConv1dParameters) -> Definition:
    dtype, state = parameters.dtype, "state_cache_size channels state_len"
    slots = "Each sequence's slot in the pool, no two the same; below 0 the sequence is padding."
    return Definition(
        name=_name("causal_conv1d_prefill", parameters),
        description=f"Causal depthwise convolution over ragged prompts, activation {parameters.activation}.",
        op_type="causal_conv1d",
        axes={
            "total_seq_len": var("Tokens of all sequences together."),
            "num_seqs": var("Sequences."),
            "len_query_start_loc": var("Sequences plus one."),
            **_channel_axes(parameters),
        },
        constraints=[
            "state_len == width - 1",
            "state_cache_size >= num_seqs",
            "len_query_start_loc == num_seqs + 1",
            "total_seq_len == query_start_loc[-1]",
        ],
        inputs={
            "x": tensor(dtype, "channels total_seq_len", "The tokens, one sequence after the other."),
            **_weights(parameters),
            "conv_states": tensor(dtype, state, "The pool of the last tokens, newest last."),
            "query_start_loc": tensor("int32", "len_query_start_loc", "Where each sequence starts, and the total."),
            "cache_indices": tensor("int32", "num_seqs", slots),
            "has_initial_state": tensor("bool", "num_seqs", "Whether the slot holds tokens that came before."),
        },
        outputs={
            "output": tensor(dtype, "channels total_seq_len", "The filtered tokens; 0 for padding."),
            "new_conv_states": tensor(dtype, state, "The pool, each sequence's slot with its last tokens."),
        },
        reference=_reference(parameters, ragged=True),
    )


_SGLANG = "sglang.kernels.ops.mamba.causal_conv1d_triton"


def _kernel(name: str, *, ragged: bool) -> KernelType[CausalConv1dParameters]:
    of = "over ragged prompts" if ragged else "of one token of each sequence"
    return KernelType(
        id=f"causal_conv1d_{name}",
        op_type="causal_conv1d",
        summary=f"causal depthwise convolution {of}",
        parameters=CausalConv1dParameters,
        define=_define_prefill if ragged else _define_decode,
        sglang_symbols=(f"{_SGLANG}.causal_conv1d_fn" if ragged else f"{_SGLANG}.causal_conv1d_update",),
    )


def _work(request: WorkRequest) -> Work | None:
    """Count the tokens of sequences that have a slot, the slots that are read, and those that are moved on."""
    if not request.has("x", "weight"):
        return None
    if request.has("conv_state", "conv_state_indices"):
        live = request.count_distinct("conv_state_indices")
        read = request.read_rows("x", live) + request.read_rows("conv_state", live)
        moved = request.written_rows("new_conv_state", live)
    elif request.has("conv_states", "cache_indices", "has_initial_state", "query_start_loc"):
        lengths, slots = request.integers("query_start_loc").diff(), request.integers("cache_indices")
        run = (slots >= 0) & (lengths > 0)
        known = int((run & (request.integers("has_initial_state") != 0)).sum())
        tokens = int(lengths[run].sum())
        read = request.read("x") // max(request.shape("x")[-1], 1) * tokens + request.read_rows("conv_states", known)
        moved = request.written_rows("new_conv_states", int(run.sum()))
    else:
        return None
    weights = request.read(*(name for name in ("weight", "bias") if request.has(name)))
    return Work(read=read + weights, written=request.written("output") + moved)


OP_TYPE = OpType(
    name="causal_conv1d",
    kernels=(_kernel("decode", ragged=False), _kernel("prefill", ragged=True)),
    input_rules={
        "weight": random(0.5),
        "conv_state_indices": row_ids("state_cache_size"),
        "cache_indices": row_ids("state_cache_size"),
        "query_start_loc": indptr(("total_seq_len",)),
    },
    axis_sizes={"state_cache_size": 5, "total_seq_len": 11},
    test_sizes={"state_cache_size": (24, 160), "total_seq_len": (96, 768)},
    work=_work,
)
