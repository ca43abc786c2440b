"""The ground truth of the attention op_types: FlashInfer's batch wrappers, planned in `setup` and run in `run`.

FlashInfer takes offsets, page tables and sizes in `plan`, tensors in `run`; its log-sum-exp is base 2, its causal mask
puts the last query at the last key. An engine plans once for all layers, so planning is declared apart: `setup` takes
the inputs, reads no values but those of offsets, page tables and scalars, and returns what `run` takes as `state`;
without it `run` plans by itself. Every call is one that FlashInfer 0.6.15 and 0.7.2 both have.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from fib_tools.op_types.gqa import GqaParameters, GqaPrefillParameters
from fib_tools.op_types.ground_truth import AMPERE_ON, HOPPER, GroundTruth, Wrapper, no_kernel

__all__ = ["mla_paged_ground_truth", "mla_ragged_ground_truth", "paged_decode_ground_truth", "prefill_ground_truth"]

_WORKSPACE = """
WORKSPACES = {}


def workspace(device):
    # Zeros, as some of FlashInfer's backends count in it; each leaves it as it found it.
    if device not in WORKSPACES:
        WORKSPACES[device] = torch.zeros(256 << 20, dtype=torch.uint8, device=device)
    return WORKSPACES[device]
"""
_WIDTH = 114
_FA2_FOR_EMPTY = (
    "# Where a sequence has no keys, FlashInfer 0.7.2's own choice on Hopper, FA3, ends with an illegal memory access.",
    'backend = "fa2" if bool((kv_indptr[1:] == kv_indptr[:-1]).any()) else "auto"',
)
"""SGLang asks for FA2 always (`FlashInferAttnBackend.prefill_backend` of 0.5.17)."""
_FULL_PAGES = "kv_last_page_len = torch.ones(kv_indptr.shape[0] - 1, dtype=torch.int32, device=kv_indptr.device)"
_FLASHINFER = ("import flashinfer",)
_TENSOR_CORE_GROUP = 4
"""From so many query heads a key-value head on, and always for FP8 keys and values, SGLang has decode use tensor cores
(`should_use_tensor_core` of 0.5.17)."""


def _write(inputs: list[str], plan: list[str], run: str) -> str:
    """Write `setup`, which plans a `wrapper`, and `run`; `**prepared` as flashinfer-bench counts all other parameters."""
    names = ", ".join(inputs)
    planning = textwrap.indent("\n".join([*plan, "return wrapper"]), "    ")
    again = f'wrapper = prepared.get("state") or setup({names})'
    if len(again) > _WIDTH:
        again = f'wrapper = prepared.get("state") or setup(\n        {names}\n    )'
    return (
        f"{_WORKSPACE.strip()}\n\n\n@torch.no_grad()\ndef setup({names}):\n{planning}\n\n\n"
        f"@torch.no_grad()\ndef run({names}, **prepared):\n"
        f"    {again}\n"
        f"    return wrapper.run({run}, return_lse=True)"
    )


def _find_gap(parameters: GqaParameters) -> str:
    """Say what FlashInfer's plain batch wrappers lack."""
    if parameters.sinks:
        return "attention sinks need FlashInfer's AttentionSink variant, which gives no log-sum-exp"
    if isinstance(parameters, GqaPrefillParameters) and parameters.chunk is not None:
        return "FlashInfer has no mask for chunks; SGLang cuts the batch into pieces instead"
    return ""


def _scales(parameters: GqaParameters) -> str:
    return ", k_scale=k_scale, v_scale=v_scale" if parameters.is_fp8 else ""


def _constants(parameters: GqaParameters, **more: Any) -> dict[str, Any]:
    heads = {
        "NUM_QO_HEADS": parameters.num_qo_heads,
        "NUM_KV_HEADS": parameters.num_kv_heads,
        "HEAD_DIM": parameters.head_dim,
    }
    return {**heads, **more, "WINDOW_LEFT": parameters.window_left, "LOGITS_SOFT_CAP": parameters.logits_soft_cap}


def paged_decode_ground_truth(parameters: GqaParameters, inputs: list[str], page_size: int) -> GroundTruth:
    """Call FlashInfer's paged decode."""
    if gap := _find_gap(parameters):
        return no_kernel(gap)
    if parameters.head_dim_vo:
        return no_kernel("FlashInfer's decode has one width for keys and values")
    group = parameters.num_qo_heads // parameters.num_kv_heads
    uses_tensor_cores = parameters.is_fp8 or group >= _TENSOR_CORE_GROUP
    lines = [
        "wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(",
        "    workspace(q.device), use_tensor_cores=USE_TENSOR_CORES",
        ")",
        *([] if page_size > 1 else [_FULL_PAGES]),
        "wrapper.plan(",
        "    kv_indptr, kv_indices, kv_last_page_len, NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE,",
        "    window_left=WINDOW_LEFT, logits_soft_cap=LOGITS_SOFT_CAP, sm_scale=sm_scale,",
        "    q_data_type=q.dtype, kv_data_type=k_cache.dtype,",
        ")",
    ]
    body = _write(inputs, lines, f"q, (k_cache, v_cache){_scales(parameters)}")
    constants = _constants(parameters, PAGE_SIZE=page_size, USE_TENSOR_CORES=uses_tensor_cores)
    return _flashinfer("flashinfer.BatchDecodeWithPagedKVCacheWrapper", body, constants)


