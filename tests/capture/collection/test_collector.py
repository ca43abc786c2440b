from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fib_tools.capture.collection.collector import Collector, take_calls
from fib_tools.capture.collection.matching import Target
from fib_tools.errors import SourceError
from fib_tools.op_types.registry import get_kernel_type
from level10 import (
    DECODE,
    MLA,
    MLA_PLAN,
    MLA_RUN,
    PAGED_RUN,
    PREFILL,
    PREFILL_PLAN,
    PRODUCT,
    RAGGED,
    RAGGED_PLAN,
    RAGGED_RUN,
    TOP_K_TOP_P,
    Recording,
    floats,
    integers,
)

HEADS = {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def target(kernel: str, **parameters: Any) -> Target:
    kind = get_kernel_type(kernel)
    full = kind.parameters.model_validate(parameters).model_dump()
    return Target(definition=kind.build(parameters), kernel=kernel, parameters=full)


NORM = target("rmsnorm", hidden_size=8, eps=1e-5)
DECODES = target("gqa_paged_decode", **HEADS, page_size=1)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "dumps")


@pytest.fixture
def collect(recording: Recording) -> Callable[..., Collector]:
    def run(*targets: Target, limit: int = 10, **options: Any) -> Collector:
        collector = Collector(targets=targets, limit=limit)
        take_calls(recording.folder, collector, **options)
        return collector

    return run


def reasons(collector: Collector) -> list[str]:
    assert not collector.tallies
    return [reason for _, reason in collector.refused]


def test_equal_calls_are_one_candidate_with_their_count(recording: Recording, collect: Any) -> None:
    for rows in (3, 5, 3):
        recording.rmsnorm(rows)
    tally = collect(NORM).tallies["rmsnorm_h8"]
    assert [(item.axes, item.count) for item in tally.choose()] == [({"batch_size": 3}, 2), ({"batch_size": 5}, 1)]
    assert tally.lengths == {"batch_size": {3: 2, 5: 1}}


def test_the_scale_of_random_inputs_is_measured(recording: Recording, collect: Any) -> None:
    recording.rmsnorm(64)
    (candidate,) = collect(NORM).tallies["rmsnorm_h8"].choose()
    assert candidate.scales == {"hidden_states": pytest.approx(0.5, rel=0.1), "weight": pytest.approx(1.0, abs=0.6)}


def test_without_the_values_of_floats_a_workload_has_no_scales(recording: Recording, collect: Any) -> None:
    recording.rmsnorm(64, stored=False)
    (candidate,) = collect(NORM).tallies["rmsnorm_h8"].choose()
    assert candidate.scales == {}


def test_rows_of_heads_are_rows(recording: Recording, collect: Any) -> None:
    from level10 import RMSNORM

    recording.call("rmsnorm", RMSNORM, floats(3, 4, 8), floats(8), 1e-5)
    (candidate,) = collect(NORM).tallies["rmsnorm_h8"].choose()
    assert candidate.axes == {"batch_size": 12}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 16}, "rmsnorm_h8: hidden_states has hidden_size = 16, and it is 8"),
        ({"eps": 1e-6}, "rmsnorm_h8: eps is 1e-06, and 1e-05 in the Definition"),
    ],
)
def test_another_kernel_of_the_same_api_is_no_workload(
    recording: Recording, collect: Any, changes: dict[str, Any], reason: str
) -> None:
    recording.rmsnorm(3, **changes)
    assert reasons(collect(NORM)) == [reason]


def test_of_many_reasons_that_of_the_nearest_definition_is_given(recording: Recording, collect: Any) -> None:
    recording.rmsnorm(3)
    others = [target("rmsnorm", hidden_size=size, eps=eps) for size, eps in ((8, 1e-6), (16, 1e-5), (16, 1e-6))]
    (said,) = reasons(collect(*others))
    assert said == "rmsnorm_h16: hidden_states has hidden_size = 8, and it is 16 (and 2 others do not fit)"


def test_calls_of_other_functions_are_counted_by_name(recording: Recording, collect: Any) -> None:
    recording.call("rmsnorm", "(input: torch.Tensor)", floats(2, 8), module="elsewhere.norm")
    collector = collect(NORM)
    assert (collector.others, collector.tallies) == ({"rmsnorm": 1}, {})


