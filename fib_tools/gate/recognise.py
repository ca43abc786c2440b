"""Which of our kernel types a dump or a foreign Definition describes, and with which parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from fib_tools.errors import FibError
from fib_tools.gate.constants import find_constants
from fib_tools.gate.strict import SPLIT_WIDTHS
from fib_tools.model.base import to_document
from fib_tools.model.definition import Definition
from fib_tools.model.expressions import evaluate, find_names
from fib_tools.model.naming import parse_name
from fib_tools.model.tags import find_tag_values
from fib_tools.op_types.base import KernelType
from fib_tools.op_types.registry import find_kernel_type, list_kernel_types

__all__ = ["Recognised", "find_kernel", "recognise"]

_APIS: Mapping[str, str] = {
    "flashinfer.gemm.gemm_base.fp8_blockscale_gemm_sm90": "gemm_fp8_block",
    "flashinfer.gemm.fp8_blockscale_gemm_sm90": "gemm_fp8_block",
    "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.plan": "gqa_paged_decode",
    "flashinfer.mla.BatchMLAPagedAttentionWrapper.run": "mla_paged_decode",
    "flashinfer.rope.apply_rope_with_cos_sin_cache_inplace": "rope_with_cos_sin_cache",
}
"""APIs that compute a kernel type of ours beside its own fi_api."""

_AXES: Mapping[str, tuple[str, ...]] = {
    "n": ("N",),
    "k": ("K",),
    "b": ("B", "batch_size"),
    "hidden_size": ("K",),
    "head_dim": ("head_size", "dim"),
    "num_groups": ("ngroups",),
    "top_k": ("topk", "k"),
    "topk": ("sparse_mla_top_k", "top_k"),
    "head_dim_ckv": ("kv_lora_rank",),
    "head_dim_kpe": ("qk_rope_head_dim",),
    "num_q_heads": ("num_k_heads",),
    "d_state": ("dstate",),
    "num_heads": ("num_qo_heads", "nheads"),
}
"""What others call the axes that are our parameters."""

_NUMBERS: Mapping[str, str] = {
    "window_left": "w",
    "logits_soft_cap": "cap",
    "chunk": "chunk",
    "rotary_dim": "rd",
    "head_dim_vo": "vo",
    "n_group": "ng",
    "topk_group": "kg",
    "top_k": "topk",
    "group_size": "g",
    "page_size": "ps",
}
"""Parameters that stand in names with a key."""

_WORDS: tuple[tuple[str, str, Any], ...] = (
    ("_full_", "causal", False),
    ("_sinks", "sinks", True),
    ("_kvfp8", "kv_dtype", "float8_e4m3fn"),
    ("_gptj_", "is_neox", False),
    ("_bias_n", "bias", True),
    ("_bias_c", "bias", True),
    ("_gate_first", "norm_before_gate", False),
    ("_default_routing", "routing", "default"),
    ("_renormalize_naive", "routing", "renormalize_naive"),
    ("_renormalize_routing", "routing", "renormalize"),
    ("_renorm_", "routing", "renormalize"),
    ("_ds_routing", "routing", "ds"),
    ("fused_topk_deepseek", "routing", "ds"),
    ("_llama4_routing", "routing", "llama4"),
    ("_topk_routing", "routing", "topk"),
)
"""Words of names that set a parameter; the first that fits counts."""

_NEUTRAL: Mapping[str, int] = {"activation_type": 3, "num_fused_shared_experts": 0}
"""Const axes that make another kernel when they have any other value."""

_RELATIONS: Mapping[str, str] = {
    "gemm_nvfp4": "block_size == 16",
    "moe_nvfp4": "num_fp4_hidden_blocks * 16 == hidden_size",
    "moe_mxfp4": "num_fp4_hidden_blocks * 32 == hidden_size",
}
"""What must hold of the axes where one API computes kernels of several types."""

_PREFILL: Mapping[str, str] = {"mla_paged_decode": "mla_paged_prefill"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """A kernel type and its parameters, as read off a foreign document."""

    kernel: str
    parameters: dict[str, Any]
    """Validated, with the defaults written out."""
    repairs: tuple[str, ...] = ()
    """What in the document was wrong and is read otherwise."""

    def build(self) -> Definition:
        """Build the canonical Definition."""
        kernel = find_kernel_type(self.kernel)
        if kernel is None:
            raise LookupError(self.kernel)
        return kernel.build(self.parameters)


def recognise(
    source: Mapping[str, Any] | Definition, *, siblings: Sequence[Mapping[str, Any]] = ()
) -> Recognised | None:
    """Recognise a dump or Definition; None when it is no kernel type of ours, or its sizes contradict it.

    `siblings` are the dumps of the same run: they tell a ragged MLA prefill from an attention with wide heads.
    """
    raw = to_document(source) if isinstance(source, Definition) else source
    raw, repairs = _repair_axes(raw, siblings)
    if any(_const_axes(raw).get(axis, plain) != plain for axis, plain in _NEUTRAL.items()):
        return None
    for group in _candidates(raw):
        found = [item for item in (_try(kernel, raw, repairs) for kernel in group) if item is not None]
        if len(found) > 1:
            stages = [item for item in found if any(stage in item.kernel for stage in _find_stages(raw))]
            found = stages or found
        if len(found) == 1:
            return found[0]
    return None


def find_kernel(definition: Definition) -> KernelType[Any] | None:
    """Find the kernel type that a Definition, ours or another tool's, describes; None when it is none of ours."""
    found = recognise(definition)
    return find_kernel_type(found.kernel) if found is not None else None


