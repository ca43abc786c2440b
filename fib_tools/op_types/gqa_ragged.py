"""gqa_ragged: grouped-query attention of new tokens to keys and values that lie in one piece, sequence after sequence."""

from __future__ import annotations

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import (
    INPUT_CODE,
    INPUT_RULES,
    INTEGER,
    WITHOUT_OUTLIERS,
    indptr_axis,
    lse_output,
    ragged_keys,
    softmax_scale,
    write_reference,
)
from fib_tools.op_types.attention_work import ragged_attention_work
from fib_tools.op_types.attention_wrappers import prefill_ground_truth
from fib_tools.op_types.base import KernelType, MetaTensor, OpType, TemplateCall, tensor, var
from fib_tools.op_types.gqa import GqaPrefillParameters
from fib_tools.op_types.ground_truth import GroundTruth

__all__ = ["OP_TYPE", "GqaRaggedPrefillParameters"]


class GqaRaggedPrefillParameters(GqaPrefillParameters):
    """A ragged prefill kernel: heads, variant and mask."""


def _define(parameters: GqaRaggedPrefillParameters) -> Definition:
    heads = "total_q num_qo_heads"
    keys = "total_kv num_kv_heads"
    inputs = {
        "q": tensor(parameters.dtype, f"{heads} head_dim", "The queries of all sequences, in order."),
        "k": tensor(parameters.cache_dtype, f"{keys} head_dim", "The keys of all sequences, in order."),
        "v": tensor(
            parameters.cache_dtype, f"{keys} {parameters.value_axis}", "The values of all sequences, in order."
        ),
        "qo_indptr": tensor(INTEGER, "len_indptr", "Where the queries of each sequence begin."),
        "kv_indptr": tensor(INTEGER, "len_indptr", "Where the keys of each sequence begin."),
        **parameters.scalar_inputs(),
    }
    kind = f"gqa_ragged_prefill_{parameters.mask_word}"
    return Definition(
        name=format_name(kind, *parameters.head_pieces(), *parameters.suffixes()),
        description=f"Grouped-query attention of new tokens to ragged keys. {parameters.core.sentences}",
        op_type="gqa_ragged",
        axes={
            **parameters.head_axes(),
            "len_indptr": indptr_axis(),
            "total_q": var("Queries of all sequences."),
            "total_kv": var("Keys of all sequences."),
        },
        constraints=["total_q == qo_indptr[-1]", "total_kv == kv_indptr[-1]", "num_qo_heads % num_kv_heads == 0"],
        inputs=inputs,
        outputs={
            "output": tensor(parameters.dtype, f"{heads} {parameters.value_axis}", "The attention output."),
            "lse": lse_output(heads),
        },
        reference=write_reference(
            parameters.core,
            inputs=inputs,
            keys=f"{ragged_keys(parameters.core)}\n{parameters.loaded('k[held]', 'v[held]')}",
            decode=False,
            width="v.shape[-1]",
        ),
    )


_API = "flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper.run"
_SEQUENCES, _QUERIES, _KEYS = 3, 7, 19


def _template(parameters: GqaRaggedPrefillParameters) -> TemplateCall:
    keys = (_KEYS, parameters.num_kv_heads)
    indptr = MetaTensor(shape=(_SEQUENCES + 1,), dtype=INTEGER)
    arguments = {
        "q": MetaTensor(shape=(_QUERIES, parameters.num_qo_heads, parameters.head_dim), dtype=parameters.dtype),
        "k": MetaTensor(shape=(*keys, parameters.head_dim), dtype=parameters.cache_dtype),
        "v": MetaTensor(shape=(*keys, parameters.value_dim), dtype=parameters.cache_dtype),
        "qo_indptr": indptr,
        "kv_indptr": indptr,
        **parameters.template_semantics(),
    }
    return TemplateCall(fi_api=_API, arguments=arguments)


def _ground_truth(parameters: GqaRaggedPrefillParameters) -> GroundTruth:
    return prefill_ground_truth(parameters, list(_define(parameters).inputs))


OP_TYPE = OpType(
    name="gqa_ragged",
    kernels=(
        KernelType(
            id="gqa_ragged_prefill",
            op_type="gqa_ragged",
            summary="grouped-query attention of new tokens to ragged keys and values",
            parameters=GqaRaggedPrefillParameters,
            define=_define,
            fi_api=_API,
            template=_template,
            sglang_symbols=("flashinfer.BatchPrefillWithRaggedKVCacheWrapper",),
            ground_truth=_ground_truth,
        ),
    ),
    input_rules={**INPUT_RULES, "sm_scale": softmax_scale("head_dim")},
    input_code=INPUT_CODE,
    axis_sizes={"len_indptr": 4},
    without_outliers=WITHOUT_OUTLIERS,
    work=ragged_attention_work,
)
