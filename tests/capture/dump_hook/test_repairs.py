"""The hook on FlashInfer's own templates, called as SGLang calls the APIs, with wrappers that hold what plan() gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fib_tools.gate.normalise import normalise

HOOK = Path(__file__).parents[3] / "fib_tools" / "capture" / "dump_hook"

# one process makes every call: FlashInfer's import takes seconds
_CALLS = """
import types, torch
torch.cuda.get_device_properties = lambda *a: types.SimpleNamespace(multi_processor_count=1, major=9, minor=0)
import flashinfer
from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper as Decode
from flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper as Paged, BatchPrefillWithRaggedKVCacheWrapper as Ragged
from flashinfer.mla import BatchMLAPagedAttentionWrapper as Mla

def t(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")

def wrapper(**other):
    i = lambda n: t(n, dtype=torch.int32)
    held = dict(_kv_layout="NHD", _paged_kv_indptr_buf=i(5), _paged_kv_indices_buf=i(669), _qo_indptr_buf=i(5),
                _kv_indptr_buf=i(5), _kv_indices_buf=i(700), _sm_scale=128**-0.5, _window_left=-1,
                _logits_soft_cap=0.0, _causal=True)
    return types.SimpleNamespace(**{**held, **other})

pool = (t(16385, 8, 128), t(16385, 8, 128))
for _ in range(3):
    Decode.run.fi_trace(self=wrapper(), q=t(4, 24, 128), paged_kv_cache=pool)
Decode.run.fi_trace(self=wrapper(), q=t(7, 24, 128), paged_kv_cache=pool)
Decode.run.fi_trace(self=wrapper(_window_left=127), q=t(4, 8, 64), paged_kv_cache=(t(100, 8, 64), t(100, 8, 64)))
Decode.run.fi_trace(self=wrapper(_kv_layout="HND"), q=t(4, 16, 128), paged_kv_cache=(t(99, 4, 64, 128), t(99, 4, 64, 128)))
Paged.run.fi_trace(self=wrapper(), q=t(40, 24, 128), paged_kv_cache=pool)
Paged.run.fi_trace(self=wrapper(_causal=False), q=t(40, 24, 128), paged_kv_cache=pool)
scale = 0.13086079996295008
Ragged.run.fi_trace(self=wrapper(_sm_scale=scale, _logits_soft_cap=None), q=t(400, 8, 192), k=t(400, 8, 192), v=t(400, 8, 128))
Ragged.run.fi_trace(self=wrapper(), q=t(400, 24, 128), k=t(400, 8, 128), v=t(400, 8, 128))
Mla.run.fi_trace(self=wrapper(_causal=False, _sm_scale=scale), q_nope=t(4, 8, 512), q_pe=t(4, 8, 64),
                 ckv_cache=t(16385, 1, 512), kpe_cache=t(16385, 1, 64))
Mla.run.fi_trace(self=wrapper(_sm_scale=scale), q_nope=t(41, 8, 512), q_pe=t(41, 8, 64),
                 ckv_cache=t(16385, 1, 512), kpe_cache=t(16385, 1, 64))
flashinfer.norm.rmsnorm.fi_trace(input=t(4, 3072), weight=t(3072), eps=1e-5)
flashinfer.norm.rmsnorm.fi_trace(input=t(4, 2048), weight=t(2048), eps=1e-6)
flashinfer.norm.rmsnorm.fi_trace(input=t(4, 32, 128), weight=t(128), eps=1e-6)
flashinfer.sampling.top_k_top_p_sampling_from_probs.fi_trace(
    probs=t(3, 1000, dtype=torch.float32), top_k=t(3, dtype=torch.int32), top_p=t(3, dtype=torch.float32),
    filter_apply_order="joint")
flashinfer.fused_moe.fused_topk_deepseek.fi_trace(
    scores=t(3, 256, dtype=torch.float32), bias=t(256, dtype=torch.float32), n_group=8, topk_group=4, topk=8,
    routed_scaling_factor=1.0, topk_values=t(3, 8, dtype=torch.float32), topk_indices=t(3, 8, dtype=torch.int32))
flashinfer.norm.rmsnorm.fi_trace("elsewhere", input=t(4, 64), weight=t(64), eps=1e-6)
bf = torch.bfloat16
given = torch.full((3, 64), 7, dtype=bf)
experts = dict(input=torch.zeros(3, 64, dtype=bf), token_selected_experts=torch.zeros(3, 2, dtype=torch.int32),
               token_final_scales=torch.zeros(3, 2), fc1_expert_weights=torch.zeros(4, 64, 64, dtype=bf),
               fc2_expert_weights=torch.zeros(4, 64, 32, dtype=bf), output_dtype=bf, quant_scales=[])
made, = flashinfer.fused_moe.cutlass_fused_moe(**experts)
kept, = flashinfer.fused_moe.cutlass_fused_moe(**experts, output=given)
assert made.shape == (3, 64) and made.dtype is bf and not made.any(), made
assert kept is given and not given.any()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hook")
    (root / "later").mkdir()
    (root / "later" / "sitecustomize.py").write_text("import sys\nsys.was_chained = True\n", encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HOOK}:{root / 'later'}",
        "FIB_DUMP_DIR": str(root / "out"),
        "FIB_DUMP_SKIP": "cutlass_fused_moe",
        "FLASHINFER_TRACE_DUMP": "1",
        "FLASHINFER_WORKSPACE_BASE": str(root),
        "OMP_NUM_THREADS": "1",
    }
    code = _CALLS + "import sys; assert sys.was_chained\n"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return root


