from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fib_tools.gate.normalise import Normalised, normalise
from fib_tools.gate.templates import TemplateResult
from fib_tools.model.definition import Definition, DType

_REFERENCE = "from __future__ import annotations\nimport math\nimport torch\n\n{body}"


def _raw(body: str, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "scaled_add_n8",
        "description": "x * s",
        "op_type": "toy",
        "tags": ["fi_api:flashinfer.toy.scaled_add", "status:verified"],
        "axes": {"M": {"type": "var"}, "N": {"type": "const", "value": 8}},
        "inputs": {"x": {"shape": ["M", "N"], "dtype": "float32"}},
        "outputs": {"y": {"shape": ["M", "N"], "dtype": "float32"}},
        "reference": _REFERENCE.format(body=body),
    }
    return {**raw, **changes}


_PLAIN = "def _toy_reference(x):\n    return x * 2\n"


def _definition(found: Normalised) -> Definition:
    assert found.refused is None
    assert found.definition is not None
    return found.definition


def _run(found: Normalised, *inputs: Any) -> Any:
    import torch

    namespace: dict[str, Any] = {"torch": torch}
    exec(_definition(found).reference, namespace)  # noqa: S102  # our own text
    return namespace["run"](*inputs)


def test_a_reference_that_fits_is_renamed_run() -> None:
    found = normalise(_raw(_PLAIN))
    definition = _definition(found)
    assert "def run(x):" in definition.reference
    assert "reference: _toy_reference renamed run" in found.changes


def test_a_reference_that_calls_itself_keeps_its_name_too() -> None:
    import torch

    body = "def _toy_reference(x):\n    return x if x.dim() == 2 else _toy_reference(x.reshape(1, -1))\n"
    assert _run(normalise(_raw(body)), torch.ones(2, 8)).shape == (2, 8)


def test_a_claim_of_verification_is_taken_back_and_the_name_is_kept() -> None:
    definition = _definition(normalise(_raw(_PLAIN)))
    assert definition.tags == ["fi_api:flashinfer.toy.scaled_add", "fi_name:scaled_add_n8", "status:unverified"]


def test_fields_of_others_are_kept() -> None:
    raw = _raw(_PLAIN, check="def check(): ...", init="def init(): ...")
    raw["outputs"]["y"]["param"] = "out"
    definition = _definition(normalise(raw))
    assert definition.model_extra == {"check": "def check(): ...", "init": "def init(): ..."}
    assert definition.outputs["y"].model_extra == {"param": "out"}


@pytest.mark.parametrize(("dtype", "stored"), [("uint8", "int8"), ("uint32", "int32"), ("float8_e8m0fnu", "int8")])
def test_a_type_outside_the_schema_is_seen_through_a_view(dtype: str, stored: str) -> None:
    import torch

    raw = _raw(f"def _toy(x):\n    assert x.dtype == torch.{dtype}\n    return x.to(torch.float32)\n")
    raw["inputs"]["x"]["dtype"] = dtype
    found = normalise(raw)
    assert _definition(found).inputs["x"].dtype is DType(stored)
    assert _run(found, torch.ones(2, 8, dtype=getattr(torch, stored))).shape == (2, 8)


def test_an_output_outside_the_schema_is_handed_out_as_its_bits() -> None:
    import torch

    raw = _raw("def _toy(x):\n    return x.to(torch.uint8)\n")
    raw["outputs"]["y"]["dtype"] = "uint8"
    assert _run(normalise(raw), torch.full((1, 8), 200.0)).dtype is torch.int8


def test_float64_is_rounded_to_float32() -> None:
    import torch

    raw = _raw("def _toy(x):\n    return x.to(torch.float64)\n")
    raw["outputs"]["y"]["dtype"] = "float64"
    assert _run(normalise(raw), torch.ones(1, 8)).dtype is torch.float32


