"""gqa_paged: grouped-query attention over a paged key-value cache, one query a sequence (decode) or several (prefill).

Pages hold `page_size` tokens in FlashInfer's NHD layout; kv_indices lists the pages of every sequence in order.
"""

from __future__ import annotations

from pydantic import Field

from fib_tools.model.definition import AxisConst, AxisVar, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import (
    INPUT_CODE,
    INPUT_RULES,
    INTEGER,
    WITHOUT_OUTLIERS,
    indptr_axis,
    lse_output,
    paged_inputs,
    paged_keys,
    softmax_scale,
    write_reference,
)
from fib_tools.op_types.attention_work import paged_attention_work
from fib_tools.op_types.attention_wrappers import paged_decode_ground_truth, prefill_ground_truth
from fib_tools.op_types.base import KernelType, MetaTensor, OpType, TemplateCall, const, tensor, var
from fib_tools.op_types.gqa import GqaParameters, GqaPrefillParameters
from fib_tools.op_types.ground_truth import GroundTruth

__all__ = ["OP_TYPE", "GqaPagedDecodeParameters", "GqaPagedPrefillParameters"]


class GqaPagedDecodeParameters(GqaParameters):
    """A decode kernel: heads, variant and page size."""

    page_size: int = Field(gt=0)


class GqaPagedPrefillParameters(GqaPrefillParameters):
    """A prefill kernel: heads, variant, mask and page size."""

    page_size: int = Field(gt=0)


_Parameters = GqaPagedDecodeParameters | GqaPagedPrefillParameters


def _cache_axes(parameters: _Parameters) -> dict[str, AxisConst | AxisVar]:
    return {
        "num_pages": var("Pages of the cache."),
        "page_size": const(parameters.page_size, "Tokens a page holds."),
        "len_indptr": indptr_axis(),
        "num_kv_indices": var("Pages of all sequences of the batch."),
    }


def _caches(parameters: _Parameters) -> dict[str, TensorSpec]:
    layout = "num_pages page_size num_kv_heads"
    return {
        "k_cache": tensor(parameters.cache_dtype, f"{layout} head_dim", "The key cache."),
        "v_cache": tensor(parameters.cache_dtype, f"{layout} {parameters.value_axis}", "The value cache."),
    }


def _outputs(parameters: _Parameters, rows: str) -> dict[str, TensorSpec]:
    heads = f"{rows} num_qo_heads"
    return {
        "output": tensor(parameters.dtype, f"{heads} {parameters.value_axis}", "The attention output."),
        "lse": lse_output(heads),
    }


def _reference(parameters: _Parameters, inputs: dict[str, TensorSpec]) -> str:
    gathered = "{}[pages].flatten(0, 1)[:length]"
    keys = "\n".join(
        [
            paged_keys(parameters.page_size, "k_cache"),
            parameters.loaded(gathered.format("k_cache"), gathered.format("v_cache")),
        ]
    )
    decode = isinstance(parameters, GqaPagedDecodeParameters)
    return write_reference(parameters.core, inputs=inputs, keys=keys, decode=decode, width="v_cache.shape[-1]")


def _define_decode(parameters: GqaPagedDecodeParameters) -> Definition:
    inputs = {
        "q": tensor(parameters.dtype, "batch_size num_qo_heads head_dim", "One query a sequence, its last token."),
        **_caches(parameters),
        **paged_inputs(parameters.page_size),
        **parameters.scalar_inputs(),
    }
    page = ("ps", parameters.page_size)
    return Definition(
        name=format_name("gqa_paged_decode", *parameters.head_pieces(), page, *parameters.suffixes()),
        description=f"Grouped-query attention of one query a sequence to a paged cache. {parameters.core.sentences}",
        op_type="gqa_paged",
        axes={"batch_size": var("Sequences."), **parameters.head_axes(), **_cache_axes(parameters)},
        constraints=[
            "len_indptr == batch_size + 1",
            "num_kv_indices == kv_indptr[-1]",
            "num_qo_heads % num_kv_heads == 0",
        ],
        inputs=inputs,
        outputs=_outputs(parameters, "batch_size"),
        reference=_reference(parameters, inputs),
    )


