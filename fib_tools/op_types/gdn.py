"""gdn: the gated delta rule of Qwen3-Next and its kin, one token, several drafted tokens, or ragged prompts.

Yang, Kautz and Hatamizadeh, Gated Delta Networks (2024). For each value head, with the state S of shape [V, K]:
    S = exp(-exp(A_log) * softplus(a + dt_bias)) * S
    S = S + sigmoid(b) * (v - S k) k^T
    output = S (scale * q)
K-last: the key dimension is the state's last. A query and key head serves num_v_heads / num_q_heads value heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

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
from fib_tools.op_types.recurrent_wrappers import gdn_ground_truth
from fib_tools.op_types.rules import random, row_ids
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "GdnParameters"]


class GdnParameters(Parameters):
    """The heads of one gated delta rule."""

    silent: ClassVar[Mapping[str, Any]] = {"scale": None}

    num_q_heads: int = Field(gt=0)
    num_v_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    use_qk_l2norm: bool = True
    """Whether the kernel makes queries and keys unit vectors; False where they arrive as such."""
    scale: float | None = Field(default=None, gt=0)
    """What the model passes as `scale`; None for 1 / sqrt(head_size)."""
    dtype: str = "bfloat16"

    @model_validator(mode="after")
    def _validate_value_heads_share_evenly(self) -> GdnParameters:
        if self.num_v_heads % self.num_q_heads:
            raise ValueError(f"{self.num_v_heads} value heads cannot share {self.num_q_heads} query heads evenly")
        return self


_STEP = """
def unit(x):
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def prepare(q, k, num_v_heads, scale):
    q, k = (x.to(torch.float32) for x in (q, k))
    if USE_QK_L2NORM:
        q, k = unit(q), unit(k)
    group = num_v_heads // q.shape[-2]
    return q.repeat_interleave(group, dim=-2) * scale, k.repeat_interleave(group, dim=-2)


def gates(A_log, a, dt_bias, b):
    rate = torch.exp(A_log.to(torch.float32)) * F.softplus(a.to(torch.float32) + dt_bias.to(torch.float32))
    return torch.exp(-rate), torch.sigmoid(b.to(torch.float32))


def step(state, q, k, v, decay, beta):
    state = state * decay[..., None, None]
    missing = v.to(torch.float32) - (state * k[..., None, :]).sum(dim=-1)
    state = state + (missing * beta[..., None])[..., None] * k[..., None, :]
    return state, (state * q[..., None, :]).sum(dim=-1)
"""

_DECODE = """
@torch.no_grad()
def run(q, k, v, state, A_log, a, dt_bias, b, scale):
    decay, beta = gates(A_log, a, dt_bias, b)
    wide_q, wide_k = prepare(q, k, v.shape[2], scale)
    token = (x[:, 0] for x in (wide_q, wide_k, v, decay, beta))
    new_state, output = step(state.to(torch.float32), *token)
    return output.unsqueeze(1).to(q.dtype), new_state.to(state.dtype)
"""

_PREFILL = """
@torch.no_grad()
def run(q, k, v, state, A_log, a, dt_bias, b, cu_seqlens, scale):
    decay, beta = gates(A_log, a, dt_bias, b)
    wide_q, wide_k = prepare(q, k, v.shape[1], scale)
    output = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    new_state = state.to(torch.float32, copy=True)
    bounds = cu_seqlens.tolist()
    for sequence, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        for t in range(start, end):
            new_state[sequence], output[t] = step(new_state[sequence], wide_q[t], wide_k[t], v[t], decay[t], beta[t])
    return output.to(q.dtype), new_state.to(state.dtype)