def test_an_optional_input_of_unknown_type_is_dropped_and_the_reference_gets_none() -> None:
    import torch

    raw = _raw("def _toy(x, bias):\n    assert bias is None\n    return x\n")
    raw["inputs"]["bias"] = {"shape": ["N"], "dtype": "unknown", "optional": True}
    found = normalise(raw)
    assert list(_definition(found).inputs) == ["x"]
    assert _run(found, torch.ones(1, 8)).shape == (1, 8)


def test_arrays_of_plan_time_are_int32() -> None:
    raw = _raw("def _toy(x, kv_indptr):\n    return x\n")
    raw["axes"]["len_indptr"] = {"type": "var"}
    raw["inputs"]["kv_indptr"] = {"shape": ["len_indptr"], "dtype": "unknown", "optional": True}
    assert _definition(normalise(raw)).inputs["kv_indptr"].dtype is DType.INT32


def test_a_required_input_of_unknown_type_is_refused() -> None:
    raw = _raw("def _toy(x, cache):\n    return x\n")
    raw["inputs"]["cache"] = {"shape": ["M", "N"], "dtype": "unknown"}
    assert normalise(raw).refused == "input cache was not in the call where the template looks for it"


def test_a_string_of_the_call_becomes_a_constant() -> None:
    import torch

    raw = _raw("def _toy(x, mode):\n    return x * {'two': 2}[mode]\n")
    raw["inputs"]["mode"] = {"shape": None, "dtype": "string"}
    call = TemplateResult(fi_api="toy", values={"mode": "two"})
    assert float(_run(normalise(raw, call=call), torch.ones(1, 8)).sum()) == 16


def test_a_scalar_that_a_const_axis_says_is_baked_in() -> None:
    import torch

    raw = _raw("def _toy(x, top_k):\n    return x * top_k\n")
    raw["axes"]["top_k"] = {"type": "const", "value": 3}
    raw["inputs"]["top_k"] = {"shape": None, "dtype": "int32"}
    found = normalise(raw)
    assert list(_definition(found).inputs) == ["x"]
    assert float(_run(found, torch.ones(1, 8)).sum()) == 24


def test_a_const_that_only_the_reference_takes_is_passed() -> None:
    import torch

    found = normalise(_raw("def _toy(x, *, N, M):\n    return x * N * M\n"))
    assert float(_run(found, torch.ones(2, 8))[0, 0]) == 16


def test_a_const_axis_without_value_is_solved_or_becomes_var() -> None:
    raw = _raw("def _toy(x, s, t):\n    return x\n")
    raw["axes"] |= {"N_div_4": {"type": "const"}, "free": {"type": "const"}, "gone": {"type": "const"}}
    raw["inputs"]["s"] = {"shape": ["N_div_4"], "dtype": "float32"}
    raw["inputs"]["t"] = {"shape": ["free"], "dtype": "float32"}
    definition = _definition(normalise(raw))
    assert definition.const_axes == {"N": 8, "N_div_4": 2}
    assert definition.var_axes == ("M", "free")


def test_an_axis_that_nobody_declared_is_declared_and_bound() -> None:
    raw = _raw("def _toy(x):\n    return x\n")
    raw["outputs"]["y"]["shape"] = ["M", "N_div_2"]
    definition = _definition(normalise(raw))
    assert "N_div_2 == N // 2" in definition.constraints


def test_an_axis_written_as_a_number_gets_a_name() -> None:
    raw = _raw("def _toy(x, alpha):\n    return x\n")
    raw["inputs"]["alpha"] = {"shape": ["1"], "dtype": "float32"}
    assert _definition(normalise(raw)).inputs["alpha"].shape == ["size_1"]


def test_a_constraint_over_no_axis_is_dropped_and_item_is_left_out() -> None:
    raw = _raw("def _toy(x, qo_indptr):\n    return x\n")
    raw["axes"]["L"] = {"type": "var"}
    raw["inputs"]["qo_indptr"] = {"shape": ["L"], "dtype": "int32"}
    raw["constraints"] = ["M == qo_indptr[-1].item()", "kv_layout == 'HND'", "not python"]
    assert _definition(normalise(raw)).constraints == ["M == qo_indptr[-1]"]


