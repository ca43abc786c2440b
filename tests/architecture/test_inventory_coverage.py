from __future__ import annotations

from typing import Any

import pytest

from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory import Inventory, build_inventory
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.structure_schema import LayerGroup, NotTraceable, OpCall, OpKind, Stage, Structure
from fib_tools.model.kernel import Unexplained, WitnessSource
from fib_tools.sources.registry import get_model

MODEL = "llama-3.1-8b"

CALLS: tuple[tuple[OpKind, str, str | None, dict[str, Any]], ...] = (
    (OpKind.EMBEDDING, "model.embed_tokens", None, {}),
    (OpKind.NORM, "model.layers.*.input_layernorm", None, {"kind": "rmsnorm", "size": 4096, "eps": 1e-5}),
    (OpKind.LINEAR, "model.layers.*.self_attn.q_proj", "q", {"n": 4096, "k": 4096, "bias": False}),
    (OpKind.LINEAR, "model.layers.*.self_attn.k_proj", "k", {"n": 1024, "k": 4096, "bias": False}),
    (OpKind.LINEAR, "model.layers.*.self_attn.v_proj", "v", {"n": 1024, "k": 4096, "bias": False}),
    (OpKind.ROPE, "model.layers.*.self_attn", None, {"head_dim": 128, "rotary_dim": 128, "is_neox": True}),
    (OpKind.ATTENTION, "model.layers.*.self_attn", None, {"heads": 32, "kv_heads": 8, "head_dim": 128}),
    (OpKind.LINEAR, "model.layers.*.self_attn.o_proj", "o", {"n": 4096, "k": 4096, "bias": False}),
    (OpKind.LINEAR, "model.layers.*.mlp.gate_proj", "gate", {"n": 14336, "k": 4096, "bias": False}),
    (OpKind.LINEAR, "model.layers.*.mlp.up_proj", "up", {"n": 14336, "k": 4096, "bias": False}),
    (OpKind.ACTIVATION, "model.layers.*.mlp", None, {"function": "silu", "is_gated": True, "size": 14336}),
    (OpKind.LINEAR, "model.layers.*.mlp.down_proj", "down", {"n": 4096, "k": 14336, "bias": False}),
    (OpKind.LINEAR, "lm_head", "lm_head", {"n": 128256, "k": 4096, "bias": False}),
)


