"""mla_paged: multi-head latent attention over a paged cache of latents, after the up-projections were absorbed.

DeepSeek-AI, DeepSeek-V2 (2024), section 2.1: with W_UK absorbed into the query and W_UV into the output, all heads
share one key, the latent ckv beside the rotary kpe, and one value, the latent itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from fib_tools.model.definition import AxisConst, AxisVar, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import (
    FP8_SUFFIXES,
    INPUT_CODE,
    INPUT_RULES,
    INTEGER,
    MLA_PLAIN_SCALE,
    WITHOUT_OUTLIERS,
    Core,
    indptr_axis,
    lse_output,
    paged_inputs,
    paged_keys,
    settle_scale,
    sm_scale_input,
    softmax_scale,
    write_reference,
)
from fib_tools.op_types.attention_work import latent_attention_work
from fib_tools.op_types.attention_wrappers import mla_paged_ground_truth
from fib_tools.op_types.base import (
    KernelType,
    MetaTensor,
    OpType,
    Parameters,
    TemplateCall,
    const,
    scalar,
    tensor,
    var,
)
from fib_tools.op_types.ground_truth import GroundTruth

__all__ = ["OP_TYPE", "MlaPagedDecodeParameters", "MlaPagedPrefillParameters"]


class _MlaPagedParameters(Parameters):
    silent: ClassVar[Mapping[str, Any]] = {"sm_scale": MLA_PLAIN_SCALE}

    num_qo_heads: int = Field(gt=0)
    head_dim_ckv: int = Field(default=512, gt=0)
    head_dim_kpe: int = Field(default=64, gt=0)
    page_size: int = Field(gt=0)
    sm_scale: float = Field(gt=0)
    """Of the unabsorbed head: 1 / sqrt(qk_nope_head_dim + qk_rope_head_dim), times YaRN's factor where there is one."""
    dtype: str = "bfloat16"
    kv_dtype: str | None = None
    """The element type of the caches where it is not dtype: fp8."""

    @field_validator("sm_scale")
    @classmethod
    def _settle_scale(cls, value: float) -> float:
        return settle_scale(value, MLA_PLAIN_SCALE)

    @model_validator(mode="before")
    @classmethod
    def _settle_kv_dtype(cls, data: Any) -> Any:
        """Write the plain cache as None, so that equal kernels have equal parameters."""
        if isinstance(data, dict) and data.get("kv_dtype") == data.get("dtype", "bfloat16"):
            return {**data, "kv_dtype": None}
        return data

    @field_validator("kv_dtype")
    @classmethod
    def _validate_kv_dtype(cls, value: str | None) -> str | None:
        if value not in (None, *FP8_SUFFIXES):
            raise ValueError(f"kv_dtype {value!r} is neither the dtype nor fp8")
        return value

    @property
    def cache_dtype(self) -> str:
        """The element type of the caches."""
        return self.kv_dtype or self.dtype


class MlaPagedDecodeParameters(_MlaPagedParameters):
    """A decode kernel over latents."""


class MlaPagedPrefillParameters(_MlaPagedParameters):
    """An incremental prefill kernel over latents."""

    causal: bool = True


def _pieces(parameters: _MlaPagedParameters) -> list[str | tuple[str, int]]:
    return [
        ("h", parameters.num_qo_heads),
        ("ckv", parameters.head_dim_ckv),
        ("kpe", parameters.head_dim_kpe),
        ("ps", parameters.page_size),
        *([FP8_SUFFIXES[parameters.kv_dtype]] if parameters.kv_dtype else []),
    ]


def _axes(parameters: _MlaPagedParameters) -> dict[str, AxisConst | AxisVar]:
    return {
        "num_qo_heads": const(parameters.num_qo_heads, "Query heads on this device."),
        "head_dim_ckv": const(parameters.head_dim_ckv, "Width of a latent: kv_lora_rank."),
        "head_dim_kpe": const(parameters.head_dim_kpe, "Width of the rotary part: qk_rope_head_dim."),
        "page_size": const(parameters.page_size, "Tokens a page holds."),
        "num_pages": var("Pages of the cache."),
        "len_indptr": indptr_axis(),
        "num_kv_indices": var("Pages of all sequences of the batch."),
    }


