"""rope: rotary position embedding of queries and keys, by a table of cosines and sines or by those of each token.

Su et al., RoFormer (2021): pairs of elements turn by position * frequency.
NeoX style pairs element i with i + rotary_dim / 2; GPT-J style pairs neighbours 2i and 2i + 1.
Elements beyond rotary_dim pass through.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from fib_tools.model.definition import Definition
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
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.tolerance import rounded, summed
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "RopeParameters", "TokenRopeParameters"]

_FI_API = "flashinfer.rope.apply_rope_with_cos_sin_cache"
_THETA = 10000.0
"""The base of the trial tables; real tables come with the model."""


class _RotationParameters(Parameters):
    head_dim: int = Field(gt=0)
    rotary_dim: int = Field(gt=0, multiple_of=2)

    @model_validator(mode="after")
    def _validate_turning_elements_fit_the_head(self) -> _RotationParameters:
        if self.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim {self.rotary_dim} is more than head_dim {self.head_dim}")
        return self


class RopeParameters(_RotationParameters):
    """The sizes of one rotation; the head counts are var axes, so they are not part of the kernel."""

    num_qo_heads: int = Field(default=1, gt=0)
    num_kv_heads: int = Field(default=1, gt=0)
    """Both for the template's call only: the Definition has them as var axes, and they cannot be read back from it."""
    is_neox: bool = True
    dtype: str = "bfloat16"


class TokenRopeParameters(_RotationParameters):
    """The sizes of one rotation whose cosines and sines come with the tokens, as transformers hands them to its layers."""

    num_heads: int = Field(gt=0)
    is_neox: bool = True
    dtype: str = "bfloat16"


_REFERENCE = """
    def rotate(rows, cos, sin):
        heads = rows.reshape(rows.shape[0], -1, HEAD_SIZE).to(torch.float32)
        turning, passing = heads.split([2 * cos.shape[-1], HEAD_SIZE - 2 * cos.shape[-1]], dim=-1)
        first, second = {pairs}
        turned = (first * cos - second * sin, second * cos + first * sin)
        turned = {joined}
        return torch.cat([turned, passing], dim=-1).reshape(rows.shape).to(rows.dtype)


    @torch.no_grad()
    def run(q, k, cos_sin_cache, positions):
        cos, sin = cos_sin_cache[positions].to(torch.float32).unsqueeze(1).chunk(2, dim=-1)
        return rotate(q, cos, sin), rotate(k, cos, sin)
"""

_NEOX = {"pairs": "turning.chunk(2, dim=-1)", "joined": "torch.cat(turned, dim=-1)"}
_GPTJ = {
    "pairs": "turning[..., 0::2], turning[..., 1::2]",
    "joined": "torch.stack(turned, dim=-1).flatten(start_dim=-2)",
}


def _reference(parameters: RopeParameters) -> str:
    layout = _NEOX if parameters.is_neox else _GPTJ
    return source(_REFERENCE.format(**layout), HEAD_SIZE=parameters.head_dim)


def _define(parameters: RopeParameters) -> Definition:
    style = "neox" if parameters.is_neox else "gptj"
    pairs = "i with i + rotary_dim / 2" if parameters.is_neox else "2i with 2i + 1"
    queries, keys = "nnz num_q_heads_x_head_size", "nnz num_k_heads_x_head_size"
    return Definition(
        name=format_name(
            f"rope_with_cos_sin_cache_{style}_style", ("d", parameters.head_dim), ("rd", parameters.rotary_dim)
        ),
        description=f"Rotary embedding from a cosine and sine table, pairing element {pairs} of each head.",
        op_type="rope",
        axes={
            "nnz": var("Tokens of all sequences together."),
            "num_q_heads_x_head_size": var("Query heads times head_size."),
            "num_k_heads_x_head_size": var("Key heads times head_size."),
            "head_size": const(parameters.head_dim, "Elements of one head."),
            "max_seq_len": var("Positions in the table."),
            "rotary_dim": const(parameters.rotary_dim, "Elements of each head that turn; the others pass through."),
        },
        constraints=[
            "num_q_heads_x_head_size % head_size == 0",
            "num_k_heads_x_head_size % head_size == 0",
            "rotary_dim <= head_size",
        ],
        inputs={
            "q": tensor(parameters.dtype, queries, "Queries, the heads side by side."),
            "k": tensor(parameters.dtype, keys, "Keys, the heads side by side."),
            "cos_sin_cache": tensor(
                "float32", "max_seq_len rotary_dim", "For each position rotary_dim / 2 cosines, then as many sines."
            ),
            "positions": tensor("int64", "nnz", "Each token's position, in [0, max_seq_len)."),
        },
        outputs={
            "q_out": tensor(parameters.dtype, queries, "The turned queries."),
            "k_out": tensor(parameters.dtype, keys, "The turned keys."),
        },
        reference=_reference(parameters),
    )


_REFERENCE_BY_ANGLES = """
    def rotate(heads, cos, sin):
        x = heads.to(torch.float32)
        turning, passing = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], dim=-1)
        first, second = {pairs}
        turned = (first * cos - second * sin, second * cos + first * sin)
        turned = {joined}
        return torch.cat([turned, passing], dim=-1).to(heads.dtype)


    @torch.no_grad()
    def run(q, k, cos, sin):
        cos, sin = (part.to(torch.float32).unsqueeze(1) for part in (cos, sin))
        return rotate(q, cos, sin), rotate(k, cos, sin)
"""


