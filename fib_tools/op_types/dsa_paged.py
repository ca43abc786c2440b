"""dsa_paged: DeepSeek sparse attention, the indexer that chooses tokens and latent attention to those it chose.

DeepSeek-AI, DeepSeek-V3.2-Exp (2025): the indexer's score of a key is sum_h w_h relu(q_h . k), and each query attends
to the topk keys of highest score. Chosen tokens are named by their slot in the cache: page * page_size + offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import (
    INTEGER,
    MLA_PLAIN_SCALE,
    WITHOUT_OUTLIERS,
    lse_output,
    settle_scale,
    sm_scale_input,
    softmax_scale,
)
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
from fib_tools.op_types.ground_truth import GroundTruth, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import draw_distinct
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "DsaIndexerParameters", "DsaSparseAttentionParameters"]

_SCALE_BYTES = 4
"""A cached index key carries one float32 scale."""


class DsaSparseAttentionParameters(Parameters):
    """The heads and the selection of one sparse attention."""

    silent: ClassVar[Mapping[str, Any]] = {"sm_scale": MLA_PLAIN_SCALE}

    num_qo_heads: int = Field(gt=0)
    head_dim_ckv: int = Field(default=512, gt=0)
    head_dim_kpe: int = Field(default=64, gt=0)
    topk: int = Field(gt=0)
    page_size: int = Field(gt=0)
    sm_scale: float = Field(gt=0)
    """Of the unabsorbed head: 1 / sqrt(qk_nope_head_dim + qk_rope_head_dim), times YaRN's factor where there is one."""
    dtype: str = "bfloat16"

    @field_validator("sm_scale")
    @classmethod
    def _settle_scale(cls, value: float) -> float:
        return settle_scale(value, MLA_PLAIN_SCALE)


class DsaIndexerParameters(Parameters):
    """The heads and the selection of one indexer."""

    num_index_heads: int = Field(gt=0)
    index_head_dim: int = Field(gt=0, multiple_of=_SCALE_BYTES)
    topk: int = Field(gt=0)
    page_size: int = Field(gt=0)
    dtype: Literal["fp8"] = "fp8"


_ATTENTION = """
    @torch.no_grad()
    def run(q_nope, q_pe, ckv_cache, kpe_cache, sparse_indices, sm_scale):
        latents = ckv_cache.flatten(0, 1)
        rotary = kpe_cache.flatten(0, 1)
        output = torch.zeros_like(q_nope)
        lse = torch.full(q_nope.shape[:2], -torch.inf, dtype=torch.float32, device=q_nope.device)
        for t in range(q_nope.shape[0]):
            slots = sparse_indices[t][sparse_indices[t] >= 0].to(torch.int64)
            if slots.numel() == 0:
                continue
            values = latents[slots].to(torch.float32)
            keys = torch.cat([values, rotary[slots].to(torch.float32)], dim=-1)
            query = torch.cat([q_nope[t], q_pe[t]], dim=-1).to(torch.float32)
            logits = query @ keys.T * sm_scale
            lse[t] = torch.logsumexp(logits, dim=-1) / math.log(2)
            output[t] = torch.softmax(logits, dim=-1) @ values
        return output, lse
"""