def test_a_run_takes_the_last_plan_of_its_own_object(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3, 4], self_id=1)
    recording.plan_decode([5, 6], self_id=2)
    recording.run_decode(2, self_id=1)
    recording.run_decode(2, self_id=2)
    recording.plan_decode([7, 8], self_id=1)
    recording.run_decode(2, self_id=1)
    tally = collect(DECODES).tallies["gqa_paged_decode_h4_kv2_d8_ps1"]
    assert [item["num_kv_indices"] for item in (candidate.axes for candidate in tally.held.values())] == [7, 11, 15]


def test_a_plan_of_another_class_or_process_is_not_taken(recording: Recording, collect: Any) -> None:
    given = (integers(0, 2, 4), integers(0, 2, 4), 4, 2, 8)
    recording.call(f"{RAGGED}.plan", RAGGED_PLAN, object(), *given, self_id=1)
    recording.plan_decode([3, 4], self_id=1, process=8)
    recording.run_decode(2, self_id=1)
    assert reasons(collect(DECODES)) == ["no plan() of the same object stands before it"]


def test_a_pool_of_single_tokens_is_read_as_pages_of_one(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3, 4])
    recording.run_decode(2, tokens=64)
    (candidate,) = collect(DECODES).tallies["gqa_paged_decode_h4_kv2_d8_ps1"].choose()
    assert candidate.axes == {"batch_size": 2, "num_pages": 64, "len_indptr": 3, "num_kv_indices": 7}
    assert {name: values.tolist() for name, values in candidate.tensors.items()} == {
        "kv_indptr": [0, 3, 7],
        "kv_indices": [1, 2, 3, 4, 5, 6, 7],
    }
    assert candidate.scalars == {"sm_scale": pytest.approx(8**-0.5)}
    assert candidate.scales == {"q": pytest.approx(1.0, rel=0.5)} | dict.fromkeys(
        ("k_cache", "v_cache"), pytest.approx(0.25, rel=0.3)
    )


def test_what_a_page_table_holds_beyond_its_indptr_is_left_out(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3, 4], pages=[*range(1, 8), 0, 0, 0])
    recording.run_decode(2)
    (candidate,) = collect(DECODES).tallies["gqa_paged_decode_h4_kv2_d8_ps1"].choose()
    assert candidate.tensors["kv_indices"].tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("pages", "tokens", "reason"),
    [
        ([1, 2], 64, "its plan() cannot be read: kv_indptr ends at 3, kv_indices has 2"),
        ([1, 2, 64], 64, "names the pages 1 to 64 of 64"),
        ([1, -2, 3], 64, "names the pages -2 to 3 of 64"),
    ],
)
def test_a_page_table_that_cannot_be_is_refused(
    recording: Recording, collect: Any, pages: list[int], tokens: int, reason: str
) -> None:
    recording.plan_decode([3], pages=pages)
    recording.run_decode(1, tokens=tokens)
    (said,) = reasons(collect(DECODES))
    assert reason in said


def test_a_softmax_scale_that_nothing_shows_is_not_made_up(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3])
    recording.run_decode(1)
    inputs = dict(DECODES.definition.inputs)
    inputs["sm_scale"] = inputs["sm_scale"].model_copy(update={"description": "A factor."})
    silent = DECODES.definition.model_copy(update={"inputs": inputs})
    (said,) = reasons(collect(Target(definition=silent, kernel=DECODES.kernel, parameters=DECODES.parameters)))
    assert said.endswith("nothing shows the value of sm_scale")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(recording: Recording, collect: Any, scale: float) -> None:
    recording.plan_decode([3], keywords={"sm_scale": scale})
    recording.run_decode(1)
    (said,) = reasons(collect(DECODES))
    assert "sm_scale is" in said


def test_of_two_definitions_that_of_the_calls_own_scale_is_taken(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3], keywords={"sm_scale": 0.25})
    recording.run_decode(1)
    own = target("gqa_paged_decode", **HEADS, page_size=1, sm_scale=0.25)
    (tally,) = collect(DECODES, own).tallies.values()
    assert tally.target is own
    (tally,) = collect(DECODES).tallies.values()
    assert list(tally.notes) == ["sm_scale is 0.25 in calls, and 0.353553 of the Definition's model"]


