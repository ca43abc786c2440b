from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fib_tools.errors import FormatError
from fib_tools.evaluate.application.application import Interface, find_interface, make_application, make_documents
from fib_tools.model.definition import Definition
from fib_tools.model.solution import Binding, BuildSpec, Language, Solution, SourceFile
from fib_tools.op_types.registry import get_kernel_type

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 4})
DECODE = get_kernel_type("gqa_paged_decode").build(
    {"num_qo_heads": 2, "num_kv_heads": 1, "head_dim": 64, "page_size": 1}
)


def _raw(definition: Definition, **changes: Any) -> dict[str, Any]:
    return {
        "inputs": {name: {} for name in definition.inputs},
        "outputs": {name: {} for name in definition.outputs},
        **changes,
    }


def _solution(content: str, definition: Definition = NORM, **spec: Any) -> Solution:
    return Solution(
        name="mine",
        definition=definition.name,
        author="me",
        spec=BuildSpec(
            **{
                "language": Language.PYTHON,
                "target_hardware": ["sm90"],
                "entry_point": "main.py::run",
                "destination_passing_style": False,
                **spec,
            }
        ),
        sources=[SourceFile(path="main.py", content=content)],
    )


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Solution, Definition, Interface], Any]:
    """Write an application's files as FlashInfer does, and load its entry."""

    def read(solution: Solution, definition: Definition, interface: Interface) -> Any:
        made = make_application(definition, solution, interface, "flashinfer.norm.rmsnorm").solution
        for source in made.sources:
            (tmp_path / source.path).write_text(source.content, encoding="utf-8")
        entry = tmp_path / made.spec.entry_point.partition("::")[0]
        namespace: dict[str, Any] = {"__file__": str(entry), "__name__": "entry"}
        exec(compile(entry.read_text(encoding="utf-8"), str(entry), "exec"), namespace)  # noqa: S102  # our own text
        sys.modules.pop(f"fib_applied_{solution.hash[:16]}", None)
        return namespace["run"]

    return read


def _inputs() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(4, dtype=torch.bfloat16), "hidden_states": torch.ones(3, 4, dtype=torch.bfloat16)}


def test_inputs_come_by_name_and_go_by_order(load: Any) -> None:
    run = load(_solution("def run(a, b):\n    return a.shape, b.shape\n"), NORM, find_interface(NORM, "n", _raw(NORM)))
    assert run(**_inputs(), something_else=1) == ((3, 4), (4,))


def test_names_that_differ_in_case_only_are_the_same() -> None:
    gemm = get_kernel_type("gemm_fp8_block").build({"n": 256, "k": 256})
    raw = _raw(gemm, inputs={name.lower(): {} for name in gemm.inputs}, outputs={"out": {}})
    assert find_interface(gemm, "n", raw).keys == {"A": "a", "B": "b", "A_scale": "a_scale", "B_scale": "b_scale"}


def test_outputs_that_are_passed_are_made_with_their_shape_and_type(load: Any) -> None:
    solution = _solution("def run(a, b, out):\n    out.fill_(2)\n", destination_passing_style=True)
    output = load(solution, NORM, find_interface(NORM, "n", _raw(NORM)))(**_inputs())
    assert torch.equal(output, torch.full((3, 4), 2, dtype=torch.bfloat16))


def test_a_call_that_the_solution_is_not_for_is_refused(load: Any) -> None:
    run = load(_solution("def run(a, b):\n    return a\n"), NORM, find_interface(NORM, "n", _raw(NORM)))
    with pytest.raises(TypeError, match=r"weight of torch\.bfloat16, not of torch\.float16"):
        run(**{**_inputs(), "weight": torch.ones(4, dtype=torch.float16)})
    with pytest.raises(TypeError, match="evaluated with 4, not 5"):
        run(**{**_inputs(), "hidden_states": torch.ones(3, 5, dtype=torch.bfloat16)})


