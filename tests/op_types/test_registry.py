from __future__ import annotations

import subprocess
import sys

import pytest

from fib_tools.errors import RequestError
from fib_tools.op_types.base import Parameters
from fib_tools.op_types.registry import (
    find_kernel_type,
    find_op_type,
    get_kernel_type,
    list_kernel_types,
    list_op_types,
)

OURS = {
    "activation": 8,
    "causal_conv1d": 2,
    "dsv4_attention": 2,
    "embedding": 1,
    "gdn": 3,
    "kda": 2,
    "kv_compression": 1,
    "layernorm": 1,
    "mamba_ssu": 2,
    "mhc": 4,
    "moe_routing": 2,
    "rmsnorm": 6,
    "rope": 2,
    "sampling": 8,
}


def test_every_file_with_an_op_type_is_found_and_no_kernel_is_lost_to_another_of_its_id() -> None:
    found = {op_type.name: len(op_type.kernels) for op_type in list_op_types()}
    assert {name: found[name] for name in OURS} == OURS
    assert len(list_kernel_types()) == sum(found.values())


def test_every_kernel_stands_under_its_own_op_type() -> None:
    for op_type in list_op_types():
        assert {kernel.op_type for kernel in op_type.kernels} == {op_type.name}


def test_every_kernel_has_a_summary_and_knows_its_parameters() -> None:
    for kernel in list_kernel_types():
        assert kernel.summary
        assert "\n" not in kernel.summary
        assert issubclass(kernel.parameters, Parameters)
        assert set(kernel.parameters.silent) <= set(kernel.parameters.model_fields)


def test_a_template_belongs_to_a_kernel_that_flashinfer_has() -> None:
    assert [kernel.id for kernel in list_kernel_types() if kernel.template and not kernel.fi_api] == []


def test_finding_gives_none_and_getting_names_what_there_is() -> None:
    assert find_op_type("nothing") is None
    assert find_kernel_type("nothing") is None
    assert get_kernel_type("rmsnorm") is find_kernel_type("rmsnorm")
    with pytest.raises(RequestError, match=r"no kernel type 'nothing'; use one of: .*rmsnorm"):
        get_kernel_type("nothing")


def test_listing_kernels_loads_neither_torch_nor_flashinfer() -> None:
    code = (
        "import sys; from fib_tools.op_types.registry import list_kernel_types; list_kernel_types();"
        "get = __import__('fib_tools.op_types.registry', fromlist=['x']).get_kernel_type;"
        "get('gdn_decode').build({'num_q_heads': 4, 'num_v_heads': 8, 'head_size': 128});"
        "print(sorted({'torch', 'flashinfer', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
