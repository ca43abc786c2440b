"""page: writing new keys and values, or latents, into the pages of a paged cache.

Token i of sequence b = batch_indices[i] goes to page kv_indices[kv_indptr[b] + positions[i] // page_size],
slot positions[i] % page_size. The caches come back as new tensors: a Definition's inputs are not written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.model.definition import AxisConst, AxisVar, Definition, TensorSpec
from fib_tools.model.naming import format_name
from fib_tools.op_types.attention import INTEGER, indptr_axis
from fib_tools.op_types.base import (
    InputRule,
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
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.rules import split_total
from fib_tools.op_types.tolerance import exact
from fib_tools.op_types.work_request import Work, WorkRequest

if TYPE_CHECKING:
    import torch

__all__ = ["OP_TYPE", "AppendKvParameters", "AppendMlaKvParameters"]


class AppendKvParameters(Parameters):
    """A cache of keys and values."""

    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    page_size: int = Field(gt=0)
    head_dim_vo: int | None = Field(default=None, gt=0)
    """The width of values; None where it is head_dim."""
    dtype: str = "bfloat16"

    @property
    def has_own_vo(self) -> bool:
        """Tell whether values are not as wide as keys."""
        return self.head_dim_vo not in (None, self.head_dim)


class AppendMlaKvParameters(Parameters):
    """A cache of latents and rotary keys."""

    head_dim_ckv: int = Field(default=512, gt=0)
    head_dim_kpe: int = Field(default=64, gt=0)
    page_size: int = Field(gt=0)
    dtype: str = "bfloat16"


_PLACE = """
    def place(cache, rows, pages, slots):
        updated = cache.clone()
        updated[pages, slots] = rows.to(cache.dtype)
        return updated


    @torch.no_grad()
    def run({first}, {second}, batch_indices, positions, {caches}, kv_indices, kv_indptr, kv_last_page_len):
        page_size = {cache}.shape[1]
        position = positions.to(torch.int64)
        entry = kv_indptr.to(torch.int64)[batch_indices.to(torch.int64)] + position // page_size
        pages = kv_indices.to(torch.int64)[entry]
        slots = position % page_size
        return place({cache}, {first}, pages, slots), place({other}, {second}, pages, slots)