@pytest.mark.parametrize(("asked", "count"), [(True, 2), (False, 1)])
def test_an_optional_output_is_given_back_when_asked_for(load: Any, asked: bool, count: int) -> None:  # noqa: FBT001
    raw = _raw(DECODE, outputs={"output": {}, "lse": {"optional": True}})
    raw["inputs"]["return_lse"] = {"optional": True}
    interface = find_interface(DECODE, "n", raw)
    assert interface.optional_outputs == 1
    solution = _solution("def run(q, *rest):\n    return [q, q[..., 0]]\n", DECODE)
    given = {
        "q": torch.ones(1, 2, 64, dtype=torch.bfloat16),
        "k_cache": torch.ones(1, 1, 1, 64, dtype=torch.bfloat16),
        "v_cache": torch.ones(1, 1, 1, 64, dtype=torch.bfloat16),
        "kv_indptr": torch.zeros(2, dtype=torch.int32),
        "kv_indices": torch.zeros(1, dtype=torch.int32),
        "sm_scale": 0.1,
    }
    result = load(solution, DECODE, interface)(**given, return_lse=asked)
    assert (len(result) if isinstance(result, tuple) else 1) == count


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inputs": {"hidden_states": {}}}, "hand over weight"),
        ({"outputs": {"output": {}, "more": {}}}, "wants output, more"),
        ({"outputs": {}}, "wants "),
        ({"outputs": {"output": {"optional": True}}}, "which outputs"),
    ],
)
def test_an_interface_that_is_another_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(FormatError, match=word):
        find_interface(NORM, "n", _raw(NORM, **changes))


@pytest.mark.parametrize(
    ("spec", "sources", "word"),
    [
        ({"language": Language.CUDA, "binding": Binding.TORCH}, {}, "TVM-FFI"),
        ({}, {"more.py": "x = 1"}, "several"),
        ({"entry_point": "fib_apply.py::run"}, {"fib_apply.py": "def run(): pass"}, "several"),
        ({}, {"main.py": "def setup(a, b):\n    pass\n"}, "setup"),
    ],
)
def test_a_solution_that_trace_apply_cannot_run_is_refused(
    spec: dict[str, Any], sources: dict[str, str], word: str
) -> None:
    files = {"main.py": "def run(a, b):\n    return a\n", **sources}
    solution = Solution(
        name="mine",
        definition=NORM.name,
        author="me",
        spec=BuildSpec(**{"language": "python", "target_hardware": ["sm90"], "entry_point": "main.py::run", **spec}),
        sources=[SourceFile(path=path, content=content) for path, content in files.items()],
    )
    with pytest.raises(FormatError, match=word):
        make_application(NORM, solution, find_interface(NORM, "n", _raw(NORM)), "api")


def test_compiled_code_is_taken_as_it_is_where_its_order_is_flashinfers() -> None:
    solution = _solution("// code", language=Language.CUDA)
    same = find_interface(NORM, "name", _raw(NORM))
    made = make_application(NORM, solution, same, "flashinfer.norm.rmsnorm")
    assert made.solution == solution.model_copy(update={"definition": "name"})
    assert made.definition.name == "name"
    assert made.definition.tags == ["fi_api:flashinfer.norm.rmsnorm"]
    turned = _raw(NORM, inputs={name: {} for name in reversed(NORM.inputs)})
    with pytest.raises(FormatError, match="order or number"):
        make_application(NORM, solution, find_interface(NORM, "name", turned), "api")


def test_an_output_whose_length_no_input_tells_cannot_be_passed() -> None:
    output = NORM.outputs["output"].model_copy(update={"shape": ["batch_size", "unheard"]})
    strange = NORM.model_copy(update={"outputs": {"output": output}})
    solution = _solution("def run(a, b, out):\n    pass\n", destination_passing_style=True)
    with pytest.raises(FormatError, match="length of unheard"):
        make_application(strange, solution, find_interface(strange, "n", _raw(strange)), "api")


def test_an_empty_folder_is_still_one_that_flashinfer_takes() -> None:
    assert sorted(make_documents([], {"hardware": "NVIDIA H200"})) == ["fib_apply.json", "solutions/.keep"]