def _define_for_tokens(parameters: TokenRopeParameters) -> Definition:
    layout = _NEOX if parameters.is_neox else _GPTJ
    partial = [("rd", parameters.rotary_dim)] if parameters.rotary_dim != parameters.head_dim else []
    pairs = "i with i + rotary_dim / 2" if parameters.is_neox else "2i with 2i + 1"
    queries, keys = "num_tokens num_heads head_dim", "num_tokens num_kv_heads head_dim"
    angles = "of each pair's angle at the token's position."
    return Definition(
        name=format_name(
            "rope" if parameters.is_neox else "rope_gptj_style",
            ("h", parameters.num_heads),
            ("d", parameters.head_dim),
            *partial,
        ),
        description=f"Rotary embedding by the cosines and sines of each token, pairing element {pairs} of each head.",
        op_type="rope",
        axes={
            "num_tokens": var("Tokens of all sequences together."),
            "num_heads": const(parameters.num_heads, "Query heads."),
            "num_kv_heads": var("Key heads."),
            "head_dim": const(parameters.head_dim, "Elements of one head."),
            "rotary_dim": const(parameters.rotary_dim, "Elements of each head that turn; the others pass through."),
            "num_pairs": const(parameters.rotary_dim // 2, "Pairs of them."),
        },
        constraints=["rotary_dim <= head_dim", "2 * num_pairs == rotary_dim"],
        inputs={
            "q": tensor(parameters.dtype, queries, "Queries."),
            "k": tensor(parameters.dtype, keys, "Keys."),
            "cos": tensor(parameters.dtype, "num_tokens num_pairs", f"The cosine {angles}"),
            "sin": tensor(parameters.dtype, "num_tokens num_pairs", f"The sine {angles}"),
        },
        outputs={
            "q_out": tensor(parameters.dtype, queries, "The turned queries."),
            "k_out": tensor(parameters.dtype, keys, "The turned keys."),
        },
        reference=source(_REFERENCE_BY_ANGLES.format(**layout)),
    )


def _template(parameters: RopeParameters) -> TemplateCall:
    def rows(heads: int) -> MetaTensor:
        return MetaTensor(shape=(4, heads * parameters.head_dim), dtype=parameters.dtype)

    arguments = {
        "positions": MetaTensor(shape=(4,), dtype="int64"),
        "query": rows(parameters.num_qo_heads),
        "key": rows(parameters.num_kv_heads),
        "head_size": parameters.head_dim,
        "cos_sin_cache": MetaTensor(shape=(64, parameters.rotary_dim), dtype="float32"),
        "is_neox": parameters.is_neox,
    }
    return TemplateCall(fi_api=_FI_API, arguments=arguments)


_KERNEL = """
    @torch.no_grad()
    def run(q, k, cos_sin_cache, positions):
        return flashinfer.rope.apply_rope_with_cos_sin_cache(positions, q, k, HEAD_SIZE, cos_sin_cache, IS_NEOX)
"""


def _ground_truth(parameters: RopeParameters) -> GroundTruth:
    wrapper = Wrapper(
        kind="flashinfer",
        api=_FI_API,
        imports=("import flashinfer",),
        constants={"HEAD_SIZE": parameters.head_dim, "IS_NEOX": parameters.is_neox},
        body=_KERNEL,
    )
    return GroundTruth(wrappers=(wrapper,))


def _make_table(request: InputRequest) -> torch.Tensor:
    """Make cosines and sines of angles that rise from 0 or, where tables must differ, from anywhere."""
    import torch

    length, width = request.shape
    steps = torch.arange(0, width, 2, dtype=torch.float64, device=request.device)
    positions = torch.arange(length, dtype=torch.float64, device=request.device)
    angle = positions[:, None] * _THETA ** (-steps / width)
    if request.fresh:
        angle += request.uniform(0.0, 2 * math.pi, shape=(len(steps),), dtype=torch.float64)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(request.dtype)


def _make_unit(request: InputRequest) -> torch.Tensor:
    """Make cosines, or sines, of angles that nobody needs to know."""
    return request.uniform(-1.0, 1.0)


def _make_positions(request: InputRequest) -> torch.Tensor:
    return request.integers(0, request.axes.get("max_seq_len", 1))


def _work(request: WorkRequest) -> Work | None:
    """Count queries, keys and the rows of the table that some token stands at."""
    if not request.has("q", "k", "cos_sin_cache", "positions"):
        return None
    table = request.read_rows("cos_sin_cache", request.count_distinct("positions"))
    return Work(read=request.read("q", "k") + table, written=request.written())


OP_TYPE = OpType(
    name="rope",
    kernels=(
        KernelType(
            id="rope_with_cos_sin_cache",
            op_type="rope",
            summary="turn pairs of elements of each head by cos_sin_cache[positions]",
            parameters=RopeParameters,
            define=_define,
            fi_api=_FI_API,
            template=_template,
            sglang_symbols=("sglang.kernels.ops.attention.rope.apply_rope_with_cos_sin_cache_inplace",),
            ground_truth=_ground_truth,
            policy=rounded,
        ),
        KernelType(
            id="rope",
            op_type="rope",
            summary="turn pairs of elements of each head by the cosine and sine of each token",
            parameters=TokenRopeParameters,
            define=_define_for_tokens,
            policy=summed,
        ),
    ),
    input_rules={"cos_sin_cache": _make_table, "positions": _make_positions, "cos": _make_unit, "sin": _make_unit},
    input_code={
        "cos_sin_cache": "draw.rotary_table({shape})",
        "positions": "draw.integers({shape}, 0, {max_seq_len}, {dtype})",
    },
    test_sizes={
        "num_q_heads_x_head_size": (8 * 128, 32 * 128),
        "num_k_heads_x_head_size": (128, 8 * 128),
        "max_seq_len": (4096, 32768),
    },
    axis_sizes={"nnz": 7, "num_q_heads_x_head_size": 300, "num_k_heads_x_head_size": 160, "max_seq_len": 64},
    work=_work,
)