def _tensors(parameters: _MlaPagedParameters, rows: str) -> dict[str, TensorSpec]:
    heads, pages = f"{rows} num_qo_heads", "num_pages page_size"
    return {
        "q_nope": tensor(parameters.dtype, f"{heads} head_dim_ckv", "The queries, absorbed into latent space."),
        "q_pe": tensor(parameters.dtype, f"{heads} head_dim_kpe", "The rotary part of the queries."),
        "ckv_cache": tensor(parameters.cache_dtype, f"{pages} head_dim_ckv", "The latent cache: keys and values."),
        "kpe_cache": tensor(parameters.cache_dtype, f"{pages} head_dim_kpe", "The rotary part of the keys."),
    }


def _scalars(parameters: _MlaPagedParameters) -> dict[str, TensorSpec]:
    inputs = {"sm_scale": sm_scale_input(parameters.sm_scale)}
    if parameters.kv_dtype:
        inputs["ckv_scale"] = scalar("float32", "What stored latents are multiplied by.")
        inputs["kpe_scale"] = scalar("float32", "What stored rotary keys are multiplied by.")
    return inputs


def _outputs(parameters: _MlaPagedParameters, rows: str) -> dict[str, TensorSpec]:
    heads = f"{rows} num_qo_heads"
    said = "The attention output in latent space, before W_UV."
    return {"output": tensor(parameters.dtype, f"{heads} head_dim_ckv", said), "lse": lse_output(heads)}


def _reference(parameters: _MlaPagedParameters, inputs: dict[str, TensorSpec], core: Core) -> str:
    fp8 = parameters.kv_dtype is not None
    loaded = "{0} = {0}_cache[pages].flatten(0, 1)[:length].to(torch.float32)" + (" * {0}_scale" if fp8 else "")
    keys = [
        paged_keys(parameters.page_size, "ckv_cache"),
        loaded.format("ckv"),
        loaded.format("kpe"),
        "keys = torch.cat([ckv, kpe], dim=-1)[:, None, :]",
        "values = ckv[:, None, :]",
    ]
    decode = isinstance(parameters, MlaPagedDecodeParameters)
    return write_reference(
        core,
        inputs=inputs,
        keys="\n".join(keys),
        decode=decode,
        queries=("q_nope", "q_pe"),
        width="ckv_cache.shape[-1]",
    )


def _define_decode(parameters: MlaPagedDecodeParameters) -> Definition:
    core = Core()
    inputs = {
        **_tensors(parameters, "batch_size"),
        **paged_inputs(parameters.page_size),
        **_scalars(parameters),
    }
    return Definition(
        name=format_name("mla_paged_decode", *_pieces(parameters)),
        description=f"Latent attention of one query a sequence to a paged cache. {core.sentences}",
        op_type="mla_paged",
        axes={"batch_size": var("Sequences."), **_axes(parameters)},
        constraints=["len_indptr == batch_size + 1", "num_kv_indices == kv_indptr[-1]"],
        inputs=inputs,
        outputs=_outputs(parameters, "batch_size"),
        reference=_reference(parameters, inputs, core),
    )


def _define_prefill(parameters: MlaPagedPrefillParameters) -> Definition:
    core = Core(causal=parameters.causal)
    partial_pages = parameters.page_size > 1
    inputs = {
        **_tensors(parameters, "total_q"),
        "qo_indptr": tensor(INTEGER, "len_indptr", "Where the queries of each sequence begin."),
        **paged_inputs(parameters.page_size),
        **_scalars(parameters),
    }
    kind = f"mla_paged_prefill_{'causal' if parameters.causal else 'full'}"
    return Definition(
        name=format_name(kind, *_pieces(parameters)),
        description=f"Latent attention of new tokens to a paged cache. {core.sentences}",
        op_type="mla_paged",
        axes={
            "total_q": var("Queries of all sequences."),
            **({"batch_size": var("Sequences.")} if partial_pages else {}),
            **_axes(parameters),
        },
        constraints=[
            *(["len_indptr == batch_size + 1"] if partial_pages else []),
            "total_q == qo_indptr[-1]",
            "num_kv_indices == kv_indptr[-1]",
        ],
        inputs=inputs,
        outputs=_outputs(parameters, "total_q"),
        reference=_reference(parameters, inputs, core),
    )