def test_a_multiple_is_turned_around_to_set_the_var_axis() -> None:
    raw = _raw("def _toy(x):\n    return x\n", constraints=["N == 2 * M"])
    assert _definition(normalise(raw)).constraints == ["N == 2 * M", "M == N // 2"]


def test_an_output_that_is_also_an_input_gets_a_name_of_its_own_and_the_input_is_left_alone() -> None:
    import torch

    raw = _raw("def _toy(x):\n    x += 1\n    return x\n")
    raw["outputs"] = {"x": raw["outputs"]["y"]}
    found = normalise(raw)
    given_x = torch.zeros(1, 8)
    assert list(_definition(found).outputs) == ["x_out"]
    assert float(_run(found, given_x).sum()) == 8
    assert float(given_x.sum()) == 0


def test_a_reference_that_fills_buffers_gives_them_back() -> None:
    import torch

    raw = _raw("def _toy(x, y):\n    y.copy_(x)\n")
    assert float(_run(normalise(raw), torch.ones(1, 8)).sum()) == 8


def test_an_optional_output_that_never_comes_is_dropped() -> None:
    raw = _raw(_PLAIN)
    raw["outputs"]["lse"] = {"shape": ["M"], "dtype": "float32", "optional": True}
    found = normalise(raw)
    # one output is returned as it is: a call may still be a tuple, so only literal tuples are counted
    assert "y" in _definition(found).outputs


def test_a_reference_that_returns_too_little_is_refused() -> None:
    raw = _raw("def _toy(x):\n    return x, x\n")
    raw["outputs"] |= {"z": raw["outputs"]["y"], "w": raw["outputs"]["y"]}
    assert normalise(raw).refused == "the reference returns 2 of the outputs y, z, w"


def test_an_input_with_another_name_is_bound_by_position() -> None:
    import torch

    found = normalise(_raw("def _toy(hidden, **_unused):\n    return hidden\n"))
    assert "reference: x passed as hidden, by position" in found.changes
    assert _run(found, torch.ones(1, 8)).shape == (1, 8)


def test_a_parameter_that_nothing_gives_is_refused() -> None:
    assert normalise(_raw("def _toy(x, a, b):\n    return x\n")).refused == (
        "the reference needs a, b, which no input gives"
    )


def test_a_switch_keeps_its_default() -> None:
    raw = _raw("def _toy(x, causal=True):\n    return x\n")
    raw["inputs"]["causal"] = {"shape": None, "dtype": "bool", "optional": True}
    assert list(_definition(normalise(raw)).inputs) == ["x"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "name: "),
        ({"axes": []}, "axes"),
        ({"inputs": {"x": 3}}, "inputs"),
        ({"tags": "x"}, "tags"),
        ({"outputs": {}}, "outputs"),
        ({"reference": ""}, "no reference"),
        ({"reference": "def ("}, "not Python"),
        ({"reference": "x = 1"}, "no function"),
        ({"op_type": None}, "op_type"),
    ],
)
def test_what_is_no_dump_is_refused_with_the_reason(change: dict[str, Any], words: str) -> None:
    found = normalise(_raw(_PLAIN, **change))
    assert found.definition is None
    assert words in str(found.refused)


def _norm(name: str, **changes: Any) -> dict[str, Any]:
    tensor = {"shape": ["batch_size", "hidden_size"], "dtype": "bfloat16"}
    raw = _raw(
        "def _norm(hidden_states, residual, weight):\n    EPS = 1e-5\n    return hidden_states.to(hidden_states.dtype)\n",
        name=name,
        op_type="rmsnorm",
        tags=[f"fi_api:flashinfer.norm.{name.rpartition('_h')[0]}"],
        axes={"batch_size": {"type": "var"}, "hidden_size": {"type": "const", "value": 3072}},
        inputs={"hidden_states": tensor, "residual": tensor, "weight": {"shape": ["hidden_size"], "dtype": "bfloat16"}},
        outputs={"output": tensor, "residual": tensor},
    )
    return {**raw, **changes}


