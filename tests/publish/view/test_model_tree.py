from __future__ import annotations

from typing import Any

import pytest

from fib_tools.dataset.layout import Kind, Location
from fib_tools.model.manifest import DefineStatus, Manifest, Refusal
from fib_tools.publish.view.catalogue import Entry
from fib_tools.publish.view.model_tree import ModelKernel, Node, build_tree, view_model
from view_world import make_definitions, make_manifest


def make_entries(**counts: Any) -> list[Entry]:
    return [
        Entry(definition=each, at=Location(kind=Kind.DEFINITION, op_type=each.op_type, definition=each.name), **counts)
        for each in make_definitions()
    ]


def outline(node: Node) -> dict[str, Any]:
    children = {name: outline(child) for name, child in node.children.items()}
    return {**{kernel.name: None for kernel in node.kernels}, **children}


def kernel(name: str, *modules: str, layers: int = 0) -> ModelKernel:
    return ModelKernel(name=name, op_type="gemm", modules=modules, layers=layers)


def test_a_kernel_hangs_under_each_module_that_calls_it() -> None:
    tree = build_tree(
        [
            kernel("norm", "model.layers.*.ln1", "model.layers.*.ln2", layers=61),
            kernel("o", "model.layers.*.attn.o_proj", layers=61),
            kernel("head", "lm_head"),
        ]
    )
    layers = {"ln1": {"norm": None}, "ln2": {"norm": None}, "attn.o_proj": {"o": None}}
    assert outline(tree) == {"model.layers.*": layers, "lm_head": {"head": None}}
    assert tree.children["model.layers.*"].layers == 61
    assert tree.count() == 4


def test_a_path_of_very_many_steps_is_no_deep_tree() -> None:
    tree = build_tree([kernel("k", "a." * 5000 + "b"), kernel("l", "c")])
    assert tree.count() == 2


@pytest.mark.parametrize(
    ("counts", "coverage"),
    [({}, "definition"), ({"workloads": 1}, "workloads"), ({"workloads": 1, "evaluations": 2}, "measured")],
)
def test_a_manifest_tells_the_modules_and_the_dataset_how_far_each_kernel_is(
    counts: dict[str, int], coverage: str
) -> None:
    entries = make_entries(**counts)
    names = {entry.definition.name: entry for entry in entries}
    model = view_model("kimi-k2", entries, names, make_manifest())
    said = {each.name: (each.coverage, each.modules) for each in model.kernels}
    assert said["rmsnorm_h7168"] == (
        coverage,
        ("model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"),
    )
    assert said["gemm_n1_k1"] == ("missing", ("lm_head",))
    assert said["gemm_n7168_k2048"] == (coverage, ("elsewhere in the model",)), "tagged, and in no manifest"
    assert model.facts is not None
    assert model.repo_id == "moonshotai/Kimi-K2-Instruct"


def test_without_a_manifest_the_bundled_config_tells_the_modules() -> None:
    entries = make_entries()
    model = view_model("kimi-k2", entries, {entry.definition.name: entry for entry in entries}, None)
    said = {each.name: each for each in model.kernels}
    assert said["rmsnorm_h7168"].coverage == "definition"
    assert said["rmsnorm_h7168"].modules[0].startswith("model.layers.*")
    assert said["moe_routing_ds_topk8_ng1_kg1_e384"].coverage == "missing"
    assert len(model.kernels) > 50
    assert any(way.startswith("tp8") for way in model.serving)


def test_a_model_that_nobody_knows_has_its_tags() -> None:
    entries = make_entries()
    model = view_model("<b>mine</b>", entries, {}, None)
    assert model.facts is None
    assert {each.modules for each in model.kernels} == {("elsewhere in the model",)}
    assert len(model.kernels) == 3


def test_what_was_refused_is_open_and_no_kernel() -> None:
    manifest = make_manifest()
    change = {"define_status": DefineStatus.REFUSED, "define_reason": "too small"}
    refused = manifest.kernels[1].model_copy(update=change)
    manifest = Manifest(model="kimi-k2", kernels=(refused,), refused=(Refusal(subject="tp3", reason="64 heads"),))
    model = view_model("kimi-k2", [], {}, manifest)
    assert model.kernels == ()
    assert model.open == (("tp3", "64 heads"), ("gemm_n1_k1", "too small"))