def _define_prefill(parameters: GqaPagedPrefillParameters) -> Definition:
    partial_pages = parameters.page_size > 1
    inputs = {
        "q": tensor(parameters.dtype, "total_q num_qo_heads head_dim", "The queries of all sequences, in order."),
        **_caches(parameters),
        "qo_indptr": tensor(INTEGER, "len_indptr", "Where the queries of each sequence begin."),
        **paged_inputs(parameters.page_size),
        **parameters.scalar_inputs(),
    }
    kind = f"gqa_paged_prefill_{parameters.mask_word}"
    page = ("ps", parameters.page_size)
    return Definition(
        name=format_name(kind, *parameters.head_pieces(), page, *parameters.suffixes()),
        description=f"Grouped-query attention of new tokens to a paged cache. {parameters.core.sentences}",
        op_type="gqa_paged",
        axes={
            **parameters.head_axes(),
            **({"batch_size": var("Sequences.")} if partial_pages else {}),
            **_cache_axes(parameters),
            "total_q": var("Queries of all sequences."),
        },
        constraints=[
            *(["len_indptr == batch_size + 1"] if partial_pages else []),
            "total_q == qo_indptr[-1]",
            "num_kv_indices == kv_indptr[-1]",
            "num_qo_heads % num_kv_heads == 0",
        ],
        inputs=inputs,
        outputs=_outputs(parameters, "total_q"),
        reference=_reference(parameters, inputs),
    )


_SEQUENCES, _QUERIES, _PAGES = 3, 7, 11


def _cache_arguments(parameters: _Parameters) -> dict[str, object]:
    """Pass the cache as a tuple of NHD tensors: of one 5-D tensor the template loses kv heads and page size."""
    layout = (_PAGES, parameters.page_size, parameters.num_kv_heads)
    lengths = MetaTensor(shape=(_SEQUENCES,), dtype=INTEGER)
    return {
        "paged_kv_cache": (
            MetaTensor(shape=(*layout, parameters.head_dim), dtype=parameters.cache_dtype),
            MetaTensor(shape=(*layout, parameters.value_dim), dtype=parameters.cache_dtype),
        ),
        "kv_indptr": MetaTensor(shape=(_SEQUENCES + 1,), dtype=INTEGER),
        "kv_indices": MetaTensor(shape=(_PAGES - 1,), dtype=INTEGER),
        **({"kv_last_page_len": lengths} if parameters.page_size > 1 else {}),
        **parameters.template_semantics(),
    }


_DECODE_API = "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.run"
_PREFILL_API = "flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper.run"


def _decode_template(parameters: GqaPagedDecodeParameters) -> TemplateCall:
    q = MetaTensor(shape=(_SEQUENCES, parameters.num_qo_heads, parameters.head_dim), dtype=parameters.dtype)
    return TemplateCall(fi_api=_DECODE_API, arguments={"q": q, **_cache_arguments(parameters)})


def _prefill_template(parameters: GqaPagedPrefillParameters) -> TemplateCall:
    q = MetaTensor(shape=(_QUERIES, parameters.num_qo_heads, parameters.head_dim), dtype=parameters.dtype)
    qo_indptr = MetaTensor(shape=(_SEQUENCES + 1,), dtype=INTEGER)
    arguments = {"q": q, "qo_indptr": qo_indptr, **_cache_arguments(parameters)}
    return TemplateCall(fi_api=_PREFILL_API, arguments=arguments)


def _decode_ground_truth(parameters: GqaPagedDecodeParameters) -> GroundTruth:
    return paged_decode_ground_truth(parameters, list(_define_decode(parameters).inputs), parameters.page_size)


def _prefill_ground_truth(parameters: GqaPagedPrefillParameters) -> GroundTruth:
    return prefill_ground_truth(parameters, list(_define_prefill(parameters).inputs), page_size=parameters.page_size)


OP_TYPE = OpType(
    name="gqa_paged",
    kernels=(
        KernelType(
            id="gqa_paged_decode",
            op_type="gqa_paged",
            summary="grouped-query attention of one query a sequence to a paged cache",
            parameters=GqaPagedDecodeParameters,
            define=_define_decode,
            fi_api=_DECODE_API,
            template=_decode_template,
            sglang_symbols=("flashinfer.BatchDecodeWithPagedKVCacheWrapper",),
            ground_truth=_decode_ground_truth,
        ),
        KernelType(
            id="gqa_paged_prefill",
            op_type="gqa_paged",
            summary="grouped-query attention of new tokens to a paged cache",
            parameters=GqaPagedPrefillParameters,
            define=_define_prefill,
            fi_api=_PREFILL_API,
            template=_prefill_template,
            sglang_symbols=("flashinfer.BatchPrefillWithPagedKVCacheWrapper",),
            ground_truth=_prefill_ground_truth,
        ),
    ),
    input_rules={**INPUT_RULES, "sm_scale": softmax_scale("head_dim")},
    input_code=INPUT_CODE,
    axis_sizes={"len_indptr": 4},
    without_outliers=WITHOUT_OUTLIERS,
    work=paged_attention_work,
)