"""


def _reference(rows: tuple[str, str], caches: tuple[str, str]) -> str:
    text = _PLACE.format(first=rows[0], second=rows[1], cache=caches[0], other=caches[1], caches=", ".join(caches))
    return source(text)


def _cache_axes(page_size: int) -> dict[str, AxisConst | AxisVar]:
    return {
        "nnz_kv": var("Tokens to append, of all sequences."),
        "batch_size": var("Sequences."),
        "num_pages": var("Pages of the cache."),
        "page_size": const(page_size, "Tokens a page holds."),
        "len_indptr": indptr_axis(),
        "num_kv_indices": var("Pages of all sequences of the batch."),
    }


_CONSTRAINTS = ["len_indptr == batch_size + 1", "num_kv_indices == kv_indptr[-1]"]


def _interface(rows: dict[str, TensorSpec], caches: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {
        **rows,
        "batch_indices": tensor(INTEGER, "nnz_kv", "The sequence that each token belongs to."),
        "positions": tensor(INTEGER, "nnz_kv", "Its position in that sequence."),
        **caches,
        "kv_indices": tensor(INTEGER, "num_kv_indices", "The pages of all sequences, one after the other."),
        "kv_indptr": tensor(INTEGER, "len_indptr", "Where the pages of each sequence begin in kv_indices."),
        "kv_last_page_len": tensor(INTEGER, "batch_size", "Tokens in each last page, the appended ones included."),
    }


def _define_kv(parameters: AppendKvParameters) -> Definition:
    dtype, vo = parameters.dtype, parameters.head_dim_vo if parameters.has_own_vo else None
    value_axis = "head_dim_vo" if vo else "head_dim"
    cache = "num_pages page_size num_kv_heads"
    pieces = [("kv", parameters.num_kv_heads), ("d", parameters.head_dim), *([("vo", vo)] if vo else [])]
    return Definition(
        name=format_name("append_paged_kv_cache", *pieces, ("ps", parameters.page_size)),
        description="Write new keys and values into their pages; everything else in the caches stays as it was.",
        op_type="page",
        axes={
            **_cache_axes(parameters.page_size),
            "num_kv_heads": const(parameters.num_kv_heads, "Key-value heads on this device."),
            "head_dim": const(parameters.head_dim, "Width of a key." if vo else "Width of a head."),
            **({"head_dim_vo": const(vo, "Width of a value.")} if vo else {}),
        },
        constraints=list(_CONSTRAINTS),
        inputs=_interface(
            {
                "append_key": tensor(dtype, "nnz_kv num_kv_heads head_dim", "The new keys."),
                "append_value": tensor(dtype, f"nnz_kv num_kv_heads {value_axis}", "The new values."),
            },
            {
                "k_cache": tensor(dtype, f"{cache} head_dim", "The key cache."),
                "v_cache": tensor(dtype, f"{cache} {value_axis}", "The value cache."),
            },
        ),
        outputs={
            "k_cache_output": tensor(dtype, f"{cache} head_dim", "The key cache from here on."),
            "v_cache_output": tensor(dtype, f"{cache} {value_axis}", "The value cache from here on."),
        },
        reference=_reference(("append_key", "append_value"), ("k_cache", "v_cache")),
    )


def _define_mla(parameters: AppendMlaKvParameters) -> Definition:
    dtype, cache = parameters.dtype, "num_pages page_size"
    pieces = (("ckv", parameters.head_dim_ckv), ("kpe", parameters.head_dim_kpe), ("ps", parameters.page_size))
    return Definition(
        name=format_name("append_paged_mla_kv_cache", *pieces),
        description="Write new latents and rotary keys into their pages; all else in the caches stays as it was.",
        op_type="page",
        axes={
            **_cache_axes(parameters.page_size),
            "head_dim_ckv": const(parameters.head_dim_ckv, "Width of a latent: kv_lora_rank."),
            "head_dim_kpe": const(parameters.head_dim_kpe, "Width of the rotary part: qk_rope_head_dim."),
        },
        constraints=list(_CONSTRAINTS),
        inputs=_interface(
            {
                "append_ckv": tensor(dtype, "nnz_kv head_dim_ckv", "The new latents."),
                "append_kpe": tensor(dtype, "nnz_kv head_dim_kpe", "The new rotary keys."),
            },
            {
                "ckv_cache": tensor(dtype, f"{cache} head_dim_ckv", "The latent cache."),
                "kpe_cache": tensor(dtype, f"{cache} head_dim_kpe", "The cache of rotary keys."),
            },
        ),
        outputs={
            "ckv_cache_output": tensor(dtype, f"{cache} head_dim_ckv", "The latent cache from here on."),
            "kpe_cache_output": tensor(dtype, f"{cache} head_dim_kpe", "The cache of rotary keys from here on."),
        },
        reference=_reference(("append_ckv", "append_kpe"), ("ckv_cache", "kpe_cache")),
    )


_MLA_API = "flashinfer.page.append_paged_mla_kv_cache"
_TOKENS, _SEQUENCES, _PAGES = 5, 3, 11


def _mla_template(parameters: AppendMlaKvParameters) -> TemplateCall:
    dtype, widths = parameters.dtype, {"ckv": parameters.head_dim_ckv, "kpe": parameters.head_dim_kpe}
    rows = {f"append_{name}": MetaTensor(shape=(_TOKENS, width), dtype=dtype) for name, width in widths.items()}
    caches = {
        f"{name}_cache": MetaTensor(shape=(_PAGES, parameters.page_size, width), dtype=dtype)
        for name, width in widths.items()
    }
    arguments = {
        **rows,
        "batch_indices": MetaTensor(shape=(_TOKENS,), dtype=INTEGER),
        "positions": MetaTensor(shape=(_TOKENS,), dtype=INTEGER),
        **caches,
        "kv_indices": MetaTensor(shape=(_PAGES - 1,), dtype=INTEGER),
        "kv_indptr": MetaTensor(shape=(_SEQUENCES + 1,), dtype=INTEGER),
        "kv_last_page_len": MetaTensor(shape=(_SEQUENCES,), dtype=INTEGER),
    }
    return TemplateCall(fi_api=_MLA_API, arguments=arguments)


def _batch_indices(request: InputRequest) -> torch.Tensor:
    import torch

    count = request.axes.get("batch_size", 1)
    lengths = split_total(request.shape[0], count, generator=request.generator)
    rows = [sequence for sequence, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor(rows, dtype=request.dtype, device=request.device)


def _positions(request: InputRequest) -> torch.Tensor:
    """Put each sequence's new tokens at the end of what its share of the pages holds."""
    import torch

    page_size = request.axes.get("page_size", 1)
    lengths = _counts(request)
    total = request.axes.get("num_kv_indices", sum(-(-length // page_size) for length in lengths))
    least = [-(-length // page_size) for length in lengths]
    if sum(least) > total:
        raise RequestError(
            f"{sum(lengths)} tokens do not fit into {total} pages of {page_size}",
            where=request.definition.name,
            todo=f"set num_kv_indices to at least {sum(least)}",
        )
    written = [index for index, length in enumerate(lengths) if length]
    pages = split_total(
        total, len(written), generator=request.generator, least=[least[index] for index in written] or None
    )
    rows: list[int] = []
    for held, index in zip(pages, written, strict=True):
        length = lengths[index]
        low = max(length, (held - 1) * page_size + 1)
        end = low + int(torch.randint(0, held * page_size - low + 1, (1,), generator=request.generator))
        rows += range(end - length, end)
    return torch.tensor(rows, dtype=request.dtype, device=request.device)


def _counts(request: InputRequest) -> list[int]:
    import torch

    made: torch.Tensor = request.made["batch_indices"]
    counts: list[int] = torch.bincount(made.to(torch.int64), minlength=request.axes.get("batch_size", 1)).tolist()
    return counts


def _ends(request: InputRequest) -> list[int]:
    """Return each sequence's length once its tokens are appended; 0 for one that gets none."""
    sequences, positions = request.made["batch_indices"].tolist(), request.made["positions"].tolist()
    ends = [0] * request.axes.get("batch_size", 1)
    for sequence, position in zip(sequences, positions, strict=True):
        ends[sequence] = max(ends[sequence], position + 1)
    return ends


def _kv_indptr(request: InputRequest) -> torch.Tensor:
    import torch

    page_size = request.axes.get("page_size", 1)
    pages = [-(-end // page_size) for end in _ends(request)]
    return torch.tensor([0, *pages], device=request.device).cumsum(0).to(request.dtype)


def _last_page_lengths(request: InputRequest) -> torch.Tensor:
    import torch

    page_size = request.axes.get("page_size", 1)
    lengths = [(end - 1) % page_size + 1 if end else 0 for end in _ends(request)]
    return torch.tensor(lengths, dtype=request.dtype, device=request.device)


_INPUT_RULES: Mapping[str, InputRule] = {
    "batch_indices": _batch_indices,
    "positions": _positions,
    "kv_indptr": _kv_indptr,
    "kv_last_page_len": _last_page_lengths,
}


_KV_KERNEL = """
    @torch.no_grad()
    def run(append_key, append_value, batch_indices, positions, k_cache, v_cache, kv_indices, kv_indptr, kv_last_page_len):
        # The kernel writes into the caches, as an engine wants it.
        caches = (k_cache.clone(), v_cache.clone())
        flashinfer.page.append_paged_kv_cache(
            append_key, append_value, batch_indices, positions, caches, kv_indices, kv_indptr, kv_last_page_len
        )
        return caches
"""

_MLA_KERNEL = """
    @torch.no_grad()
    def run(append_ckv, append_kpe, batch_indices, positions, ckv_cache, kpe_cache, kv_indices, kv_indptr, kv_last_page_len):
        # The kernel writes into the caches, as an engine wants it.
        caches = (ckv_cache.clone(), kpe_cache.clone())
        flashinfer.page.append_paged_mla_kv_cache(
            append_ckv, append_kpe, batch_indices, positions, *caches, kv_indices, kv_indptr, kv_last_page_len
        )
        return caches
"""


def _kv_ground_truth(parameters: AppendKvParameters) -> GroundTruth:
    if parameters.has_own_vo:
        return no_kernel("FlashInfer's kernel has one width for keys and values")
    return _flashinfer("flashinfer.page.append_paged_kv_cache", _KV_KERNEL)


def _mla_ground_truth(parameters: AppendMlaKvParameters) -> GroundTruth:
    del parameters
    return _flashinfer(_MLA_API, _MLA_KERNEL)


def _flashinfer(api: str, body: str) -> GroundTruth:
    return GroundTruth(wrappers=(Wrapper(kind="flashinfer", api=api, imports=("import flashinfer",), body=body),))


_INPUT_CODE: Mapping[str, str] = {
    "batch_indices": "draw.sequence_of_each({nnz_kv}, {batch_size})",
    "positions": "draw.append_positions(batch_indices, {num_kv_indices}, {page_size})",
    "kv_indices": "draw.distinct({num_kv_indices}, {num_pages})",
    "kv_indptr": "draw.page_offsets(batch_indices, positions, {page_size}, {batch_size})",
    "kv_last_page_len": "draw.ends_in_page(batch_indices, positions, {page_size}, {batch_size})",
}


def _kernel(**own: Any) -> KernelType[Any]:
    return KernelType(op_type="page", policy=exact, **own)


def _work(request: WorkRequest) -> Work | None:
    """Count the new rows alone: what else is in the caches stays, and an engine does not move it."""
    rows = [name for name in request.definition.inputs if name.startswith("append_")]
    if not rows or not request.has("positions"):
        return None
    count = request.read(*rows)
    return Work(read=count, written=count)


OP_TYPE = OpType(
    name="page",
    kernels=(
        _kernel(
            id="append_paged_kv_cache",
            summary="write new keys and values into the pages of a cache",
            parameters=AppendKvParameters,
            define=_define_kv,
            fi_api="flashinfer.page.append_paged_kv_cache",
            ground_truth=_kv_ground_truth,
            template=None,  # it has one cache where the kernel takes two: a tuple gives no shape, 5-D wrong axes
        ),
        _kernel(
            id="append_paged_mla_kv_cache",
            summary="write new latents and rotary keys into the pages of a cache",
            parameters=AppendMlaKvParameters,
            define=_define_mla,
            fi_api=_MLA_API,
            template=_mla_template,
            ground_truth=_mla_ground_truth,
        ),
    ),
    input_rules=_INPUT_RULES,
    input_code=_INPUT_CODE,
    axis_sizes={"nnz_kv": 6},
    work=_work,
)
