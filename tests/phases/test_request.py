from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import PathError, RequestError
from fib_tools.phases.request import ModelOptions, check_hardware, check_op_types, check_path
from fib_tools.sources.cookbook import load_bundled_cookbook

COOKBOOK = load_bundled_cookbook()


@pytest.mark.parametrize("option", ["tp_list", "ep_list", "page_sizes"])
@pytest.mark.parametrize("sizes", [(), (0,), (1, -8), (1 << 40,)])
def test_sizes_that_no_deployment_has_are_refused(option: str, sizes: tuple[int, ...]) -> None:
    options: dict[str, Any] = {option: sizes}
    with pytest.raises(RequestError, match=f"--{option.replace('_', '-')} holds") as caught:
        ModelOptions(**options)
    assert (caught.value.todo or "").startswith("use whole numbers from 1 to ")


def test_the_largest_sizes_are_taken() -> None:
    request = ModelOptions(tp_list=(1, 1024), ep_list=(1024,), page_sizes=(4096,))
    assert request.tp_list == (1, 1024)


def test_a_path_with_a_nul_is_refused() -> None:
    check_path(None)
    check_path(Path("a/b"))
    with pytest.raises(PathError, match="NUL"):
        ModelOptions(config=Path("a\0b"))


def test_an_op_type_has_to_be_known() -> None:
    check_op_types(None)
    check_op_types(("rmsnorm", "gemm"))
    with pytest.raises(RequestError, match="no op_type 'rms'") as caught:
        check_op_types(("gemm", "rms"))
    assert "rmsnorm" in (caught.value.todo or "")


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
