from __future__ import annotations

from typing import Any

import pytest

from fib_tools.architecture.crosscheck import compare_facts, count_parameters
from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts, NormKind, QkNorm
from fib_tools.architecture.structure import trace_structure
from fib_tools.architecture.structure_schema import Structure
from fib_tools.sources.registry import get_model, list_models


def _both(slug: str) -> tuple[ModelFacts, Structure]:
    config = get_model(slug).config
    assert config is not None
    structure = trace_structure(config)
    assert isinstance(structure, Structure)
    return read_facts(config, name=slug), structure


@pytest.fixture(scope="module")
def qwen() -> tuple[ModelFacts, Structure]:
    return _both("qwen3-30b-a3b")


def _change(facts: ModelFacts, path: str, value: Any) -> ModelFacts:
    parts = path.split(".")
    if parts[0] == "attentions":
        attention = facts.attentions[parts[1]].model_copy(update={parts[2]: value})
        return facts.model_copy(update={"attentions": {**facts.attentions, parts[1]: attention}})
    if len(parts) == 2:
        inner = getattr(facts, parts[0]).model_copy(update={parts[1]: value})
        return facts.model_copy(update={parts[0]: inner})
    return facts.model_copy(update={path: value})


def _list_families() -> list[str]:
    """One bundled model of each model_type that transformers can run."""
    families: dict[str, str] = {}
    for entry in list_models():
        if entry.config is not None:
            families.setdefault(str(entry.config["model_type"]), entry.slug)
    return sorted(slug for model_type, slug in families.items() if model_type != "nemotron-nas")


@pytest.mark.parametrize("slug", _list_families())
def test_config_and_trace_agree_on_everything_down_to_the_parameter_count(slug: str) -> None:
    facts, structure = _both(slug)
    counted = count_parameters(facts)
    assert counted in (None, structure.parameter_count)
    assert compare_facts(facts, structure) == ()
    assert structure.unexplained == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("attentions.full.num_heads", 16),
        ("attentions.full.num_kv_heads", 8),
        ("attentions.full.sm_scale", 0.1),
        ("attentions.full.window", 4096),
        ("attentions.full.softcap", 50.0),
        ("attentions.full.has_sinks", True),
        ("attentions.full.qk_norm", QkNorm.NONE),
        ("attentions.full.qkv_bias", True),
        ("attentions.full.rope", None),
        ("norm.eps", 1e-5),
        ("norm.kind", NormKind.GEMMA_RMSNORM),
        ("moe.num_experts", 64),
        ("moe.top_k", 4),
        ("moe.intermediate_size", 1024),
        ("moe.routing", "default"),
        ("moe.shared_intermediate_size", 768),
        ("vocab_size", 151_643),
        ("num_layers", 47),
    ],
)
def test_each_wrong_fact_is_a_disagreement_of_its_own(
    qwen: tuple[ModelFacts, Structure], path: str, value: Any
) -> None:
    facts, structure = qwen
    found = {disagreement.subject for disagreement in compare_facts(_change(facts, path, value), structure)}
    assert path in found


def test_a_disagreement_names_both_places_and_who_is_followed(qwen: tuple[ModelFacts, Structure]) -> None:
    facts, structure = qwen
    (found,) = compare_facts(_change(facts, "moe.top_k", 4), structure)
    assert [(witness.source.value, witness.detail) for witness in found.statements] == [
        ("config", "num_experts_per_tok=8: 4"),
        ("trace", "model.layers.*.mlp.gate: 8"),
    ]
    assert found.chosen.startswith("4: the inventory goes by the config")


def test_published_totals_are_met() -> None:
    for slug, total in (("llama-3.1-8b", 8_030_261_248), ("mixtral-8x7b", 46_702_792_704)):
        config = get_model(slug).config
        assert config is not None
        assert count_parameters(read_facts(config, name=slug)) == total


def test_an_architecture_without_a_formula_is_not_counted() -> None:
    config = get_model("deepseek-v4-flash").config
    assert config is not None
    assert count_parameters(read_facts(config, name="v4")) is None