def test_a_dump_beyond_repair_is_written_anew_when_its_kernel_is_known() -> None:
    found = normalise(_norm("fused_add_rmsnorm_h3072"))
    definition = _definition(found)
    assert found.is_canonical
    assert list(definition.outputs) == ["output", "residual_output"]
    assert "EPS = 1e-05" in definition.reference
    assert "fi_name:fused_add_rmsnorm_h3072" in definition.tags


def test_wrong_axes_are_refused_when_nothing_tells_the_right_ones() -> None:
    raw = _norm("rmsnorm_h32")
    raw["axes"]["hidden_size"]["value"] = 32
    assert normalise(raw).refused == "hidden_size = 32: a number of heads read as the width of the norm"


def _paged(kv: int, page: int) -> dict[str, Any]:
    cache = {"shape": ["num_pages", "page_size", "num_kv_heads", "head_dim"], "dtype": "bfloat16"}
    sizes = {"num_qo_heads": 24, "num_kv_heads": kv, "head_dim": 128, "page_size": page}
    return _raw(
        _PLAIN,
        name=f"gqa_paged_decode_h24_kv{kv}_d128_ps{page}",
        op_type="gqa_paged",
        tags=["fi_api:flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.run"],
        axes={
            "batch_size": {"type": "var"},
            "num_pages": {"type": "var"},
            **{name: {"type": "const", "value": value} for name, value in sizes.items()},
        },
        inputs={
            "q": {"shape": ["batch_size", "num_qo_heads", "head_dim"], "dtype": "bfloat16"},
            "k_cache": cache,
            "v_cache": cache,
        },
        outputs={"output": {"shape": ["batch_size", "num_qo_heads", "head_dim"], "dtype": "bfloat16"}},
    )


def test_the_axes_of_a_three_dimensional_pool_are_put_right() -> None:
    definition = _definition(normalise(_paged(128, 8)))
    assert definition.name == "gqa_paged_decode_h24_kv8_d128_ps1"
    assert definition.const_axes["num_kv_heads"] == 8


def test_a_pool_whose_heads_do_not_fit_is_refused() -> None:
    assert "3-D pool" in str(normalise(_paged(128, 16)).refused)


def _ragged() -> dict[str, Any]:
    sizes = {"num_qo_heads": 64, "num_kv_heads": 64, "head_dim": 192}
    tensor = {"shape": ["total_q", "num_qo_heads", "head_dim"], "dtype": "bfloat16"}
    return _raw(
        _PLAIN,
        name="gqa_ragged_h64_kv64_d192",
        op_type="gqa_ragged",
        tags=["fi_api:flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper.run"],
        axes={"total_q": {"type": "var"}, **{name: {"type": "const", "value": size} for name, size in sizes.items()}},
        inputs={"q": tensor, "k": tensor, "v": tensor},
        outputs={"output": tensor},
    )


def test_ragged_mla_is_refused_alone_and_put_right_beside_its_paged_twin() -> None:
    twin = {"op_type": "mla_paged", "axes": {"num_qo_heads": {"type": "const", "value": 64}}}
    assert "128 wide" in str(normalise(_ragged()).refused)
    assert _definition(normalise(_ragged(), siblings=[twin])).name == "mla_ragged_prefill_causal_h64_qk192_vo128"


def test_normalising_changes_nothing_in_the_dump_itself() -> None:
    raw = _norm("fused_add_rmsnorm_h3072")
    before = copy.deepcopy(raw)
    normalise(raw)
    assert raw == before


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["", "x", "M", "uint8", "unknown", "1", "def f(): 0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "shape", "dtype", "type", "value", "optional"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_of_a_dump_raises(data: st.DataObject) -> None:
    raw = _raw(_PLAIN)
    for _ in range(data.draw(st.integers(1, 3))):
        target: Any = raw
        key = data.draw(st.sampled_from(sorted(target)))
        while isinstance(target[key], dict) and target[key] and data.draw(st.booleans()):
            target = target[key]
            key = data.draw(st.sampled_from(sorted(target)))
        target[key] = data.draw(_JSON)
    found = normalise(raw)
    assert (found.definition is None) == (found.refused is not None)