def prefill_ground_truth(
    parameters: GqaPrefillParameters, inputs: list[str], *, page_size: int | None = None
) -> GroundTruth:
    """Call FlashInfer's prefill over a paged cache, or over ragged keys where there is no page size."""
    if gap := _find_gap(parameters):
        return no_kernel(gap)
    if parameters.is_fp8 and page_size is None:
        return no_kernel("FlashInfer's ragged prefill takes keys of the queries' type")
    shape = "head_dim_vo=HEAD_DIM_VO, causal=CAUSAL, window_left=WINDOW_LEFT, logits_soft_cap=LOGITS_SOFT_CAP,"
    constants = _constants(parameters, HEAD_DIM_VO=parameters.value_dim, CAUSAL=parameters.causal)
    keys = "k_cache" if page_size else "k"
    types = f"    sm_scale=sm_scale, q_data_type=q.dtype, kv_data_type={keys}.dtype,"
    if page_size is None:
        return _ragged(inputs, f"    {shape}", types, constants)
    lines = [
        *_FA2_FOR_EMPTY,
        "wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace(q.device), backend=backend)",
        *([] if page_size > 1 else [_FULL_PAGES]),
        "wrapper.plan(",
        "    qo_indptr, kv_indptr, kv_indices, kv_last_page_len, NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE,",
        f"    {shape}",
        types,
        ")",
    ]
    body = _write(inputs, lines, f"q, (k_cache, v_cache){_scales(parameters)}")
    constants["PAGE_SIZE"] = page_size
    return _flashinfer("flashinfer.BatchPrefillWithPagedKVCacheWrapper", body, constants)


def _ragged(inputs: list[str], shape: str, types: str, constants: Mapping[str, Any]) -> GroundTruth:
    lines = [
        "wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace(q.device))",
        "wrapper.plan(",
        "    qo_indptr, kv_indptr, NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM,",
        shape,
        types,
        ")",
    ]
    return _flashinfer("flashinfer.BatchPrefillWithRaggedKVCacheWrapper", _write(inputs, lines, "q, k, v"), constants)


def mla_ragged_ground_truth(heads: int, widths: tuple[int, int], inputs: list[str], *, causal: bool) -> GroundTruth:
    """Call FlashInfer's ragged prefill with keys wider than values."""
    constants = {
        "NUM_QO_HEADS": heads,
        "NUM_KV_HEADS": heads,
        "HEAD_DIM": widths[0],
        "HEAD_DIM_VO": widths[1],
        "CAUSAL": causal,
    }
    types = "    sm_scale=sm_scale, q_data_type=q.dtype, kv_data_type=k.dtype,"
    return _ragged(inputs, "    head_dim_vo=HEAD_DIM_VO, causal=CAUSAL,", types, constants)


def mla_paged_ground_truth(constants: Mapping[str, Any], inputs: list[str], *, fp8: str | None) -> GroundTruth:
    """Call FlashInfer's MLA over latents; `constants` are heads, widths, page size and mask."""
    if fp8 not in (None, "float8_e4m3fn"):
        return no_kernel(f"FlashInfer's MLA takes caches of e4m3, not of {fp8}")
    page_size = constants["PAGE_SIZE"]
    one_query = "qo_indptr = torch.arange(kv_indptr.shape[0], dtype=torch.int32, device=kv_indptr.device)"
    lengths = "kv_indptr.diff()" if page_size == 1 else "(kv_indptr.diff() - 1) * PAGE_SIZE + kv_last_page_len"
    scales = ", ckv_scale=ckv_scale, kpe_scale=kpe_scale" if fp8 else ""
    lines = [
        "wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace(q_nope.device))",
        *([] if "qo_indptr" in inputs else [one_query]),
        f"kv_lengths = {lengths}",
        "wrapper.plan(",
        "    qo_indptr, kv_indptr, kv_indices, kv_lengths, NUM_QO_HEADS, HEAD_DIM_CKV, HEAD_DIM_KPE, PAGE_SIZE,",
        "    causal=CAUSAL, sm_scale=sm_scale, q_data_type=q_nope.dtype, kv_data_type=ckv_cache.dtype,",
        ")",
    ]
    body = _write(inputs, lines, f"q_nope, q_pe, ckv_cache, kpe_cache{scales}")
    found = _flashinfer("flashinfer.mla.BatchMLAPagedAttentionWrapper", body, constants, fp8=bool(fp8))
    return GroundTruth(wrappers=found.wrappers, reason="fp8 latents run on Hopper only" if fp8 else "")


def _flashinfer(api: str, body: str, constants: Mapping[str, Any], *, fp8: bool = False) -> GroundTruth:
    wrapper = Wrapper(
        kind="flashinfer",
        api=api,
        imports=_FLASHINFER,
        constants=constants,
        body=body,
        capabilities=HOPPER if fp8 else AMPERE_ON,
    )
    return GroundTruth(wrappers=(wrapper,))