def _define_attention(parameters: DsaSparseAttentionParameters) -> Definition:
    dtype, heads, cache = parameters.dtype, "num_tokens num_qo_heads", "num_pages page_size"
    pieces = (
        ("h", parameters.num_qo_heads),
        ("ckv", parameters.head_dim_ckv),
        ("kpe", parameters.head_dim_kpe),
        ("topk", parameters.topk),
        ("ps", parameters.page_size),
    )
    return Definition(
        name=format_name("dsa_sparse_attention", *pieces),
        description="Latent attention of each query to the cached tokens chosen for it. "
        "A query for which none is chosen has output 0 and lse -inf.",
        op_type="dsa_paged",
        axes={
            "num_tokens": var("Queries, of decode or prefill."),
            "num_qo_heads": const(parameters.num_qo_heads, "Query heads on this device."),
            "head_dim_ckv": const(parameters.head_dim_ckv, "Width of a latent: kv_lora_rank."),
            "head_dim_kpe": const(parameters.head_dim_kpe, "Width of the rotary part: qk_rope_head_dim."),
            "page_size": const(parameters.page_size, "Tokens a page holds."),
            "topk": const(parameters.topk, "Most tokens that are chosen for a query."),
            "num_pages": var("Pages of the cache."),
        },
        inputs={
            "q_nope": tensor(dtype, f"{heads} head_dim_ckv", "The queries, absorbed into latent space."),
            "q_pe": tensor(dtype, f"{heads} head_dim_kpe", "The rotary part of the queries."),
            "ckv_cache": tensor(dtype, f"{cache} head_dim_ckv", "The latent cache: keys and values."),
            "kpe_cache": tensor(dtype, f"{cache} head_dim_kpe", "The rotary part of the keys."),
            "sparse_indices": tensor(
                INTEGER, "num_tokens topk", "Chosen slots, page * page_size + offset; -1 is none."
            ),
            "sm_scale": sm_scale_input(parameters.sm_scale),
        },
        outputs={
            "output": tensor(dtype, f"{heads} head_dim_ckv", "The attention output in latent space, before W_UV."),
            "lse": lse_output(heads),
        },
        reference=source(_ATTENTION),
    )


_INDEXER = """
    @torch.no_grad()
    def run(q_index_fp8, k_index_cache_fp8, weights, seq_lens, block_table):
        batch_size, _, dim = q_index_fp8.shape
        page_size = k_index_cache_fp8.shape[1]
        topk_indices = torch.full((batch_size, TOPK), -1, dtype=torch.int32, device=q_index_fp8.device)
        for b in range(batch_size):
            length = int(seq_lens[b])
            if length == 0:
                continue
            pages = block_table[b, : (length + page_size - 1) // page_size].to(torch.int64)
            packed = k_index_cache_fp8[pages].reshape(pages.numel(), -1)
            keys = packed[:, : page_size * dim].clone().view(torch.float8_e4m3fn).to(torch.float32)
            scales = packed[:, page_size * dim :].clone().view(torch.float32)
            keys = (keys.reshape(-1, dim) * scales.reshape(-1, 1))[:length]
            dots = torch.relu(q_index_fp8[b].to(torch.float32) @ keys.T)
            scores = (dots * weights[b].to(torch.float32)[:, None]).sum(dim=0)
            chosen = torch.topk(scores, min(TOPK, length)).indices
            slots = pages[chosen // page_size] * page_size + chosen % page_size
            topk_indices[b, : chosen.numel()] = slots.to(torch.int32)
        return topk_indices
"""


def _define_indexer(parameters: DsaIndexerParameters) -> Definition:
    pieces = (
        ("h", parameters.num_index_heads),
        ("d", parameters.index_head_dim),
        ("topk", parameters.topk),
        ("ps", parameters.page_size),
    )
    packed = "Index keys: each page holds the fp8 bytes of all its keys, then their float32 scales."
    return Definition(
        name=format_name(f"dsa_topk_indexer_{parameters.dtype}", *pieces),
        description="Choose for each query the topk cached tokens of highest score sum_h w_h relu(q_h . k). "
        "The order within a row is free; rows of shorter sequences end in -1.",
        op_type="dsa_paged",
        axes={
            "batch_size": var("Sequences, one query each."),
            "num_index_heads": const(parameters.num_index_heads, "Heads of the indexer; they are not split by TP."),
            "index_head_dim": const(parameters.index_head_dim, "Width of an index query and key."),
            "page_size": const(parameters.page_size, "Tokens a page holds."),
            "topk": const(parameters.topk, "Most tokens that are chosen for a query."),
            "max_num_pages": var("Columns of the block table: pages of the longest sequence."),
            "num_pages": var("Pages of the cache."),
            "kv_cache_num_heads": const(1, "All index heads share one key."),
            "head_dim_with_scale": const(parameters.index_head_dim + _SCALE_BYTES, "Bytes of a key and its scale."),
        },
        inputs={
            "q_index_fp8": tensor("float8_e4m3fn", "batch_size num_index_heads index_head_dim", "The index queries."),
            "k_index_cache_fp8": tensor("int8", "num_pages page_size kv_cache_num_heads head_dim_with_scale", packed),
            "weights": tensor("float32", "batch_size num_index_heads", "The weight of each head, scales folded in."),
            "seq_lens": tensor(INTEGER, "batch_size", "Tokens of each sequence."),
            "block_table": tensor(INTEGER, "batch_size max_num_pages", "The pages of each sequence, in order."),
        },
        outputs={
            "topk_indices": tensor(INTEGER, "batch_size topk", "Chosen slots, page * page_size + offset; -1 is none."),
        },
        reference=source(_INDEXER, TOPK=parameters.topk),
    )