@pytest.fixture(autouse=True)
def without_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing facts with the trace has its own tests; the traces here are too small for it."""
    monkeypatch.setattr("fib_tools.architecture.inventory.compare_facts", lambda *_: ())


def read(*, is_known: bool = True) -> ModelFacts:
    entry = get_model(MODEL)
    assert entry.config is not None
    facts = read_facts(entry.config, name=entry.repo_id)
    return facts if is_known else facts.model_copy(update={"is_known": False, "model_type": "stranger"})


def trace(
    *extra: tuple[OpKind, str, str | None, dict[str, Any]],
    without: tuple[str, ...] = (),
    unexplained: tuple[Unexplained, ...] = (),
) -> Structure:
    calls = [call for call in (*CALLS, *extra) if call[1].rpartition(".")[2] not in without]
    ops = tuple(
        OpCall(
            id=index,
            kind=kind,
            stage=Stage.PREFILL,
            module=module,
            role=role,
            group=0 if "*" in module else None,
            attributes=attributes,
        )
        for index, (kind, module, role, attributes) in enumerate(calls)
    )
    return Structure(
        transformers_version="5",
        architecture="LlamaForCausalLM",
        model_type="llama",
        layer_groups=(LayerGroup(count=32, example=0, layers=tuple(range(32)), path="model.layers"),),
        ops=ops,
        unexplained=unexplained,
        parameter_count=8_030_261_248,
        prefill_tokens=7,
    )


def build(structure: Structure | NotTraceable, *, is_known: bool = True, tp: int = 1) -> Inventory:
    return build_inventory(read(is_known=is_known), (ServingPoint(tp=tp),), structure=structure)


def test_a_trace_that_agrees_leaves_nothing_open() -> None:
    inventory = build(trace())
    assert (inventory.unexplained, inventory.disagreements) == ((), ())
    details = {
        witness.detail
        for need in inventory.needs
        for witness in need.witnesses
        if witness.source == WitnessSource.TRACE
    }
    assert {module for _, module, _, _ in CALLS} == details


def test_a_call_that_no_kernel_explains_is_listed() -> None:
    inventory = build(trace((OpKind.LINEAR, "model.layers.*.extra", None, {"n": 7, "k": 9})))
    assert inventory.unexplained == (Unexplained(operation="linear", module="model.layers.*.extra", detail="n=7, k=9"),)


def test_what_the_trace_could_not_place_is_listed_once_for_all_layers() -> None:
    items = tuple(Unexplained(operation="aten.bmm", module=f"model.layers.{i}.mixer", detail="") for i in (0, 3))
    assert build(trace(unexplained=items)).unexplained == (
        Unexplained(operation="aten.bmm", module="model.layers.*.mixer", detail=""),
    )


def test_a_kernel_that_the_trace_should_show_and_does_not_is_a_disagreement() -> None:
    inventory = build(trace(without=("down_proj",)))
    (dispute,) = inventory.disagreements
    assert dispute.subject == "gemm at model.layers.*.mlp.down_proj"
    assert "no call like linear(n=4096, k=14336, bias=False)" in [witness.detail for witness in dispute.statements]
    assert any(need.parameters.get("k") == 14336 for need in inventory.needs)


def test_one_linear_does_not_stand_for_gate_and_up() -> None:
    (dispute,) = build(trace(without=("gate_proj",))).disagreements
    assert dispute.subject == "gemm at model.layers.*.mlp.gate_up_proj"


def test_an_unknown_architecture_has_only_what_the_trace_bears_out() -> None:
    extra = (OpKind.LINEAR, "model.layers.*.mlp.c_fc", "up", {"n": 5000, "k": 4096, "bias": True})
    inventory = build(trace(extra, without=("down_proj",)), is_known=False, tp=2)
    gemms = [(need.parameters, need.module) for need in inventory.needs if need.kernel == "gemm"]
    assert ({"n": 2500, "k": 4096, "bias": True}, "model.layers.*.mlp.c_fc") in gemms
    assert not [module for _, module in gemms if "down_proj" in module]
    assert any("its kernels follow from the trace" in note for note in inventory.notes)
    assert inventory.unexplained == ()


def test_a_refuted_claim_does_not_explain_a_call_of_its_shape() -> None:
    gateless = (OpKind.LINEAR, "model.layers.*.mlp.c_fc", "up", {"n": 14336, "k": 4096, "bias": False})
    inventory = build(trace(gateless, without=("gate_proj", "up_proj")), is_known=False)
    found = {need.module: need.parameters["n"] for need in inventory.needs if need.kernel == "gemm"}
    assert found["model.layers.*.mlp.c_fc"] == 14336
    assert 28672 not in found.values()


def test_a_bias_that_only_the_config_has_is_a_disagreement() -> None:
    biased = (OpKind.LINEAR, "model.layers.*.self_attn.o_proj", "o", {"n": 4096, "k": 4096, "bias": True})
    structure = trace(biased, without=("o_proj", "q_proj"))
    structure = structure.model_copy(update={"ops": (*structure.ops, trace(biased).ops[-1])})
    assert [dispute.subject for dispute in build(structure).disagreements] == [
        "gemm at model.layers.*.self_attn.o_proj"
    ]


def test_a_row_of_an_unknown_architecture_is_cut_along_its_input() -> None:
    extra = (OpKind.LINEAR, "model.layers.*.mlp.c_proj", "down", {"n": 4096, "k": 5000, "bias": False})
    inventory = build(trace(extra), is_known=False, tp=2)
    assert {"n": 4096, "k": 2500, "bias": False} in [need.parameters for need in inventory.needs]


def test_an_unknown_architecture_takes_its_norms_and_rope_from_the_trace() -> None:
    inventory = build(
        trace(
            (OpKind.NORM, "model.ln", None, {"kind": "layernorm", "size": 512, "eps": 1e-5, "has_bias": False}),
            (OpKind.ROPE, "model.rope", None, {"head_dim": 128, "rotary_dim": 64, "is_neox": False}),
            (OpKind.CONV1D, "model.conv", None, {"channels": 3}),
        ),
        is_known=False,
    )
    found = {need.module: need.parameters for need in inventory.needs}
    assert found["model.ln"] == {"hidden_size": 512, "eps": 1e-5, "bias": False}
    assert (found["model.rope"]["rotary_dim"], found["model.rope"]["is_neox"]) == (64, False)
    assert [item.operation for item in inventory.unexplained] == ["conv1d"]


def test_a_model_that_cannot_be_traced_says_so() -> None:
    inventory = build(NotTraceable(model_type="llama", reason="no such class"))
    assert "not traced, so the config alone speaks: no such class" in inventory.notes
    assert not [need for need in inventory.needs if not need.witnesses]
