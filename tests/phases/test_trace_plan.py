from __future__ import annotations

from typing import Any

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.inventory import list_serving_points
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.capture.runs import EngineRun, RunPlan, list_batches
from fib_tools.phases.trace_plan import TraceSubject, plan_runs
from fib_tools.sources.huggingface import load_config


def subject(model: str, *points: ServingPoint, **changes: Any) -> TraceSubject:
    source = load_config(model, offline=True)
    name = source.repo_id or source.slug
    config = {**source.config, **changes}
    return TraceSubject(
        model=source.slug,
        config=config,
        facts=read_facts(config, name=name),
        points=points or list_serving_points(name),
    )


def by_name(plan: RunPlan) -> dict[str, EngineRun]:
    return {run.name: run for run in plan.runs}


def test_kimi_k2_is_cut_to_the_shapes_of_each_way_it_is_served() -> None:
    plan = plan_runs(subject("kimi-k2"))
    layers = {"model_type": "deepseek_v3", "intermediate_size": 2304, "num_hidden_layers": 2}
    assert {run.name: run.overrides for run in plan.runs} == {
        "tp8": {**layers, "num_attention_heads": 8, "num_key_value_heads": 8, "moe_intermediate_size": 256},
        "tp8-dp4": {**layers, "num_attention_heads": 32, "num_key_value_heads": 32, "moe_intermediate_size": 256},
        "tp8-ep4": {
            **layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "moe_intermediate_size": 1024,
            "n_routed_experts": 96,
        },
    }
    assert {run.gpus for run in plan.runs} == {1}


def test_the_config_that_is_served_has_the_overrides_and_no_code_of_its_repository() -> None:
    config = by_name(plan_runs(subject("kimi-k2")))["tp8"].config
    assert (config["num_attention_heads"], config["vocab_size"], config["hidden_size"]) == (8, 163840, 7168)
    assert "auto_map" not in config


def test_deepseek_v3_keeps_one_dense_layer_and_one_with_experts() -> None:
    runs = by_name(plan_runs(subject("deepseek-v3")))
    assert set(runs) == {"tp8", "tp8-dp8", "tp8-ep8"}
    kept = {"first_k_dense_replace": 1, "num_hidden_layers": 2, "intermediate_size": 2304}
    assert runs["tp8-dp8"].overrides == {**kept, "moe_intermediate_size": 256}
    assert runs["tp8-ep8"].overrides == {
        **kept,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 32,
    }


@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "llama-3.2-3b"])
def test_a_model_of_one_gpu_is_cut_to_two_layers_and_run_twice(model: str) -> None:
    runs = by_name(plan_runs(subject(model)))
    assert {name: run.overrides for name, run in runs.items()} == {
        "tp1": {"num_hidden_layers": 2},
        "tp1-paged": {"num_hidden_layers": 2},
    }
    assert runs["tp1-paged"].environment["SGLANG_FLASHINFER_USE_PAGED"] == "1"
    assert "SGLANG_FLASHINFER_USE_PAGED" not in runs["tp1"].environment


def test_one_batch_is_so_short_that_sglang_gives_its_fp8_products_to_flashinfer() -> None:
    (batch,) = [item for item in list_batches() if item.name == "short prompt"]
    assert sum(length for sequence in batch.sequences for _, length in sequence.pieces) < 32
    seeds = [piece for item in list_batches() for sequence in item.sequences for piece in sequence.pieces[:1]]
    assert seeds.count(batch.sequences[0].pieces[0]) == 1  # else its prefix is cached, and fewer rows are computed


def test_a_hybrid_keeps_a_layer_of_each_kind_and_its_recurrent_heads_are_cut() -> None:
    run = by_name(plan_runs(subject("qwen3-next-80b-a3b")))["tp4"]
    assert run.overrides == {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "shared_expert_intermediate_size": 128,
        "intermediate_size": 1280,
        "moe_intermediate_size": 128,
        "full_attention_interval": 2,
        "num_hidden_layers": 2,
    }