def _try(kernel: KernelType[Any], raw: Mapping[str, Any], repairs: tuple[str, ...]) -> Recognised | None:
    parameters = _read_parameters(kernel, raw)
    if parameters is None or not _agrees(kernel, parameters, raw):
        return None
    return Recognised(kernel=kernel.id, parameters=parameters, repairs=repairs)


def _find_stages(raw: Mapping[str, Any]) -> list[str]:
    """Read `decode` or `prefill` off the name and the tags."""
    text = f"{raw.get('name', '')} {' '.join(tag for tag in raw.get('tags') or () if isinstance(tag, str))}"
    return [stage for stage in ("decode", "prefill", "mtp") if f"_{stage}" in text or f"stage:{stage}" in text]


def _const_axes(raw: Mapping[str, Any]) -> dict[str, int]:
    axes = raw.get("axes") or {}
    return {name: axis["value"] for name, axis in axes.items() if isinstance(axis.get("value"), int)}


def _repair_axes(
    raw: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Read the axes that SGLang's tensors lead the templates to get wrong, where the evidence is complete."""
    if "fib_kernel" in raw:  # the hook of a trace-dump saw the call itself
        return raw, tuple(str(note) for note in raw.get("fib_repairs") or ("stated where it was dumped",))
    axes = _const_axes(raw)
    q_heads, kv_heads, page_size, head_dim = (
        axes.get(name) for name in ("num_qo_heads", "num_kv_heads", "page_size", "head_dim")
    )
    if kv_heads and kv_heads == head_dim and page_size and q_heads and q_heads % kv_heads and not q_heads % page_size:
        repaired = {"num_kv_heads": page_size, "page_size": 1}
        return _with_axes(raw, repaired), (
            f"3-D pool: page_size {page_size} is num_kv_heads, num_kv_heads {kv_heads} is head_dim, pages hold 1 token",
        )
    if _is_ragged_mla(raw, axes, siblings):
        wide = axes["head_dim"]
        narrow = SPLIT_WIDTHS[wide]
        return {**raw, "fib_kernel": "mla_ragged_prefill", "fib_axes": {"head_dim_qk": wide, "head_dim_vo": narrow}}, (
            f"MLA's ragged prefill: V and the output are {narrow} wide, not {wide}",
        )
    return raw, ()


def _with_axes(raw: Mapping[str, Any], values: Mapping[str, int]) -> dict[str, Any]:
    axes = {name: {**axis, "value": values[name]} if name in values else axis for name, axis in raw["axes"].items()}
    return {**raw, "axes": axes}


def _is_ragged_mla(raw: Mapping[str, Any], axes: Mapping[str, int], siblings: Sequence[Mapping[str, Any]]) -> bool:
    if "ragged" not in str(raw.get("name")) or axes.get("head_dim") not in SPLIT_WIDTHS:
        return False
    heads = axes.get("num_qo_heads")
    if heads is None or heads != axes.get("num_kv_heads"):
        return False
    return any(
        other.get("op_type") == "mla_paged" and _const_axes(other).get("num_qo_heads") == heads for other in siblings
    )


def _candidates(raw: Mapping[str, Any]) -> Iterator[list[KernelType[Any]]]:
    """Kernel types that this may be: those whose id begins its name, longest first, then those of its API."""
    if "fib_kernel" in raw:
        yield [kernel for kernel in list_kernel_types() if kernel.id == raw["fib_kernel"]]
        return
    kernels = list_kernel_types()
    name = str(raw.get("name", ""))
    for kernel in sorted((item for item in kernels if name.startswith(item.id)), key=lambda item: -len(item.id)):
        yield [kernel]
    apis = find_tag_values([tag for tag in raw.get("tags") or () if isinstance(tag, str)], "fi_api")
    by_api = [kernel for kernel in kernels if kernel.fi_api in apis or _APIS.get(next(iter(apis), "")) == kernel.id]
    if "qo_indptr" in (raw.get("inputs") or {}):
        prefills = (find_kernel_type(_PREFILL.get(kernel.id, kernel.id)) for kernel in by_api)
        by_api = list({kernel.id: kernel for kernel in prefills if kernel is not None}.values())
    yield [kernel for kernel in by_api if raw.get("op_type") in (kernel.op_type, None, *_FOREIGN)]


_FOREIGN = (
    "rmsnorm",
    "gqa_paged_plan",
    "gemm_bf16",
    "bmm_bf16",
    "cascade_merge",
    "page_append",
    "mamba",
    "activation",
    "quantization",
)
"""Folders that FlashInfer gives kernels which ours keeps elsewhere."""


def _read_parameters(kernel: KernelType[Any], raw: Mapping[str, Any]) -> dict[str, Any] | None:
    axes = {**_const_axes(raw), **raw.get("fib_axes", {})}
    constants = find_constants(str(raw.get("reference", "")))
    values: dict[str, Any] = {}
    for field, info in kernel.parameters.model_fields.items():
        value = _read_field(field, axes, constants, raw)
        value = _find_choice(info.annotation, raw) if value is None else value
        if value is None and info.is_required():
            value = kernel.parameters.silent.get(field)
        if value is None and info.is_required():
            return None
        if value is not None:
            values[field] = value
    try:
        return dict(kernel.parameters.model_validate(values).model_dump())
    except ValidationError:
        return None


def _read_field(field: str, axes: Mapping[str, int], constants: Mapping[str, Any], raw: Mapping[str, Any]) -> Any:
    if field == "dtype":
        return _first_float(raw)
    for axis in (field, *_AXES.get(field, ())):
        if axis in axes:
            return axes[axis]
    if field.upper() in constants:
        return constants[field.upper()]
    name = f"{raw.get('name', '')}_"
    for word, parameter, value in _WORDS:
        if parameter == field and word in name:
            return value
    try:
        return parse_name(name.rstrip("_")).numbers.get(_NUMBERS.get(field, ""))
    except FibError:
        return None


def _find_choice(annotation: Any, raw: Mapping[str, Any]) -> str | None:
    """Read a parameter of few values off the name, the longest first: `_sigmoid_bias_` before `_sigmoid_`."""
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    name = f"{raw.get('name', '')}_"
    return next((choice for choice in sorted(choices, key=len, reverse=True) if f"_{choice}_" in name), None)


def _first_float(raw: Mapping[str, Any]) -> str | None:
    dtypes = [spec.get("dtype") for spec in (raw.get("inputs") or {}).values()]
    return next((dtype for dtype in dtypes if dtype in {"bfloat16", "float16", "float32"}), None)


def _agrees(kernel: KernelType[Any], parameters: dict[str, Any], raw: Mapping[str, Any]) -> bool:
    """Build the kernel and compare: its name or its API must be the document's, and every const axis of one name."""
    try:
        built = kernel.build(parameters)
    except (FibError, ValidationError, ValueError):
        return False
    name, axes = str(raw.get("name", "")), _const_axes(raw)
    if "fib_axes" in raw:
        return all(built.const_axes.get(axis, value) == value for axis, value in axes.items())
    is_named = name == built.name or name.startswith(f"{built.name}_")
    if not is_named and not _is_of_api(kernel, raw, axes):
        return False
    ours = built.const_axes
    return all(ours.get(axis, value) == value for axis, value in axes.items())


def _is_of_api(kernel: KernelType[Any], raw: Mapping[str, Any], axes: Mapping[str, int]) -> bool:
    apis = find_tag_values([tag for tag in raw.get("tags") or () if isinstance(tag, str)], "fi_api")
    if kernel.fi_api not in apis and _APIS.get(next(iter(apis), "")) not in (kernel.id, *_paired(kernel)):
        return False
    relation = _RELATIONS.get(kernel.id)
    return relation is None or (find_names(relation) <= axes.keys() and bool(evaluate(relation, axes)))


def _paired(kernel: KernelType[Any]) -> tuple[str, ...]:
    return tuple(decode for decode, prefill in _PREFILL.items() if prefill == kernel.id)