"""

_MTP = """
@torch.no_grad()
def run(q, k, v, initial_state, initial_state_indices, A_log, a, dt_bias, b, scale):
    decay, beta = gates(A_log, a, dt_bias, b)
    wide_q, wide_k = prepare(q, k, v.shape[2], scale)
    live = initial_state_indices >= 0
    slots = initial_state_indices[live].to(torch.int64)
    state = initial_state[slots].to(torch.float32)
    output = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    shape = (*v.shape, v.shape[-1])
    intermediate_states = torch.zeros(shape, dtype=initial_state.dtype, device=v.device)
    for t in range(q.shape[1]):
        state, output[live, t] = step(state, *(x[live, t] for x in (wide_q, wide_k, v, decay, beta)))
        intermediate_states[live, t] = state.to(initial_state.dtype)
    final_state = initial_state.clone()
    final_state[slots] = state.to(initial_state.dtype)
    return output.to(q.dtype), final_state, intermediate_states
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One of the three calls: the axes that lead its token tensors and its states."""

    id: str
    summary: str
    tokens: str
    state: str
    state_axis: str
    run: str
    fi_api: str
    sglang_symbols: tuple[str, ...]


_FLA = "sglang.kernels.ops.attention.fla"

_FORMS = (
    _Form(
        id="gdn_decode",
        summary="gated delta rule for one token of each sequence",
        tokens="batch_size seq_len",
        state="state",
        state_axis="batch_size",
        run=_DECODE,
        # Not gated_delta_rule_decode: that one has the state K-major, and the same template.
        fi_api="flashinfer.gdn_decode.gated_delta_rule_decode_pretranspose",
        sglang_symbols=(f"{_FLA}.fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode",),
    ),
    _Form(
        id="gdn_prefill",
        summary="gated delta rule over ragged prompts",
        tokens="total_seq_len",
        state="state",
        state_axis="num_seqs",
        run=_PREFILL,
        fi_api="flashinfer.gdn_prefill.chunk_gated_delta_rule",
        sglang_symbols=(f"{_FLA}.chunk.chunk_gated_delta_rule",),
    ),
    _Form(
        id="gdn_mtp",
        summary="gated delta rule for several drafted tokens of each sequence, keeping the state after each",
        tokens="batch_size seq_len",
        state="initial_state",
        state_axis="pool_size",
        run=_MTP,
        fi_api="flashinfer.gdn_decode.gated_delta_rule_mtp",
        sglang_symbols=(f"{_FLA}.fused_recurrent.fused_recurrent_gated_delta_rule_update",),
    ),
)


def _axes(form: _Form, parameters: GdnParameters) -> dict[str, Axis]:
    leading: dict[str, dict[str, Axis]] = {
        "gdn_decode": {
            "batch_size": var("Sequences."),
            "seq_len": const(1, "Tokens of each sequence."),
        },
        "gdn_prefill": {
            "total_seq_len": var("Tokens of all sequences together."),
            "num_seqs": var("Sequences."),
            "len_cu_seqlens": var("Sequences plus one."),
        },
        "gdn_mtp": {
            "batch_size": var("Sequences."),
            "seq_len": var("Tokens of each sequence: the last accepted one and the drafted ones."),
            "pool_size": var("Slots of the state pool."),
        },
    }
    return {
        **leading[form.id],
        "num_q_heads": const(parameters.num_q_heads, "Query heads."),
        "num_k_heads": const(parameters.num_q_heads, "Key heads, as many as query heads."),
        "num_v_heads": const(parameters.num_v_heads, "Value heads; each has a state."),
        "head_size": const(parameters.head_size, "Elements of one head."),
    }


def _constraints(form: _Form) -> list[str]:
    return [
        "num_v_heads >= num_q_heads",
        "num_v_heads % num_q_heads == 0",
        "num_k_heads == num_q_heads",
        *(["len_cu_seqlens == num_seqs + 1", "total_seq_len == cu_seqlens[-1]"] if form.id == "gdn_prefill" else []),
        *(["seq_len > 1", "pool_size >= batch_size"] if form.id == "gdn_mtp" else []),
    ]


def _inputs(form: _Form, dtype: str) -> dict[str, TensorSpec]:
    what = "The state before, [V, K] for each value head."
    inputs = {
        "q": tensor(dtype, f"{form.tokens} num_q_heads head_size", "Queries."),
        "k": tensor(dtype, f"{form.tokens} num_k_heads head_size", "Keys."),
        "v": tensor(dtype, f"{form.tokens} num_v_heads head_size", "Values."),
        form.state: tensor("float32", f"{form.state_axis} num_v_heads head_size head_size", what),
    }
    if form.id == "gdn_mtp":
        inputs["initial_state_indices"] = tensor(
            "int32", "batch_size", "Each sequence's slot in the pool, no two the same; below 0 the row is padding."
        )
    inputs["A_log"] = tensor("float32", "num_v_heads", "Logarithm of each head's decay rate.")
    inputs["a"] = tensor(dtype, f"{form.tokens} num_v_heads", "The decay's dependence on the token.")
    inputs["dt_bias"] = tensor("float32", "num_v_heads", "Added to a before softplus.")
    inputs["b"] = tensor(dtype, f"{form.tokens} num_v_heads", "Logit of the update's strength.")
    if form.id == "gdn_prefill":
        inputs["cu_seqlens"] = tensor("int64", "len_cu_seqlens", "Where each sequence starts, and the total.")
    inputs["scale"] = scalar("float32", "Factor of the queries.")
    return inputs


def _outputs(form: _Form, dtype: str) -> dict[str, TensorSpec]:
    rows = "" if form.id != "gdn_mtp" else "; 0 for padding"
    outputs = {"output": tensor(dtype, f"{form.tokens} num_v_heads head_size", f"The read-out of each token{rows}.")}
    state = f"{form.state_axis} num_v_heads head_size head_size"
    if form.id != "gdn_mtp":
        return {**outputs, "new_state": tensor("float32", state, "The state after each sequence's last token.")}
    return {
        **outputs,
        "final_state": tensor("float32", state, "The pool, each sequence's slot after its last token."),
        "intermediate_states": tensor(
            "float32", f"{form.tokens} num_v_heads head_size head_size", "The state after each token; 0 for padding."
        ),
    }


def _define(form: _Form, parameters: GdnParameters) -> Definition:
    scale = "1 / sqrt(head_size)" if parameters.scale is None else parameters.scale
    unit = "made unit vectors" if parameters.use_qk_l2norm else "taken as they are"
    return Definition(
        name=format_name(
            form.id,
            ("qk", parameters.num_q_heads),
            ("v", parameters.num_v_heads),
            ("d", parameters.head_size),
            "k_last",
            "" if parameters.use_qk_l2norm else "rawqk",
        ),
        description=f"{form.summary.capitalize()}, K-last state; queries and keys are {unit}; scale is {scale}.",
        op_type="gdn",
        axes=_axes(form, parameters),
        constraints=_constraints(form),
        inputs=_inputs(form, parameters.dtype),
        outputs=_outputs(form, parameters.dtype),
        reference=source(_STEP.strip() + "\n\n" + form.run, USE_QK_L2NORM=parameters.use_qk_l2norm),
    )


def _template(form: _Form, parameters: GdnParameters) -> TemplateCall:
    dtype, sizes = parameters.dtype, parameters
    tokens = (6,) if form.id == "gdn_prefill" else (4, 1 if form.id == "gdn_decode" else 3)
    heads = (sizes.num_v_heads, sizes.head_size)
    state = MetaTensor(shape=(4, *heads, sizes.head_size), dtype="float32")
    gate = MetaTensor(shape=(*tokens, sizes.num_v_heads), dtype=dtype)
    per_head = MetaTensor(shape=(sizes.num_v_heads,), dtype="float32")
    queries = MetaTensor(shape=(*tokens, sizes.num_q_heads, sizes.head_size), dtype=dtype)
    arguments: dict[str, Any] = {"q": queries, "k": queries, "v": MetaTensor(shape=(*tokens, *heads), dtype=dtype)}
    arguments |= {"A_log": per_head, "dt_bias": per_head, "scale": parameters.scale or parameters.head_size**-0.5}
    if form.id == "gdn_prefill":
        # The template describes the raw gates under the names of the parameters that take the finished ones.
        offsets = MetaTensor(shape=(5,), dtype="int64")
        return TemplateCall(
            fi_api=form.fi_api,
            arguments=arguments | {"initial_state": state, "g": gate, "beta": gate, "cu_seqlens": offsets},
        )
    arguments |= {"a": gate, "b": gate, form.state: state, "use_qk_l2norm": parameters.use_qk_l2norm}
    if form.id == "gdn_mtp":
        arguments |= {"initial_state_indices": MetaTensor(shape=(4,), dtype="int32"), "disable_state_update": False}
    return TemplateCall(fi_api=form.fi_api, arguments=arguments)


def _ground_truth(form: _Form, parameters: GdnParameters) -> GroundTruth:
    return gdn_ground_truth(
        form.id,
        form.fi_api,
        head_size=parameters.head_size,
        dtype=parameters.dtype,
        use_qk_l2norm=parameters.use_qk_l2norm,
    )


def _kernel(form: _Form) -> KernelType[GdnParameters]:
    return KernelType(
        id=form.id,
        op_type="gdn",
        summary=form.summary,
        parameters=GdnParameters,
        define=partial(_define, form),
        fi_api=form.fi_api,
        template=partial(_template, form),
        sglang_symbols=form.sglang_symbols,
        ground_truth=partial(_ground_truth, form),
    )


def _make_unit_vectors(request: InputRequest) -> torch.Tensor:
    import torch

    drawn = request.normal().to(torch.float32)
    return torch.nn.functional.normalize(drawn, dim=-1).to(request.dtype)


def _make_scale(request: InputRequest) -> Any:
    return float(request.axes.get("head_size", 1) ** -0.5)


def _work(request: WorkRequest) -> Work | None:
    """Count what each token reads, its state before and after, and three products with the state for each of its heads."""
    if not request.has("q", "k", "v", "a", "b"):
        return None
    head = request.shape("v")[-1]
    live = request.shape("v")[0]
    per_head = request.read(*(name for name in ("A_log", "dt_bias") if request.has(name)))
    states, written = request.read("state") if request.has("state") else 0, request.written()
    if request.has("initial_state", "initial_state_indices"):
        live = request.count_distinct("initial_state_indices")
        states = request.read_rows("initial_state", live)
        written += request.written_rows("final_state", live) - request.written("final_state")
    tokens = sum(request.read_rows(name, live) for name in ("q", "k", "v", "a", "b"))
    products = live * math.prod(request.shape("v")[1:]) * head
    return Work(read=tokens + per_head + states, written=written, flops=6 * products, unit=request.unit("q"))


OP_TYPE = OpType(
    name="gdn",
    kernels=tuple(_kernel(form) for form in _FORMS),
    input_rules={
        "q": _make_unit_vectors,
        "k": _make_unit_vectors,
        "state": random(0.1),
        "initial_state": random(0.1),
        "initial_state_indices": row_ids("pool_size"),
        "A_log": random(0.1),
        "dt_bias": random(0.1),
        "scale": _make_scale,
    },
    axis_sizes={"total_seq_len": 11, "seq_len": 4, "pool_size": 5},
    test_sizes={"total_seq_len": (96, 768), "seq_len": (3, 6), "pool_size": (24, 160)},
    work=_work,
)
