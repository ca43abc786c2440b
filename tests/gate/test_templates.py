from __future__ import annotations

from typing import Any

import pytest

from fib_tools.gate.execute import execute_many, open_sandbox
from fib_tools.gate.fixes.library import find_library
from fib_tools.gate.normalise import normalise
from fib_tools.gate.templates import TemplateResult, enumerate_templates, instantiate
from fib_tools.op_types.base import MetaTensor, TemplateCall


@pytest.fixture(scope="module")
def templates() -> dict[str, TemplateResult]:
    return {result.raw["name"]: result for result in enumerate_templates() if result.raw is not None}


def test_every_template_of_the_installed_flashinfer_instantiates(templates: dict[str, TemplateResult]) -> None:
    assert len(templates) > 300
    assert all(result.bindings or result.values for result in templates.values())


def test_nothing_is_asked_of_flashinfer_for_no_call() -> None:
    assert instantiate([]) == []


def test_a_dispatcher_is_chosen_by_its_selector_and_a_missing_api_says_so() -> None:
    experts: dict[str, Any] = {
        "routing_logits": MetaTensor(shape=(4, 256), dtype="float32"),
        "routing_bias": MetaTensor(shape=(256,)),
        "hidden_states": MetaTensor(shape=(4, 7168), dtype="float8_e4m3fn"),
        "hidden_states_scale": MetaTensor(shape=(56, 4), dtype="float32"),
        "gemm1_weights": MetaTensor(shape=(32, 4096, 7168), dtype="float8_e4m3fn"),
        "gemm1_weights_scale": MetaTensor(shape=(32, 32, 56), dtype="float32"),
        "gemm2_weights": MetaTensor(shape=(32, 7168, 2048), dtype="float8_e4m3fn"),
        "gemm2_weights_scale": MetaTensor(shape=(32, 56, 16), dtype="float32"),
        "top_k": 8,
        "n_group": 8,
        "topk_group": 4,
        "local_expert_offset": 0,
        "routed_scaling_factor": 2.5,
    }
    api = "flashinfer.fused_moe.core.trtllm_fp8_block_scale_moe"
    found = instantiate(
        [
            TemplateCall(fi_api=api, arguments=experts, selector={"routing_method_type": 2}),
            TemplateCall(fi_api=api, arguments=experts, selector={"routing_method_type": 1}),
            TemplateCall(fi_api="flashinfer.norm.no_such_norm", arguments={}),
            TemplateCall(fi_api="flashinfer.no_such_module.f", arguments={}),
        ]
    )
    names = [result.fi_name for result in found]
    assert names[0] == "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048"
    assert "renormalize_routing" in str(names[1])
    assert names[2:] == [None, None]
    assert [bool(result.reason) for result in found] == [False, False, True, True]


def test_helpers_of_a_reference_are_written_in_and_it_runs(templates: dict[str, TemplateResult]) -> None:
    wanted = ("rope_pos_ids_h", "mxfp4_quantize", "top_k_top_p_sampling_from_logits", "block_sparse_run")
    chosen = [next(item for name, item in templates.items() if name.startswith(start)) for start in wanted]
    found = [normalise(item.raw or {}, call=item) for item in chosen]
    assert all(any("written in from FlashInfer" in change for change in item.changes) for item in found)
    definitions = [item.definition for item in found if item.definition is not None]
    assert len(definitions) == len(wanted)
    with open_sandbox() as sandbox:
        done = dict(execute_many(definitions, sandbox=sandbox))
    reasons = [str(item.reason) for item in done.values() if not item.executed]
    # what is left are types and ranks that only a run shows; the gate repairs them
    assert all("dtype" in reason or "dimensions" in reason for reason in reasons), reasons


def test_a_reference_of_another_version_gets_no_helper_of_this_one(templates: dict[str, TemplateResult]) -> None:
    item = next(item for name, item in templates.items() if name.startswith("rope_pos_ids_h"))
    raw = dict(item.raw or {})
    raw["reference"] = raw["reference"].replace("return ", "x = 1\n    return ", 1)
    assert "has another" in str(normalise(raw).refused)


def test_without_flashinfer_a_missing_helper_is_named(
    templates: dict[str, TemplateResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    item = next(item for name, item in templates.items() if name.startswith("rope_pos_ids_h"))
    monkeypatch.setattr("fib_tools.gate.normalise.find_library", lambda: None)
    assert "no FlashInfer is installed" in str(normalise(item.raw or {}).refused)


def test_the_library_is_the_installed_flashinfer() -> None:
    library = find_library()
    assert library is not None
    assert library.find_home("no_such_function", "def no_such_function():\n    pass\n") is None