_API = "flashinfer.mla._core.trtllm_batch_decode_with_kv_cache_mla"
_SEQUENCES, _PAGES, _LONGEST, _WORKSPACE_BYTES = 3, 11, 500, 1 << 20
_PLAIN_NOPE = 128
"""DeepSeek's qk_nope_head_dim."""


def _nope_head_dim(parameters: DsaSparseAttentionParameters) -> int:
    """Find qk_nope_head_dim from the softmax scale where YaRN leaves it plain, as in GLM-5 (192); else DeepSeek's."""
    width = round(parameters.sm_scale**-2)
    is_plain = math.isclose(width**-0.5, parameters.sm_scale, rel_tol=1e-6)
    return width - parameters.head_dim_kpe if is_plain and width > parameters.head_dim_kpe else _PLAIN_NOPE


def _template(parameters: DsaSparseAttentionParameters) -> TemplateCall:
    """Call with queries and caches fused to ckv beside kpe, and the cache 4-D: of a 3-D one it reads ps576."""
    fused = parameters.head_dim_ckv + parameters.head_dim_kpe
    arguments = {
        "query": MetaTensor(shape=(_SEQUENCES, 1, parameters.num_qo_heads, fused), dtype=parameters.dtype),
        "kv_cache": MetaTensor(shape=(_PAGES, 1, parameters.page_size, fused), dtype=parameters.dtype),
        "workspace_buffer": MetaTensor(shape=(_WORKSPACE_BYTES,), dtype="uint8"),
        "qk_nope_head_dim": _nope_head_dim(parameters),
        "kv_lora_rank": parameters.head_dim_ckv,
        "qk_rope_head_dim": parameters.head_dim_kpe,
        "block_tables": MetaTensor(shape=(_SEQUENCES, 1, parameters.topk), dtype=INTEGER),
        "seq_lens": MetaTensor(shape=(_SEQUENCES,), dtype=INTEGER),
        "max_seq_len": _LONGEST,
        "sparse_mla_top_k": parameters.topk,
        "bmm1_scale": parameters.sm_scale,
    }
    return TemplateCall(fi_api=_API, arguments=arguments, selector={"sparse_mla_top_k": parameters.topk})


def _attention_ground_truth(_parameters: DsaSparseAttentionParameters) -> GroundTruth:
    what = "FlashInfer's sparse MLA needs Blackwell and takes the length of each sequence"
    return no_kernel(f"{what}, by which it tells padding; this Definition has -1 among the chosen slots instead")


def _sparse_indices(request: InputRequest) -> torch.Tensor:
    """Choose distinct slots for each query, the first row as many as there can be, the others some."""
    import torch

    rows, topk = request.shape
    slots = request.axes.get("num_pages", 1) * request.axes.get("page_size", 1)
    most = min(topk, slots)
    indices = torch.full((rows, topk), -1, dtype=request.dtype)
    counts = [most, *request.integers(1, most + 1, (max(rows - 1, 0),)).tolist()][:rows]
    for row, count in enumerate(counts):
        indices[row, :count] = draw_distinct(count, slots, generator=request.generator).to(request.dtype)
    return indices.to(request.device)


def _index_cache(request: InputRequest) -> torch.Tensor:
    """Pack fp8 keys and positive scales page by page, as random bytes would hold NaN."""
    import torch

    pages, page_size, heads, width = request.shape
    dim, tokens = width - _SCALE_BYTES, page_size * heads
    keys = request.normal(shape=(pages, tokens * dim), dtype=torch.float8_e4m3fn).view(torch.int8)
    scales = request.uniform(0.5, 1.5, shape=(pages, tokens), dtype=torch.float32).view(torch.int8)
    return torch.cat([keys, scales], dim=1).reshape(request.shape)


