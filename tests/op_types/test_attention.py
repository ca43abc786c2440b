from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from fib_tools.model.base import to_document
from fib_tools.model.definition import AxisConst, Definition
from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.base import MetaTensor
from fib_tools.op_types.input_request import torch_dtype
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

GQA = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 16}
MLA = {"num_qo_heads": 4, "head_dim_ckv": 32, "head_dim_kpe": 16, "sm_scale": 192**-0.5}
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("gqa_paged_decode", {**GQA, "page_size": 1}),
    ("gqa_paged_decode", {**GQA, "page_size": 64}),
    ("gqa_paged_prefill", {**GQA, "page_size": 1}),
    ("gqa_paged_prefill", {**GQA, "page_size": 16}),
    ("gqa_ragged_prefill", GQA),
    ("mla_paged_decode", {**MLA, "page_size": 1}),
    ("mla_paged_decode", {**MLA, "page_size": 64}),
    ("merge_state", {"num_heads": 8, "head_dim": 16}),
    ("append_paged_mla_kv_cache", {"head_dim_ckv": 32, "head_dim_kpe": 16, "page_size": 4}),
]
"""Kernels that FlashInfer's templates describe axis by axis."""
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("gqa_paged_decode", {**GQA, "page_size": 16, "head_dim_vo": 8, "window_left": 5, "kv_dtype": "float8_e4m3fn"}),
    ("gqa_paged_decode", {**GQA, "page_size": 1, "logits_soft_cap": 30.0, "sinks": True}),
    ("gqa_paged_prefill", {**GQA, "page_size": 1, "causal": False, "window_left": 3}),
    ("gqa_paged_prefill", {**GQA, "page_size": 64, "chunk": 8, "sinks": True}),
    ("gqa_ragged_prefill", {**GQA, "causal": False, "head_dim_vo": 8}),
    ("mla_paged_decode", {**MLA, "page_size": 64, "kv_dtype": "float8_e4m3fn"}),
    ("mla_paged_prefill", {**MLA, "page_size": 1}),
    ("mla_paged_prefill", {**MLA, "page_size": 64, "causal": False}),
    ("mla_ragged_prefill", {"num_qo_heads": 4, "head_dim_qk": 24, "head_dim_vo": 16}),
    ("dsa_sparse_attention", {**MLA, "topk": 8, "page_size": 64}),
    ("dsa_topk_indexer", {"num_index_heads": 4, "index_head_dim": 16, "topk": 8, "page_size": 64}),
    ("append_paged_kv_cache", {"num_kv_heads": 2, "head_dim": 16, "page_size": 4}),
    ("append_paged_kv_cache", {"num_kv_heads": 2, "head_dim": 16, "head_dim_vo": 8, "page_size": 1}),
]


def _build(kernel_id: str, parameters: dict[str, Any]) -> Definition:
    return get_kernel_type(kernel_id).build(parameters)


@pytest.mark.parametrize(("kernel_id", "parameters"), PLAIN + OTHERS)
def test_a_definition_is_valid_in_flashinfer_bench(kernel_id: str, parameters: dict[str, Any]) -> None:
    from flashinfer_bench.data import Definition as Peer

    ours = _build(kernel_id, parameters)
    theirs = Peer.model_validate(to_document(ours))
    assert (theirs.name, list(theirs.inputs), list(theirs.outputs)) == (
        ours.name,
        list(ours.inputs),
        list(ours.outputs),
    )


