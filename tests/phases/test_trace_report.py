"""What an H200 showed of DeepSeek-V3, cut to one rank of eight and two layers, held against the inventory.

The data are the dumps and calls of one run of `benchmarks/trace_dump.py`, without references and descriptions.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.evidence import OtherCall, read_other_calls
from fib_tools.capture.runs import EngineRun
from fib_tools.host.locks import hold
from fib_tools.model.manifest import ManifestKernel
from fib_tools.phases.context import Context
from fib_tools.phases.dumps import read_dumps
from fib_tools.phases.inventory import keep_survey, workspace_lock
from fib_tools.phases.request import DEFAULTS
from fib_tools.phases.survey import survey_model
from fib_tools.phases.trace_evidence import find_evidence
from fib_tools.phases.trace_plan import TraceSubject, plan_runs
from fib_tools.phases.trace_reasons import Reasons
from fib_tools.phases.trace_report import Shown, Verdict, compare_kernels
from fib_tools.phases.trace_result import KernelLine

_DATA = Path(__file__).parent / "data" / "deepseek_v3_tp8_h200.json"


class Seen:
    """The model's inventory, and what the run left."""

    def __init__(self, context: Context, folder: Path) -> None:
        data: dict[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))
        (folder / "dumps").mkdir(parents=True)
        (folder / "calls").mkdir()
        for name, document in data["dumps"].items():
            (folder / "dumps" / name).write_text(json.dumps(document), encoding="utf-8")
        text = "".join(json.dumps(call) + "\n" for call in data["calls"])
        (folder / "calls" / "rank0-1.jsonl").write_text(text, encoding="utf-8")
        survey = survey_model(context, "deepseek-v3", DEFAULTS)
        context.workspace.create()
        with hold(workspace_lock(context), purpose="a test"):
            self.kernels = keep_survey(context, survey, DEFAULTS).asked.kernels
        points = survey.inventory.points
        subject = TraceSubject(model="deepseek-v3", config=survey.config.config, facts=survey.facts, points=points)
        self.plan = plan_runs(subject)
        self.run: EngineRun = next(run for run in self.plan.runs if run.name == "tp8")
        dumps, refused = read_dumps(folder / "dumps")
        assert not refused
        self.shown = [Shown(dump=dump, run=self.run) for dump in dumps]
        self.others = read_other_calls(folder, run="tp8")

    def compare(self) -> Verdict:
        return compare_kernels(
            self.kernels, self.shown, self.others, runs=[self.run], not_covered=self.plan.not_covered
        )

    def kernel(self, name: str) -> ManifestKernel:
        return next(kernel for kernel in self.kernels if kernel.name == name)


@pytest.fixture
def seen(context: Context, tmp_path: Path, untraced: None) -> Seen:
    del untraced
    return Seen(context, tmp_path / "run")


def find(verdict: Verdict, name: str) -> KernelLine:
    return next(line for line in verdict.lines if line.name == name)


def test_every_dump_is_a_kernel_of_the_inventory(seen: Seen) -> None:
    verdict = seen.compare()
    assert len(verdict.matches) == len(seen.shown)
    counts = Counter(line.status for line in verdict.lines)
    assert not {"new", "differs", "set aside"} & set(counts)
    assert (counts["confirmed"], counts["corrected"]) == (14, 5)


def test_what_flashinfer_names_by_the_wrong_axes_is_found_again(seen: Seen) -> None:
    verdict = seen.compare()
    full = find(verdict, "mla_ragged_prefill_full_h16_qk192_vo128")
    routing = find(verdict, "moe_routing_ds_topk8_ng8_kg4_e256")
    assert (full.status, full.fi_names) == ("corrected", ("gqa_ragged_h16_kv16_d192",))
    assert (routing.status, routing.detail.partition("; ")[2]) == (
        "corrected",
        "the template does not tell 4 groups of 8",
    )


def test_a_router_is_seen_in_the_kernel_that_sglang_has_for_it(seen: Seen) -> None:
    found = find(seen.compare(), "gemm_n256_k7168")
    assert (found.status, found.detail.partition(" ")[0].rpartition(".")[2]) == ("seen", "dsv3_router_gemm")


def test_shared_experts_that_were_computed_as_routed_ones_are_told(seen: Seen) -> None:
    found = find(seen.compare(), "gemm_fp8_block_scale_n512_k7168")
    assert found.status == "not seen"
    assert found.detail == (
        "SGLang computes the shared expert as one more of the 256 routed ones: float8_e4m3fn[257, 512, 7168]"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("top_k_top_p_sampling_from_probs_v129280", "SGLang calls it with filter_apply_order='joint'"),
        ("append_paged_mla_kv_cache_ckv512_kpe64_ps1", "SGLang's own pool writes the cache"),
        ("chain_speculative_sampling_v129280", "the runs decode without drafts"),
        ("gemm_n7168_k14336", "the runs decode without drafts"),
        ("gemm_n16160_k7168", "one GPU stands in for 8: the LM head"),
        ("mla_paged_decode_h16_ckv512_kpe64_ps64", "SGLang's FlashInfer backends address single tokens"),
        ("mla_paged_decode_h16_ckv512_kpe64_ps1_kvfp8", "the runs keep the KV cache in the model's own type"),
        ("mla_paged_decode_h128_ckv512_kpe64_ps1", "no run has its shapes"),
    ],
)
def test_what_was_not_seen_has_its_own_reason(seen: Seen, name: str, reason: str) -> None:
    found = find(seen.compare(), name)
    assert found.status == "not seen"
    assert found.detail.startswith(reason)


def test_experts_that_no_call_shows_are_those_of_other_gpus(seen: Seen) -> None:
    experts = next(kernel for kernel in seen.kernels if kernel.op_type == "moe" and kernel.ep == (1,))
    reasons = Reasons(runs=[seen.run], not_covered=(), failures={}, others=(), matched=())
    assert reasons.explain(experts) == (
        "FlashInfer's trtllm-gen kernels are for Blackwell GPUs, and the runs choose others"
    )


def test_no_kernel_is_left_without_a_reason(seen: Seen) -> None:
    unseen = [line for line in seen.compare().lines if line.status == "not seen"]
    assert unseen
    assert not [line.name for line in unseen if line.detail.startswith("nothing that")]


def test_a_call_with_other_sizes_is_no_evidence(seen: Seen) -> None:
    merge, router = seen.kernel("merge_state_h16_d128"), seen.kernel("gemm_n256_k7168")
    states = {"0": "bfloat16[*, 8, 128]", "1": "float32[*, 8]"}
    products = {"0": "bfloat16[*, 7168]", "1": "bfloat16[*, 7168]"}
    others = [
        OtherCall(kernel="sgl_kernel.merge_state_v2", run="tp8", tensors=states),
        OtherCall(kernel="sglang.kernels.ops.gemm.dsv3_router_gemm.dsv3_router_gemm", run="tp8", tensors=products),
    ]
    assert find_evidence(merge, others) is None
    assert find_evidence(router, others) is None
    assert find_evidence(merge, seen.others) is not None