def test_lists_with_an_entry_for_each_layer_are_cut_with_them() -> None:
    run = by_name(plan_runs(subject("gpt-oss-20b", ServingPoint())))["tp1"]
    assert run.overrides == {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}


def test_heads_that_are_fewer_than_the_gpus_are_replicated() -> None:
    run = by_name(plan_runs(subject("qwen3-30b-a3b", ServingPoint(tp=8))))["tp8"]
    assert (run.overrides["num_attention_heads"], run.overrides["num_key_value_heads"]) == (4, 1)
    assert run.overrides["head_dim"] == 128


def test_with_enough_gpus_the_engine_cuts_the_model_itself() -> None:
    point = ServingPoint(tp=8, ep=8, dp=4, enable_dp_attention=True)
    (run,) = plan_runs(subject("deepseek-v3", point), gpus=8).runs
    assert (run.name, run.gpus, run.not_covered) == ("tp8-ep8-dp4", 8, ())
    assert run.overrides == {"first_k_dense_replace": 1, "num_hidden_layers": 2}
    wanted = {"tp_size": 8, "ep_size": 8, "dp_size": 4, "enable_dp_attention": True}
    assert {name: run.arguments.get(name) for name in wanted} == wanted


def test_real_weights_are_never_cut_by_overrides() -> None:
    plan = plan_runs(subject("deepseek-v3"), weights="/models/deepseek-v3")
    assert plan.runs == ()
    assert any("tp 8 needs as many GPUs" in item.reason for item in plan.not_covered)
    plan = plan_runs(subject("llama-3.2-3b"), weights="/models/llama")
    assert by_name(plan)["tp1"].weights == "/models/llama"
    assert "load_format" not in by_name(plan)["tp1"].arguments


def test_what_one_gpu_cannot_show_is_listed_with_its_reason() -> None:
    run = by_name(plan_runs(subject("deepseek-v3")))["tp8-ep8"]
    kernels = {item.subject: item.kernels for item in run.not_covered}
    assert kernels["vocabulary cut by tp 8"] == ("embedding", "gemm")
    assert "moe_routing" in kernels["router with ep 8"]
    assert "gemm_fp8_block" in kernels["shared experts with ep 8"]


def test_a_size_that_no_override_can_cut_is_not_covered() -> None:
    plan = plan_runs(subject("qwen3-30b-a3b", ServingPoint(tp=4), ServingPoint(), moe_intermediate_size=766))
    assert set(by_name(plan)) == {"tp1", "tp1-paged"}
    (item,) = plan.not_covered
    assert item.subject == "tp4"
    assert "moe_intermediate_size=766 cannot be cut into 4 parts" in item.reason


def test_page_sizes_that_sglang_does_not_pass_on_are_not_covered() -> None:
    plan = plan_runs(subject("llama-3.2-3b"), page_sizes=(1, 64))
    assert [item.subject for item in plan.not_covered] == ["page size 64"]
    assert {run.page_size for run in plan.runs} == {1}


def test_the_engine_is_led_to_flashinfers_kernels() -> None:
    fp8 = by_name(plan_runs(subject("deepseek-v3")))["tp8"].arguments
    plain = by_name(plan_runs(subject("qwen3-30b-a3b")))["tp1"].arguments
    assert fp8["fp8_gemm_runner_backend"] == "flashinfer_deepgemm"
    assert "moe_runner_backend" not in fp8
    assert plain["moe_runner_backend"] == "flashinfer_cutlass"
    assert {fp8["attention_backend"], fp8["sampling_backend"]} == {"flashinfer"}


def test_a_plan_survives_the_way_to_another_machine() -> None:
    plan = plan_runs(subject("kimi-k2"))
    assert RunPlan.model_validate_json(plan.model_dump_json()) == plan
