"""The traced modules and the tree: each finds its place or a reason, and differing layers are said."""

from __future__ import annotations

from fib_tools.architecture.modules import ModelModule
from fib_tools.architecture.modules_traced import compare_layers, format_layers, place_traced_modules
from fib_tools.architecture.structure_schema import LayerGroup, OpCall, OpKind, Stage, Structure

TREE = (
    ModelModule(key="Tiny", path="Tiny", type="block", count=1),
    ModelModule(key="qkv_proj", path="model.layers.*.attn.qkv_proj", type="layer", count=3, layers=(0, 1, 2)),
    ModelModule(key="experts", path="model.layers.*.mlp.experts", type="layer", count=2, layers=(1, 2)),
    ModelModule(key="mlp_dense", path="model.layers.*.mlp", type="block", count=1, layers=(0,)),
    ModelModule(key="mlp_moe", path="model.layers.*.mlp", type="block", count=2, layers=(1, 2)),
    ModelModule(key="lm_head", path="lm_head", type="layer", count=1),
)
GROUPS = (
    LayerGroup(count=1, example=0, layers=(0,), path="model.layers"),
    LayerGroup(count=2, example=1, layers=(1, 2), path="model.layers"),
)


def trace(*calls: tuple[str, int | None]) -> Structure:
    ops = tuple(
        OpCall(id=index, kind=OpKind.LINEAR, stage=Stage.PREFILL, module=module, group=group)
        for index, (module, group) in enumerate(calls)
    )
    return Structure(
        transformers_version="5",
        architecture="Tiny",
        model_type="tiny",
        layer_groups=GROUPS,
        ops=ops,
        parameter_count=1,
        prefill_tokens=263,
    )


def test_a_traced_module_is_found_by_path_by_what_it_is_fused_into_or_inside_of() -> None:
    structure = trace(
        ("lm_head", None),
        ("model.layers.*.attn.q_proj", 0),
        ("model.layers.*.attn.q_proj", 1),
        ("model.layers.*.mlp.experts.down_proj", 1),
        ("model.layers.*.mlp", 1),
        ("model.layers.*.mlp.router", 1),
        ("", None),
    )
    placed = place_traced_modules(TREE, structure, {"q_proj": "qkv_proj"})
    assert [(item.module, item.layers, item.keys, item.is_part, bool(item.remark)) for item in placed] == [
        ("lm_head", (), ("lm_head",), False, False),
        ("model.layers.*.attn.q_proj", (0, 1, 2), ("qkv_proj",), True, False),
        ("model.layers.*.mlp.experts.down_proj", (1, 2), ("experts",), True, False),
        ("model.layers.*.mlp", (1, 2), ("mlp_dense", "mlp_moe"), False, False),
        ("model.layers.*.mlp.router", (1, 2), (), False, True),
    ]
    assert compare_layers(TREE, placed) == ()


def test_names_that_differ_between_transformers_and_sglang_are_the_same_module() -> None:
    paths = (
        "model.layers.*.self_attn.fused_qkv_a_proj_with_mqa",
        "model.layers.*.block_sparse_moe.shared_experts.gate_up_proj",
    )
    tree = tuple(ModelModule(key=path, path=path, type="layer", count=2, layers=(1, 2)) for path in paths)
    structure = trace(
        ("model.layers.*.self_attn.q_a_proj", 1),
        ("model.layers.*.self_attn.kv_a_proj_with_mqa", 1),
        ("model.layers.*.feed_forward.shared_expert.up_proj", 1),
    )
    placed = place_traced_modules(tree, structure, {"up_proj": "gate_up_proj"})
    assert [item.keys for item in placed] == [paths[:1], paths[:1], paths[1:]]
    assert compare_layers(tree, placed) == ()


def test_layers_that_only_one_of_the_witnesses_has_are_said() -> None:
    placed = place_traced_modules(TREE, trace(("model.layers.*.attn.qkv_proj", 1)), {})
    (found,) = compare_layers(TREE, placed)
    assert found.subject == "layers of model.layers.*.attn.qkv_proj"
    assert [(witness.source.value, witness.detail) for witness in found.statements] == [
        ("config", "0-2"),
        ("trace", "1-2"),
    ]


def test_layers_are_written_in_short() -> None:
    assert [format_layers(layers) for layers in ((), (4,), (0, 1, 2, 5, 7, 8))] == ["none", "4", "0-2, 5, 7-8"]