_API = "flashinfer.mla._core.BatchMLAPagedAttentionWrapper.run"
"""The name that FlashInfer publishes it under; `flashinfer.mla` exports it."""
_SEQUENCES, _PAGES = 3, 11


def _template(parameters: MlaPagedDecodeParameters) -> TemplateCall:
    fp8 = parameters.kv_dtype is not None
    widths = {"ckv": parameters.head_dim_ckv, "kpe": parameters.head_dim_kpe}
    queries = {name: (_SEQUENCES, parameters.num_qo_heads, width) for name, width in widths.items()}
    lengths = MetaTensor(shape=(_SEQUENCES,), dtype=INTEGER)
    caches = {
        f"{name}_cache": MetaTensor(shape=(_PAGES, parameters.page_size, width), dtype=parameters.cache_dtype)
        for name, width in widths.items()
    }
    arguments = {
        "q_nope": MetaTensor(shape=queries["ckv"], dtype=parameters.dtype),
        "q_pe": MetaTensor(shape=queries["kpe"], dtype=parameters.dtype),
        **caches,
        "kv_indptr": MetaTensor(shape=(_SEQUENCES + 1,), dtype=INTEGER),
        "kv_indices": MetaTensor(shape=(_PAGES - 1,), dtype=INTEGER),
        **({"kv_last_page_len": lengths} if parameters.page_size > 1 else {}),
        "sm_scale": parameters.sm_scale,
        **({"ckv_scale": 1.0, "kpe_scale": 1.0} if fp8 else {}),
    }
    return TemplateCall(fi_api=_API, arguments=arguments)


def _ground_truth(parameters: _MlaPagedParameters, inputs: list[str], *, causal: bool) -> GroundTruth:
    constants = {
        "NUM_QO_HEADS": parameters.num_qo_heads,
        "HEAD_DIM_CKV": parameters.head_dim_ckv,
        "HEAD_DIM_KPE": parameters.head_dim_kpe,
        "PAGE_SIZE": parameters.page_size,
        "CAUSAL": causal,
    }
    return mla_paged_ground_truth(constants, inputs, fp8=parameters.kv_dtype)


def _decode_ground_truth(parameters: MlaPagedDecodeParameters) -> GroundTruth:
    return _ground_truth(parameters, list(_define_decode(parameters).inputs), causal=False)


def _prefill_ground_truth(parameters: MlaPagedPrefillParameters) -> GroundTruth:
    return _ground_truth(parameters, list(_define_prefill(parameters).inputs), causal=parameters.causal)


_SYMBOLS = ("flashinfer.mla.BatchMLAPagedAttentionWrapper", "flashinfer.BatchMLAPagedAttentionWrapper")

OP_TYPE = OpType(
    name="mla_paged",
    kernels=(
        KernelType(
            id="mla_paged_decode",
            op_type="mla_paged",
            summary="latent attention of one query a sequence to a paged cache",
            parameters=MlaPagedDecodeParameters,
            define=_define_decode,
            fi_api=_API,
            template=_template,
            sglang_symbols=_SYMBOLS,
            ground_truth=_decode_ground_truth,
        ),
        KernelType(
            id="mla_paged_prefill",
            op_type="mla_paged",
            summary="latent attention of new tokens to a paged cache",
            parameters=MlaPagedPrefillParameters,
            define=_define_prefill,
            fi_api=_API,
            template=None,  # FlashInfer registers the decode template for this API: no qo_indptr, decode's name
            sglang_symbols=_SYMBOLS,
            ground_truth=_prefill_ground_truth,
        ),
    ),
    input_rules={**INPUT_RULES, "sm_scale": softmax_scale("head_dim_kpe", extra=128)},
    input_code=INPUT_CODE,
    axis_sizes={"len_indptr": 4},
    without_outliers=WITHOUT_OUTLIERS,
    work=latent_attention_work,
)
