"""The tree of a model's modules: every kernel has its place, and every layer is counted once."""

from __future__ import annotations

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory import Inventory, build_inventory
from fib_tools.architecture.modules import ModelModule, build_modules
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.model.kernel import Unexplained
from fib_tools.sources.registry import get_model, list_models

MODELS = [entry.slug for entry in list_models() if entry.config_file]


def survey(name: str) -> tuple[ModelFacts, Inventory]:
    entry = get_model(name)
    assert entry.config is not None
    facts = read_facts(entry.config, name=entry.repo_id)
    return facts, build_inventory(facts, [ServingPoint()], page_sizes=(1,))


def draw(name: str) -> list[str]:
    """Write a tree with two spaces a level."""
    facts, inventory = survey(name)
    depths: dict[str | None, int] = {None: -1}
    lines = []
    for module in build_modules(facts, inventory):
        depths[module.key] = depths[module.parent] + 1
        lines.append(f"{'  ' * depths[module.key]}{module.key} {module.count}")
    return lines


def test_layers_that_differ_are_modules_of_their_own() -> None:
    assert draw("deepseek-v2-lite") == [
        "DeepseekV2ForCausalLM 1",
        "  model 1",
        "    embed_tokens 1",
        "    layers 27",
        "      input_layernorm 27",
        "      self_attn 27",
        "        kv_a_proj_with_mqa 27",
        "        kv_a_layernorm 27",
        "        kv_b_proj 27",
        "        q_proj 27",
        "        rotary_emb 27",
        "        w_kc 27",
        "        attn 27",
        "        w_vc 27",
        "        o_proj 27",
        "      post_attention_layernorm 27",
        "      mlp_dense 1",
        "        mlp_dense.gate_up_proj 1",
        "        mlp_dense.act_fn 1",
        "        mlp_dense.down_proj 1",
        "      mlp_moe 26",
        "        gate 26",
        "        experts 26",
        "        shared_experts 26",
        "          shared_experts.gate_up_proj 26",
        "          shared_experts.act_fn 26",
        "          shared_experts.down_proj 26",
        "    norm 1",
        "  lm_head 1",
        "  sampler 1",
    ]


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("gemma-2-9b", {"self_attn_sliding": 21, "self_attn_full": 21, "mlp": 42}),
        ("qwen3-next-80b-a3b", {"self_attn": 12, "linear_attn": 36, "mlp": 48}),
        ("nemotron-3-nano-30b-a3b", {"mixer_mamba2": 23, "mixer_moe": 23, "mixer_full": 6}),
        ("deepseek-v4-flash", {"self_attn_sliding": 2, "mlp_layer0": 3, "mlp_layer3": 40}),
        ("llama-3.3-nemotron-super-49b", {"layers": 80, "self_attn": 49, "mlp_dense28672": 49}),
    ],
)
def test_blocks_are_named_for_what_their_layers_have_in_common(model: str, blocks: dict[str, int]) -> None:
    counts = {module.key: module.count for module in build_modules(*survey(model))}
    assert {key: counts.get(key) for key in blocks} == blocks


@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_has_its_place_and_every_layer_is_counted_once(model: str) -> None:
    facts, inventory = survey(model)
    modules = build_modules(facts, inventory)
    by_key: dict[str | None, ModelModule] = {}
    for module in modules:
        assert module.key not in by_key
        assert module.parent in by_key or not by_key
        assert not module.needs or module.type == "layer"
        by_key[module.key] = module
    assert {index for module in modules for index in module.needs} == set(range(len(inventory.needs)))
    for index, need in enumerate(inventory.needs):
        places = {module: set[int]() for module in need.places}
        for module in (module for module in modules if index in module.needs):
            path = max((path for path in need.places if module.path.startswith(path)), key=len)
            assert not places[path] & set(module.layers) or len(need.places) > 1
            places[path] |= set(module.layers)
        assert all(set(layers) <= places[path] for path, layers in need.places.items())
    assert sum(module.path.endswith("layers") and module.count == facts.num_layers for module in modules) == 1


def test_what_no_kernel_type_describes_stays_in_the_tree() -> None:
    facts, inventory = survey("llama-3.1-8b")
    gaps = (
        Unexplained(operation="gelu", module="model.layers.*.mlp.extra"),
        Unexplained(operation="scale", module="model.layers.*.self_attn"),
    )
    modules = build_modules(facts, inventory.model_copy(update={"unexplained": gaps}))
    found = {module.key: module for module in modules if module.gaps}
    assert {key: (module.type, module.count, module.gaps) for key, module in found.items()} == {
        "extra": ("layer", 32, (0,)),
        "self_attn": ("block", 32, (1,)),
    }
