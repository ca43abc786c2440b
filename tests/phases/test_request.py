from __future__ import annotations

import pytest

from fib_tools.errors import RequestError
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.request import check_hardware, check_op_types, choose_definitions
from fib_tools.sources.cookbook import load_bundled_cookbook

COOKBOOK = load_bundled_cookbook()


def test_an_op_type_has_to_be_known() -> None:
    check_op_types(None)
    check_op_types(("rmsnorm", "gemm"))
    with pytest.raises(RequestError, match="no op_type 'rms'") as caught:
        check_op_types(("gemm", "rms"))
    assert "rmsnorm" in (caught.value.todo or "")


def test_definitions_are_chosen_by_name_and_op_type_and_a_name_has_to_be_there() -> None:
    norm, gemm = get_kernel_type("rmsnorm").build({"hidden_size": 8}), get_kernel_type("gemm").build({"n": 8, "k": 8})
    loaded = {each.name: each for each in (norm, gemm)}
    assert choose_definitions(loaded, None, where="here") == [gemm, norm]
    assert choose_definitions(loaded, (norm.name,), where="here") == [norm]
    assert choose_definitions(loaded, None, ("gemm",), where="here") == [gemm]
    assert choose_definitions(loaded, (norm.name,), ("gemm",), where="here") == []
    assert choose_definitions(loaded, (), where="here") == []
    with pytest.raises(RequestError, match="no Definition 'a'") as caught:
        choose_definitions(loaded, ("b", norm.name, "a"), where="here")
    assert (caught.value.where, caught.value.todo) == ("here", "see the folder definitions")
    with pytest.raises(RequestError, match="no Definition 'rmsnorm_h7'") as caught:
        choose_definitions(loaded, ("rmsnorm_h7",), where="here")
    assert caught.value.todo == "did you mean rmsnorm_h8?"


def test_a_gpu_has_to_be_known_and_serve_the_model() -> None:
    check_hardware(None, COOKBOOK)
    check_hardware("h200", COOKBOOK)
    check_hardware("H200", COOKBOOK, model="kimi-k2")
    check_hardware("H200", COOKBOOK, model="a-model-without-an-entry")
    with pytest.raises(RequestError, match="no GPU 'MI300X'"):
        check_hardware("MI300X", COOKBOOK)
    with pytest.raises(RequestError, match="does not serve kimi-k2 on A100") as caught:
        check_hardware("A100", COOKBOOK, model="kimi-k2")
    assert "H200" in (caught.value.todo or "")