def test_a_name_that_is_no_functions_is_refused(recording: Recording, collect: Any) -> None:
    recording.rmsnorm(3, function_name="rmsnorm\nand more")
    (said,) = reasons(collect(NORM))
    assert "name no function" in said


def test_heads_that_differ_from_the_definitions_are_refused(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3])
    recording.run_decode(1, heads=8)
    (said,) = reasons(collect(DECODES))
    assert said.endswith("q has num_qo_heads = 8, and it is 4")


def prefill(recording: Recording, *, plan: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> None:
    pool = floats(32, 2, 8)
    given = (integers(0, 3), integers(0, 5), integers(1, 2, 3, 4, 5), integers(1), 4, 2, 8, 1)
    recording.call(f"{PREFILL}.plan", PREFILL_PLAN, object(), *given, self_id=3, keywords=plan)
    recording.call(
        f"{PREFILL}.run", PAGED_RUN, object(), floats(3, 4, 8), (pool, pool.clone()), self_id=3, keywords=run
    )


PREFILLS = [target("gqa_paged_prefill", **HEADS, page_size=1, causal=causal) for causal in (True, False)]


@pytest.mark.parametrize(
    ("plan", "run", "mask"),
    [
        ({"causal": True}, {"return_lse": True}, "causal"),
        ({}, {"return_lse": True}, "full"),
        ({}, {}, "causal"),
    ],
)
def test_the_mask_of_a_paged_prefill_is_what_sglang_set(
    recording: Recording, collect: Any, plan: dict[str, Any], run: dict[str, Any], mask: str
) -> None:
    prefill(recording, plan=plan, run=run)
    (tally,) = collect(*PREFILLS).tallies.values()
    assert tally.target.definition.name == f"gqa_paged_prefill_{mask}_h4_kv2_d8_ps1"
    assert len(tally.notes) == 1


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_what_our_hook_saw_the_object_hold_wins(recording: Recording, collect: Any, mask: str) -> None:
    causal = mask == "causal"  # without the hook, asking for the log-sum-exp speaks for the other
    prefill(recording, run={"return_lse": causal})
    (run,) = recording.folder.glob("*.run_*")
    state = {"causal": causal, "sm_scale": None, "logits_soft_cap": None, "window_left": -1}
    (run / "fib_state.json").write_text(json.dumps(state), encoding="utf-8")
    capped = target("gqa_paged_prefill", **HEADS, page_size=1, causal=causal, logits_soft_cap=50.0)
    (tally,) = collect(*PREFILLS, capped).tallies.values()
    assert tally.target.definition.name == f"gqa_paged_prefill_{mask}_h4_kv2_d8_ps1"
    assert tally.notes == {}
    (candidate,) = tally.choose()
    assert candidate.scalars == {"sm_scale": pytest.approx(8**-0.5)}, "what run() takes for None"


def test_keys_that_are_turned_as_they_are_read_are_no_definitions(recording: Recording, collect: Any) -> None:
    prefill(recording, plan={"pos_encoding_mode": "ROPE_LLAMA"})
    (said,) = reasons(collect(*PREFILLS))
    assert "turns the keys" in said


def test_a_window_that_plan_was_told_is_another_kernel(recording: Recording, collect: Any) -> None:
    prefill(recording, plan={"window_left": 4})
    (said,) = reasons(collect(PREFILLS[0]))
    assert said.endswith("window_left is 4, and -1 in the Definition")


def test_a_window_that_no_dump_shows_is_the_only_definitions_and_said(recording: Recording, collect: Any) -> None:
    prefill(recording)
    (tally,) = collect(target("gqa_paged_prefill", **HEADS, page_size=1, window_left=4)).tallies.values()
    assert "window_left = 4 is the Definition's: no dump shows it" in tally.notes


def test_of_two_definitions_that_the_dump_cannot_tell_apart_none_is_taken(recording: Recording, collect: Any) -> None:
    prefill(recording)
    windows = [target("gqa_paged_prefill", **HEADS, page_size=1, window_left=size) for size in (4, 8)]
    (said,) = reasons(collect(*windows))
    assert said.startswith("the dump does not tell which it is of: ")


@pytest.mark.parametrize(("keys", "mask"), [((0, 3, 7), "causal"), ((0, 4, 9), "full")])
def test_new_tokens_among_themselves_are_causal(
    recording: Recording, collect: Any, keys: tuple[int, ...], mask: str
) -> None:
    given = (integers(0, 3, 7), integers(*keys), 4, 2, 8)
    recording.call(f"{RAGGED}.plan", RAGGED_PLAN, object(), *given, self_id=3)
    rest = (floats(keys[-1], 2, 8), floats(keys[-1], 2, 8))
    recording.call(f"{RAGGED}.run", RAGGED_RUN, object(), floats(7, 4, 8), *rest, self_id=3)
    kinds = [target("gqa_ragged_prefill", **HEADS, causal=causal) for causal in (True, False)]
    (tally,) = collect(*kinds).tallies.values()
    assert tally.target.definition.name == f"gqa_ragged_prefill_{mask}_h4_kv2_d8"


def test_values_that_are_narrower_than_keys_are_of_latent_attention(recording: Recording, collect: Any) -> None:
    given = (integers(0, 3), integers(0, 3), 4, 4, 12)
    recording.call(f"{RAGGED}.plan", RAGGED_PLAN, object(), *given, self_id=3)
    rest = (floats(3, 4, 12), floats(3, 4, 8))
    recording.call(f"{RAGGED}.run", RAGGED_RUN, object(), floats(3, 4, 12), *rest, self_id=3)
    wide = target("gqa_ragged_prefill", num_qo_heads=4, num_kv_heads=4, head_dim=12)
    latent = target("mla_ragged_prefill", num_qo_heads=4, head_dim_qk=12, head_dim_vo=8)
    (tally,) = collect(wide, latent).tallies.values()
    assert tally.target is latent


@pytest.mark.parametrize("declared", [0.125, 0.25])
def test_a_latent_decode_takes_its_scale_and_its_last_pages_from_plan(
    recording: Recording, collect: Any, declared: float
) -> None:
    given = (integers(0, 1, 2), integers(0, 2, 3), integers(1, 2, 3), integers(7, 4), 4, 16, 8, 4, False, 0.125)
    recording.call(f"{MLA}.plan", MLA_PLAN, object(), *given, self_id=3)
    rest = (floats(2, 4, 16), floats(2, 4, 8), floats(9, 4, 16), floats(9, 4, 8))
    recording.call(f"{MLA}.run", MLA_RUN, object(), *rest, self_id=3)
    sizes = {"num_qo_heads": 4, "head_dim_ckv": 16, "head_dim_kpe": 8, "page_size": 4, "sm_scale": declared}
    (tally,) = collect(target("mla_paged_decode", **sizes)).tallies.values()
    (candidate,) = tally.choose()
    assert candidate.scalars == {"sm_scale": 0.125}, "the call's own, also where the Definition's model has another"
    assert candidate.tensors["kv_last_page_len"].tolist() == [3, 4]


@pytest.mark.parametrize("quantises", [True, False])
def test_a_product_that_quantises_its_rows_itself_is_one_of_quantised_rows(
    recording: Recording, collect: Any, *, quantises: bool
) -> None:
    rows, weight, scales = floats(3, 256), floats(384, 256).to(torch.float8_e4m3fn), torch.ones(3, 2)
    given = (rows, weight, None) if quantises else (rows.to(torch.float8_e4m3fn), weight, torch.ones(3, 2))
    options: dict[str, Any] = {"module": "flashinfer.gemm.gemm_base", "keywords": {"weight_scale": scales}}
    recording.call("fp8_blockscale_gemm_sm90", PRODUCT, *given, **options)
    recording.call("fp8_blockscale_gemm_sm90", PRODUCT, rows, weight.bfloat16(), **{**options, "keywords": {}})
    collector = collect(target("gemm_fp8_block", n=384, k=256), target("gemm_fp8_block", n=256, k=384))
    (tally,) = collector.tallies.values()
    (candidate,) = tally.choose()
    assert candidate.axes == {"M": 3}
    assert not candidate.tensors, "rows and weights are drawn anew"
    assert [("quantised" in note) for note in tally.notes] == [True] * quantises
    assert "only FP8 weights" in str(collector.refused)


def test_integers_whose_values_are_not_there_are_not_made_up(recording: Recording, collect: Any) -> None:
    given = (torch.rand(2, 16), integers(4, 5), torch.rand(2))
    options: dict[str, Any] = {"module": "flashinfer.sampling", "keywords": {"filter_apply_order": "joint"}}
    for stored in (False, True):
        recording.call("top_k_top_p_sampling_from_probs", TOP_K_TOP_P, *given, stored=stored, **options)
    joint = target("top_k_top_p_sampling_from_probs", vocab_size=16, filter_apply_order="joint")
    plain = target("top_k_top_p_sampling_from_probs", vocab_size=16)
    collector = collect(plain, joint)
    (tally,) = collector.tallies.values()
    (candidate,) = tally.choose()
    assert tally.target is joint
    assert candidate.tensors["top_k"].tolist() == [4, 5]
    assert sum(collector.refused.values()) == 1
    assert "the values of arg_1 are not in the dump" in str(collector.refused)


def test_what_is_read_is_removed_and_nothing_else(recording: Recording, collect: Any) -> None:
    recording.rmsnorm(3)
    (recording.folder / "session.jsonl").write_text("{}\n", encoding="utf-8")
    (recording.folder / "mine").mkdir()
    assert collect(NORM, consume=True).calls == 1
    assert sorted(path.name for path in recording.folder.iterdir()) == ["mine", "session.jsonl"]


def test_a_call_that_still_runs_is_left_for_later_and_holds_up_none(recording: Recording) -> None:
    late, half, empty = recording.rmsnorm(4, status="inputs_saved"), recording.rmsnorm(5), recording.rmsnorm(6)
    whole = (half / "metadata.jsonl").read_text(encoding="utf-8")
    (half / "metadata.jsonl").write_text(whole[:-40], encoding="utf-8")
    (empty / "metadata.jsonl").unlink()
    done = recording.rmsnorm(3)
    collector = Collector(targets=[NORM], limit=10)
    assert take_calls(recording.folder, collector, consume=True, is_over=False) == [done]
    assert sorted(recording.folder.iterdir()) == [late, half, empty]
    (half / "metadata.jsonl").write_text(whole, encoding="utf-8")
    assert take_calls(recording.folder, collector, consume=True, is_over=False) == [half]
    assert take_calls(recording.folder, collector, consume=True) == [late, empty]
    assert (collector.calls, sum(collector.refused.values())) == (2, 2)
    assert list(recording.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "did not come to its end"),
        ("\n", "not JSON"),
        ("[]\n", "no object"),
        ("{}\n", "did not come to its end"),
        ('{"execution_status": "completed"}\n', "not FlashInfer's"),
        ('{"graph_capture": true}\n', "CUDA graph"),
    ],
)
def test_metadata_that_are_not_flashinfers_are_refused(
    recording: Recording, collect: Any, text: str, reason: str
) -> None:
    (recording.rmsnorm(3) / "metadata.jsonl").write_text(text, encoding="utf-8")
    (said,) = reasons(collect(NORM))
    assert reason in said