@pytest.mark.parametrize(("kernel_id", "parameters"), PLAIN + OTHERS)
def test_generated_inputs_give_finite_outputs_of_the_declared_shapes(
    kernel_id: str, parameters: dict[str, Any]
) -> None:
    definition = _build(kernel_id, parameters)
    axes = choose_axes(definition)
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    inputs = generate_inputs(definition, axes)
    before = {name: value.clone() if hasattr(value, "clone") else value for name, value in inputs.items()}
    outputs = namespace["run"](*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for (name, spec), output in zip(definition.outputs.items(), outputs, strict=True):
        assert tuple(output.shape) == tuple(axes[axis] for axis in spec.shape or ()), name
        assert output.dtype == torch_dtype(spec.dtype), name
        assert output.float().isfinite().all(), name
    assert all((before[name] == value).all() if hasattr(value, "all") else True for name, value in inputs.items())


@pytest.mark.parametrize(("kernel_id", "parameters"), PLAIN + OTHERS)
def test_everything_in_a_definition_is_described(kernel_id: str, parameters: dict[str, Any]) -> None:
    definition = _build(kernel_id, parameters)
    parts = {**definition.axes, **definition.inputs, **definition.outputs}
    assert [name for name, part in parts.items() if not part.description] == []
    assert definition.description


@pytest.mark.parametrize(("kernel_id", "parameters"), PLAIN)
def test_the_template_call_gives_our_axes_and_dtypes(logging: Any, kernel_id: str, parameters: dict[str, Any]) -> None:
    kernel = get_kernel_type(kernel_id)
    ours = kernel.build(parameters)
    theirs = _instantiate(logging, kernel_id, parameters)
    const = {name: axis["value"] for name, axis in theirs["axes"].items() if axis["type"] == "const"}
    assert const == {name: value for name, value in ours.const_axes.items() if name in const}
    assert set(ours.const_axes) - set(const) <= {"page_size"}
    shared = [name for name in ours.inputs if name in theirs["inputs"]]
    renamed = {"batch_size_plus_1": "len_indptr"}
    assert "q" in shared or len(shared) >= 4
    for name in shared:
        given, declared = theirs["inputs"][name], ours.inputs[name]
        shape = given["shape"] and [renamed.get(axis, axis) for axis in given["shape"]]
        assert (name, shape, given["dtype"]) == (name, declared.shape, declared.dtype.value)


def test_the_sparse_template_call_gives_our_axes_under_its_names(logging: Any) -> None:
    parameters = {"num_qo_heads": 16, "topk": 2048, "page_size": 64, "sm_scale": 256**-0.5}
    theirs = _instantiate(logging, "dsa_sparse_attention", parameters)
    const = {name: axis["value"] for name, axis in theirs["axes"].items() if axis["type"] == "const"}
    assert const == {
        "num_heads": 16,
        "head_dim_qk": 576,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 192,
        "kv_pad_dim": 1,
        "page_size": 64,
        "sparse_mla_top_k": 2048,
    }


@pytest.mark.parametrize("kernel_id", ["mla_ragged_prefill", "mla_paged_prefill", "append_paged_kv_cache"])
def test_kernels_that_no_template_describes_have_no_template_call(kernel_id: str) -> None:
    assert get_kernel_type(kernel_id).template is None


def test_a_template_call_shows_what_the_template_leaves_out() -> None:
    kernel = get_kernel_type("gqa_paged_prefill")
    variant = {"page_size": 16, "window_left": 7, "logits_soft_cap": 50.0, "sinks": True, "causal": False}
    assert kernel.template is not None
    arguments = kernel.template(kernel.parameters.model_validate({**GQA, **variant})).arguments
    assert {name: arguments[name] for name in ("window_left", "logits_soft_cap", "causal")} == {
        "window_left": 7,
        "logits_soft_cap": 50.0,
        "causal": False,
    }
    assert arguments["sinks"] == MetaTensor(shape=(8,), dtype="float32")
    assert arguments["kv_last_page_len"] == MetaTensor(shape=(3,), dtype="int32")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the model's is sm_scale = 0.1352337788608801.", 0.1352337788608801), ("The scale.", 0.25), (None, 0.25)],
)
def test_the_softmax_scale_is_the_declared_one_or_that_of_the_head(text: str | None, expected: float) -> None:
    definition = _build("gqa_ragged_prefill", GQA)
    spec = definition.inputs["sm_scale"].model_copy(update={"description": text})
    changed = definition.model_copy(update={"inputs": {**definition.inputs, "sm_scale": spec}})
    assert generate_inputs(changed, choose_axes(changed))["sm_scale"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_last_pages_are_long_enough_for_the_queries_of_their_sequence(seed: int) -> None:
    definition = _build("gqa_paged_prefill", {**GQA, "page_size": 4})
    axes = choose_axes(definition, {"total_q": 40, "num_kv_indices": 12})
    inputs = generate_inputs(definition, axes, seed=seed)
    pages, queries, last = inputs["kv_indptr"].diff(), inputs["qo_indptr"].diff(), inputs["kv_last_page_len"]
    assert last.min() >= 1
    assert last.max() <= 4
    assert ((pages - 1) * 4 + last >= queries).all()


def test_a_peer_definition_with_other_inputs_still_gets_last_page_lengths() -> None:
    definition = _build("gqa_paged_decode", {**GQA, "page_size": 4})
    inputs = {name: spec for name, spec in definition.inputs.items() if name != "kv_indptr"}
    changed = definition.model_copy(update={"inputs": inputs})
    lengths = generate_inputs(changed, choose_axes(changed))["kv_last_page_len"]
    assert lengths.shape == (3,)
    assert all(1 <= length <= 4 for length in lengths.tolist())


@pytest.mark.parametrize(
    ("kernel_id", "parameters", "qualifier"),
    [
        ("gqa_ragged_prefill", {**GQA, "sm_scale": 0.25}, ""),
        ("gqa_ragged_prefill", {**GQA, "sm_scale": 0.5}, "smscale0.5"),
        ("mla_ragged_prefill", {"num_qo_heads": 4, "sm_scale": 0.07216878}, ""),
        ("mla_ragged_prefill", {"num_qo_heads": 4, "sm_scale": 0.135}, "smscale0.135"),
        ("mla_paged_decode", {**MLA, "page_size": 1, "sm_scale": 0.07216878}, ""),
        ("dsa_sparse_attention", {**MLA, "page_size": 1, "topk": 2, "sm_scale": 0.0625}, "smscale0.0625"),
    ],
)
def test_only_an_unusual_softmax_scale_qualifies_the_name(
    kernel_id: str, parameters: dict[str, Any], qualifier: str
) -> None:
    assert get_kernel_type(kernel_id).parameters.model_validate(parameters).qualifier() == qualifier


def test_const_axes_carry_the_parameters() -> None:
    axes = _build("mla_paged_decode", {**MLA, "page_size": 64}).axes
    values = {name: axis.value for name, axis in axes.items() if isinstance(axis, AxisConst)}
    assert values == {"num_qo_heads": 4, "head_dim_ckv": 32, "head_dim_kpe": 16, "page_size": 64}


@pytest.fixture(scope="module")
def logging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FlashInfer's registry of traced APIs; its import warns of its own dependencies and writes a cache."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path_factory.mktemp("flashinfer")))
        warnings.simplefilter("ignore")
        import flashinfer
        from flashinfer import api_logging

        assert flashinfer.__version__
        yield api_logging


def _instantiate(logging: Any, kernel_id: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Ask the template that the installed FlashInfer registers under the call's own fi_api."""
    kernel = get_kernel_type(kernel_id)
    assert kernel.template is not None
    call = kernel.template(kernel.parameters.model_validate(parameters))
    assert call.fi_api == kernel.fi_api
    arguments = {name: _meta(value) for name, value in call.arguments.items()}
    dispatchers = {logging._trace_fi_api_for(api): dispatch for api, dispatch in logging._TRACE_DISPATCHERS.items()}
    templates = {logging._trace_fi_api_for(api): template for api, template, _ in logging._TRACE_REGISTRY}
    dispatch = dispatchers.get(call.fi_api)
    template = dispatch(**{**arguments, **call.selector}) if dispatch else templates[call.fi_api]
    dump: dict[str, Any] = template.build_fi_trace_fn(call.fi_api)(**arguments)
    return dump


def _meta(value: Any) -> Any:
    import torch

    if isinstance(value, MetaTensor):
        return torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="meta")
    return tuple(_meta(item) for item in value) if isinstance(value, tuple) else value
