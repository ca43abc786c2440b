from __future__ import annotations

import ast
import re

import pytest

from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.template_request import format_template_request


@pytest.mark.parametrize(
    ("kernel", "parameters", "api"),
    [
        ("min_p_sampling_from_probs", {"vocab_size": 128}, "flashinfer.sampling.min_p_sampling_from_probs"),
        ("layernorm", {"hidden_size": 64}, "flashinfer.norm.layernorm"),
        ("gemm_fp8_tensor", {"n": 32, "k": 64}, "flashinfer.gemm.gemm_base.bmm_fp8"),
    ],
)
def test_a_request_names_the_api_and_proposes_code_that_parses(
    kernel: str, parameters: dict[str, int], api: str
) -> None:
    definition = get_kernel_type(kernel).build(parameters)
    request = format_template_request(definition, api)
    assert api.removeprefix("flashinfer.") in request.title
    assert definition.name in request.body
    template, reference = re.findall(r"```python\n(.*?)```", request.body, re.DOTALL)
    call = ast.parse(template).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert {keyword.arg for keyword in call.value.keywords} >= {"op_type", "axes", "inputs", "outputs", "reference"}
    assert reference.strip() == definition.reference.strip()


@pytest.mark.filterwarnings("ignore")  # flashinfer's imports warn about one another
def test_flashinfer_takes_the_proposed_template() -> None:
    from flashinfer.trace import template as words

    definition = get_kernel_type("min_p_sampling_from_probs").build({"vocab_size": 128})
    body = format_template_request(definition, "flashinfer.sampling.min_p_sampling_from_probs").body
    template, reference = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    namespace = {name: getattr(words, name) for name in ("Const", "Scalar", "Tensor", "TraceTemplate", "Var")}
    exec(compile(reference, "reference", "exec"), namespace)  # noqa: S102  # our own source
    made = eval(compile(template.strip(), "template", "eval"), namespace)  # noqa: S307  # as above
    assert list(made.inputs) == list(definition.inputs)
    assert list(made.axes) == list(definition.axes)