def _seq_lens(request: InputRequest) -> torch.Tensor:
    """Make the first sequence fill its row of the block table, and the others some of theirs."""
    capacity = request.axes.get("max_num_pages", 1) * request.axes.get("page_size", 1)
    lengths = request.integers(1, capacity + 1)
    lengths[:1] = capacity
    return lengths


def _block_table(request: InputRequest) -> torch.Tensor:
    """Give each sequence pages of its own, repeating none within a row where the cache has enough."""
    import torch

    rows, columns = request.shape
    pages = request.axes.get("num_pages", columns)
    repeats = -(-columns // pages)
    drawn = [
        torch.cat([torch.randperm(pages, generator=request.generator) for _ in range(repeats)])[:columns]
        for _ in range(rows)
    ]
    table = torch.stack(drawn) if drawn else torch.empty((0, columns))
    return table.to(dtype=request.dtype, device=request.device)


def _work(request: WorkRequest) -> Work | None:
    """Count the cached tokens that are chosen, or those to choose from, each once."""
    if request.has("q_nope", "q_pe", "ckv_cache", "kpe_cache", "sparse_indices"):
        return _attention_work(request)
    if request.has("q_index_fp8", "k_index_cache_fp8", "weights", "seq_lens", "block_table"):
        return _indexer_work(request)
    return None


def _attention_work(request: WorkRequest) -> Work:
    slots = request.count_distinct("sparse_indices")
    pairs = int((request.integers("sparse_indices") >= 0).sum())
    latent, rotary = request.shape("ckv_cache")[-1], request.shape("kpe_cache")[-1]
    rows = [request.read_rows(name, slots, leading=2) for name in ("ckv_cache", "kpe_cache")]
    return Work(
        read=request.read("q_nope", "q_pe") + sum(rows),
        written=request.written(),
        flops=2 * pairs * request.shape("q_nope")[1] * (2 * latent + rotary),
        unit=request.unit("ckv_cache"),
    )


def _indexer_work(request: WorkRequest) -> Work:
    """Leave out sequences of no more than topk tokens, of which all are chosen, whatever their scores are."""
    import torch

    topk = next(iter(request.definition.outputs))
    page_size, most = request.shape("k_index_cache_fp8")[1], request.shape(topk)[-1]
    lengths, table = request.integers("seq_lens"), request.integers("block_table")
    scored = torch.nonzero(lengths > most).flatten().tolist()
    touched = torch.zeros(request.shape("k_index_cache_fp8")[0], page_size, dtype=torch.bool)
    for row in scored:
        keys = torch.arange(int(lengths[row]))
        touched[table[row, keys // page_size], keys % page_size] = True
    _, heads, width = request.shape("q_index_fp8")
    return Work(
        read=sum(request.read_rows(name, len(scored)) for name in ("q_index_fp8", "weights"))
        + request.read_rows("k_index_cache_fp8", int(touched.sum()), leading=2),
        written=request.written(),
        flops=2 * heads * width * int(lengths[scored].sum()),
        unit="fp8",
    )


OP_TYPE = OpType(
    name="dsa_paged",
    kernels=(
        KernelType(
            id="dsa_sparse_attention",
            op_type="dsa_paged",
            summary="latent attention of each query to the cached tokens chosen for it",
            parameters=DsaSparseAttentionParameters,
            define=_define_attention,
            fi_api=_API,
            template=_template,
            sglang_symbols=(
                "flashinfer.decode.trtllm_batch_decode_with_kv_cache_mla",
                "sgl_kernel.flash_mla.flash_mla_sparse_fwd",
            ),
            ground_truth=_attention_ground_truth,
        ),
        KernelType(
            id="dsa_topk_indexer",
            op_type="dsa_paged",
            summary="choice of the cached tokens of highest index score",
            parameters=DsaIndexerParameters,
            define=_define_indexer,
            sglang_symbols=("deep_gemm.fp8_paged_mqa_logits", "sgl_kernel.fast_topk_v2"),
        ),
    ),
    input_rules={
        "sparse_indices": _sparse_indices,
        "k_index_cache_fp8": _index_cache,
        "seq_lens": _seq_lens,
        "block_table": _block_table,
        "sm_scale": softmax_scale("head_dim_kpe", extra=128),
    },
    axis_sizes={"max_num_pages": 36, "num_pages": 40},
    without_outliers=WITHOUT_OUTLIERS,
    work=_work,
)