@pytest.mark.parametrize(("length", "reason"), [(4, "is not what its metadata say"), (1 << 40, "not kept")])
def test_tensors_that_differ_from_their_metadata_are_refused(
    recording: Recording, collect: Any, length: int, reason: str
) -> None:
    folder = recording.plan_decode([3])
    path = folder / "metadata.jsonl"
    document = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    document["tensor_details"]["arg_2"]["shape"] = [length]
    path.write_text(f"{json.dumps(document)}\n", encoding="utf-8")
    recording.run_decode(1)
    (said,) = reasons(collect(DECODES))
    assert reason in said


def test_links_are_not_followed(recording: Recording, collect: Any, tmp_path: Path) -> None:
    real = recording.rmsnorm(3)
    moved = tmp_path / "elsewhere"
    real.rename(moved)
    (recording.folder / real.name).symlink_to(moved)
    second = recording.rmsnorm(4)
    (second / "metadata.jsonl").rename(moved / "metadata.jsonl")
    (second / "metadata.jsonl").symlink_to(moved / "metadata.jsonl")
    assert reasons(collect(NORM, consume=True)) == ["its metadata are a link"]
    assert (moved / "metadata.jsonl").exists()


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="this is no folder"):
        take_calls(tmp_path / "none", Collector(targets=[], limit=1))


def test_the_name_of_a_decode_plan_is_no_run(recording: Recording, collect: Any) -> None:
    recording.plan_decode([3])
    collector = collect(DECODES)
    assert (collector.plans, collector.calls, collector.tallies) == (1, 1, {})
    assert DECODE in collector.targets[0].definition.name or not collector.refused