def load(folder: Path, kind: str, name: str) -> dict[str, Any]:
    return json.loads((folder / "out" / kind / "rank0" / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def read_calls(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "out" / "calls").iterdir()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def const(document: dict[str, Any]) -> dict[str, int]:
    return {name: axis["value"] for name, axis in document["axes"].items() if axis["type"] == "const"}


def recognised(folder: Path, name: str) -> dict[str, Any]:
    found = normalise(load(folder, "dumps", name))
    assert found.definition is not None, found.refused
    assert found.recognised is not None
    chosen = {key: value for key, value in found.recognised.parameters.items() if value is not None}
    return {"name": found.definition.name, "kernel": found.recognised.kernel, **chosen}


def test_a_flat_pool_is_seen_as_pages_of_one_token(folder: Path) -> None:
    raw = load(folder, "raw", "gqa_paged_decode_h24_kv128_d128_ps8")
    repaired = load(folder, "dumps", "gqa_paged_decode_h24_kv8_d128_ps1")
    assert const(raw) == {"num_qo_heads": 24, "num_kv_heads": 128, "head_dim": 128, "page_size": 8}
    assert const(repaired) == {"num_qo_heads": 24, "num_kv_heads": 8, "head_dim": 128, "page_size": 1}
    assert repaired["fib_raw_name"] == raw["name"]


def test_index_tensors_have_the_dtypes_they_were_planned_with(folder: Path) -> None:
    raw = load(folder, "raw", "gqa_paged_decode_h24_kv128_d128_ps8")
    repaired = load(folder, "dumps", "gqa_paged_decode_h24_kv8_d128_ps1")
    assert {raw["inputs"][name]["dtype"] for name in ("kv_indptr", "kv_indices")} == {"unknown"}
    assert {repaired["inputs"][name]["dtype"] for name in ("kv_indptr", "kv_indices")} == {"int32"}


def test_a_pool_with_heads_before_tokens_is_turned(folder: Path) -> None:
    assert const(load(folder, "dumps", "gqa_paged_decode_h16_kv4_d128_ps64"))["num_kv_heads"] == 4


def test_a_window_makes_another_kernel_than_the_template_says(folder: Path) -> None:
    found = recognised(folder, "gqa_paged_decode_h8_kv8_d64_ps1")
    assert (found["kernel"], found["window_left"]) == ("gqa_paged_decode", 127)


def test_a_prefill_that_is_not_causal_gets_a_reference_that_is_not(folder: Path) -> None:
    causal = recognised(folder, "gqa_paged_prefill_h24_kv8_d128_ps1")
    full = recognised(folder, "gqa_paged_prefill_h24_kv8_d128_ps1__2")
    assert (causal["causal"], full["causal"]) == (True, False)
    assert full["name"] == "gqa_paged_prefill_full_h24_kv8_d128_ps1"
    assert "reference" not in load(folder, "dumps", "gqa_paged_prefill_h24_kv8_d128_ps1__2")


def test_the_values_of_mla_are_narrower_than_its_keys(folder: Path) -> None:
    found = recognised(folder, "gqa_ragged_h8_kv8_d192")
    assert found["name"] == "mla_ragged_prefill_causal_h8_qk192_vo128"
    assert found["sm_scale"] == pytest.approx(0.13086079996295008)


def test_a_plain_ragged_prefill_stays_as_it_is(folder: Path) -> None:
    assert "fib_kernel" not in load(folder, "dumps", "gqa_ragged_h24_kv8_d128")


def test_prefill_and_decode_of_mla_are_told_apart(folder: Path) -> None:
    decode = recognised(folder, "mla_paged_decode_h8_ckv512_kpe64_ps1")
    prefill = recognised(folder, "mla_paged_decode_h8_ckv512_kpe64_ps1__2")
    assert (decode["kernel"], prefill["kernel"], prefill["causal"]) == ("mla_paged_decode", "mla_paged_prefill", True)
    assert decode["sm_scale"] == pytest.approx(0.13086079996295008)


def test_an_epsilon_that_the_template_does_not_know_is_kept(folder: Path) -> None:
    assert recognised(folder, "rmsnorm_h3072")["eps"] == 1e-5
    assert "fib_kernel" not in load(folder, "dumps", "rmsnorm_h2048")


def test_a_norm_on_heads_has_the_width_of_a_head(folder: Path) -> None:
    assert load(folder, "raw", "rmsnorm_h32")["name"] == "rmsnorm_h32"
    assert const(load(folder, "dumps", "rmsnorm_h128")) == {"hidden_size": 128}


def test_the_order_of_the_filters_is_kept(folder: Path) -> None:
    assert recognised(folder, "top_k_top_p_sampling_v1000")["filter_apply_order"] == "joint"


def test_the_groups_of_experts_are_kept(folder: Path) -> None:
    found = recognised(folder, "fused_topk_deepseek_e256_k8")
    assert found["name"] == "moe_routing_ds_topk8_ng8_kg4_e256"


def test_scales_of_an_fp8_cache_are_no_inputs_of_a_bfloat16_one(folder: Path) -> None:
    document = load(folder, "dumps", "mla_paged_decode_h8_ckv512_kpe64_ps1")
    found = normalise(document)
    assert found.definition is not None
    assert found.recognised is not None
    assert {"ckv_scale", "kpe_scale"} <= set(document["inputs"])
    assert set(found.definition.inputs) == set(found.recognised.build().inputs)
    assert "reference" in document
    assert not [name for name in found.definition.model_extra or {} if name.startswith("fib_")]


def test_calls_are_counted_by_their_lengths(folder: Path) -> None:
    calls = [call for call in read_calls(folder) if call.get("definition") == "gqa_paged_decode_h24_kv8_d128_ps1"]
    assert [(call["axes"]["batch_size"], call["count"]) for call in calls] == [(4, 3), (7, 1)]
    assert calls[0]["axes"] == {"batch_size": 4, "num_pages": 16385, "len_indptr": 5, "num_kv_indices": 669}


def test_a_trace_with_a_folder_of_its_own_is_left_alone(folder: Path) -> None:
    assert (folder / "elsewhere" / "rmsnorm_h64.json").exists()
    assert not (folder / "out" / "dumps" / "rank0" / "rmsnorm_h64.json").exists()


def test_what_is_skipped_is_dumped_all_the_same(folder: Path) -> None:
    assert load(folder, "dumps", "cutlass_fused_moe_e4_h64_i32_topk2")["op_type"]
    (notes,) = (folder / "out" / "notes").iterdir()
    kinds = [json.loads(line)["note"] for line in notes.read_text(encoding="utf-8").splitlines()]
    assert kinds == ["hooked", "skipped"]
