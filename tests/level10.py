"""Calls as FlashInfer writes them down at log level 10, made up: a folder each, with metadata and tensors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RMSNORM = "(input: torch.Tensor, weight: torch.Tensor, eps: float = 1e-06, out: Optional[torch.Tensor] = None)"
TOP_K_TOP_P = (
    "(probs: torch.Tensor, top_k: Union[torch.Tensor, int], top_p: float, filter_apply_order: str = 'top_k_first')"
)
DECODE_PLAN = (
    "(self, indptr: torch.Tensor, indices: torch.Tensor, last_page_len: torch.Tensor, num_qo_heads: int, "
    "num_kv_heads: int, head_dim: int, page_size: int, *deprecated_positional_args: Any, **kwargs: Any) -> None"
)
PREFILL_PLAN = (
    "(self, qo_indptr: torch.Tensor, paged_kv_indptr: torch.Tensor, paged_kv_indices: torch.Tensor, "
    "paged_kv_last_page_len: torch.Tensor, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int, "
    "causal: bool = False, window_left: int = -1, sm_scale: Optional[float] = None) -> None"
)
RAGGED_PLAN = (
    "(self, qo_indptr: torch.Tensor, kv_indptr: torch.Tensor, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, "
    "head_dim_vo: Optional[int] = None, causal: bool = False, sm_scale: Optional[float] = None) -> None"
)
PAGED_RUN = "(self, q: torch.Tensor, paged_kv_cache: Union[torch.Tensor, Tuple], *args, return_lse: bool = False)"
RAGGED_RUN = "(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args, return_lse: bool = False)"
MLA_PLAN = (
    "(self, qo_indptr: torch.Tensor, kv_indptr: torch.Tensor, kv_indices: torch.Tensor, kv_len_arr: torch.Tensor, "
    "num_heads: int, head_dim_ckv: int, head_dim_kpe: int, page_size: int, causal: bool, sm_scale: float) -> None"
)
MLA_RUN = "(self, q_nope: torch.Tensor, q_pe: torch.Tensor, ckv_cache: torch.Tensor, kpe_cache: torch.Tensor)"
FUSED_EXPERTS = (
    "(input: torch.Tensor, token_selected_experts: torch.Tensor, token_final_scales: torch.Tensor, "
    "fc1_expert_weights: torch.Tensor, fc2_expert_weights: torch.Tensor, output_dtype: torch.dtype, "
    "quant_scales: List[torch.Tensor], ep_size: int = 1, ep_rank: int = 0)"
)
PRODUCT = (
    "(input: torch.Tensor, weight: torch.Tensor, input_scale: Optional[torch.Tensor] = None, "
    "weight_scale: Optional[torch.Tensor] = None, out: Optional[torch.Tensor] = None)"
)
DECODE = "BatchDecodeWithPagedKVCacheWrapper"
PREFILL = "BatchPrefillWithPagedKVCacheWrapper"
RAGGED = "BatchPrefillWithRaggedKVCacheWrapper"
MLA = "BatchMLAPagedAttentionWrapper"
_MODULES = {
    DECODE: "flashinfer.decode",
    PREFILL: "flashinfer.prefill",
    RAGGED: "flashinfer.prefill",
    MLA: "flashinfer.mla",
}


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def floats(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale).to(torch.bfloat16)


class Recording:
    """A folder of calls, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True)

    def call(  # noqa: PLR0913  # what a dump says
        self,
        function: str,
        signature: str,
        *arguments: Any,
        keywords: Mapping[str, Any] | None = None,
        module: str = "flashinfer.norm",
        self_id: int | None = None,
        process: int = 7,
        status: str = "completed",
        stored: bool = True,
        **changes: Any,
    ) -> Path:
        """Write a call down; `arguments` are positional, the object of a method first."""
        number = next(self._numbers)
        folder = (
            self.folder / f"20261122_0102{number // 1000:02}_{number % 1000:03}_pid{process}_{function}_call{number:04}"
        )
        folder.mkdir()
        tensors: dict[str, torch.Tensor] = {}
        given = {
            **{f"arg_{place}": value for place, value in enumerate(arguments)},
            **{f"kwarg_{name}": value for name, value in (keywords or {}).items()},
        }
        plain = {key: _describe(key, value, tensors) for key, value in given.items()}
        document = {
            "function_name": function,
            "module": _MODULES.get(function.partition(".")[0], module),
            "process_id": process,
            "input_metadata": {key: value for key, value in plain.items() if key not in tensors},
            "tensor_details": {
                key: {"shape": list(value.shape), "dtype": str(value.dtype)} for key, value in tensors.items()
            },
            "function_signature": signature,
            "execution_status": status,
            "graph_capture": False,
            **({} if self_id is None else {"self_id": self_id}),
            **changes,
        }
        if stored and tensors:
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "inputs.safetensors")
        # last, as FlashInfer does: a call whose metadata say "completed" may be read and removed at once
        lines = [json.dumps({**document, "execution_status": "inputs_saved"}), json.dumps(document)]
        (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder

    def rmsnorm(self, rows: int, *, hidden_size: int = 8, eps: float = 1e-5, **changes: Any) -> Path:
        return self.call("rmsnorm", RMSNORM, floats(rows, hidden_size, scale=0.5), floats(hidden_size), eps, **changes)

    def plan_decode(
        self, lengths: list[int], *, self_id: int = 1, pages: list[int] | None = None, **changes: Any
    ) -> Path:
        """Plan a decode over 4 query heads, 2 key-value heads of width 8, pages of one token."""
        table = list(range(1, sum(lengths) + 1)) if pages is None else pages
        ends = [0, *itertools.accumulate(lengths)]
        return self.call(
            f"{DECODE}.plan", DECODE_PLAN, object(), integers(*ends), integers(*table), integers(*([1] * len(lengths))),
            4, 2, 8, 1, self_id=self_id, **changes,
        )  # fmt: skip

    def run_decode(self, batch: int, *, self_id: int = 1, tokens: int = 64, heads: int = 4, **changes: Any) -> Path:
        pool = floats(tokens, 2, 8, scale=0.25)
        return self.call(
            f"{DECODE}.run",
            PAGED_RUN,
            object(),
            floats(batch, heads, 8),
            (pool, pool.clone()),
            self_id=self_id,
            **changes,
        )

    def experts(
        self,
        ids: torch.Tensor,
        weights: torch.Tensor,
        *,
        local: int = 8,
        fc1: torch.Tensor | None = None,
        **keywords: Any,
    ) -> Path:
        """Call fused experts of 16 features, 8 between the products."""
        return self.call(
            "cutlass_fused_moe",
            FUSED_EXPERTS,
            floats(len(ids), 16),
            ids,
            weights,
            floats(local, 16, 16) if fc1 is None else fc1,
            floats(local, 16, 8),
            torch.bfloat16,
            (),
            module="flashinfer.fused_moe.core",
            keywords=keywords,
        )


def _describe(key: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[key] = value
        return {"type": "torch.Tensor", "tensor_key": key}
    if isinstance(value, tuple):
        items = [_describe(f"{key}__{place}", item, tensors) for place, item in enumerate(value)]
        return {"type": "tuple", "length": len(items), "items": items, "truncated": False}
    if isinstance(value, torch.dtype):
        return {"type": "torch.dtype", "value": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"type": type(value).__name__, "repr": "<an object>"}
