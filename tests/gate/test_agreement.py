from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fib_tools.gate import agreement
from fib_tools.gate.agreement import (
    compare_function,
    compare_references,
    find_interface_differences,
    may_be_same,
)
from fib_tools.gate.execute import open_sandbox
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.definition import Definition


@pytest.fixture(scope="module")
def sglang_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that is called sglang, with a layer, and a module that needs what is not installed."""
    root = tmp_path_factory.mktemp("unpacked")
    files = {
        "__init__.py": "",
        "double.py": "def forward_native(x):\n    return x * 2\n",
        "deep.py": "import not_installed_anywhere\n",
        "probing.py": "import subprocess\ntry:\n    subprocess.run(['nvidia-smi'])\nexcept FileNotFoundError:\n    pass\n",
        "leaving.py": "raise SystemExit(3)\n",
        "writing.py": "open('/etc/written', 'w')\n",
    }
    (root / "sglang").mkdir()
    for name, text in files.items():
        (root / "sglang" / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def sandbox(sglang_root: Path) -> Iterator[Sandbox]:
    with open_sandbox((sglang_root,)) as opened:
        yield opened


def _toy(body: str, *, dtype: str = "float32", **changes: Any) -> Definition:
    document: dict[str, Any] = {
        "name": "toy_n8",
        "op_type": "toy",
        "axes": {"M": {"type": "var"}, "N": {"type": "const", "value": 8}},
        "inputs": {"x": {"shape": ["M", "N"], "dtype": dtype}},
        "outputs": {"y": {"shape": ["M", "N"], "dtype": dtype}},
        "reference": f"import torch\n\n\ndef run(x):\n    {body}\n",
    }
    return Definition.model_validate({**document, **changes})


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [
        ("return x * 2", "return x + x", "float32"),
        ("return (x.float().sum(-1, keepdim=True) * x).to(torch.bfloat16)",
         "return (x.float().flip(-1).sum(-1, keepdim=True) * x).to(torch.bfloat16)", "bfloat16"),
        ("return torch.nn.functional.silu(x.float()).to(x.dtype)", "return x * torch.sigmoid(x)", "bfloat16"),
        ("return x.clone()", "return x * 1", "int32"),
        ("return x.clone()", "return (x.float() * 1.01).to(x.dtype)", "float8_e4m3fn"),
        ("return x - x + float('inf')", "return x * 0 + float('inf')", "float32"),
    ],
)  # fmt: skip
def test_rounding_sets_no_two_references_apart(sandbox: Sandbox, first: str, second: str, dtype: str) -> None:
    found = compare_references(_toy(first, dtype=dtype), _toy(second, dtype=dtype), sandbox=sandbox)
    assert (found.agrees, found.reason, found.unavailable) == (True, None, None)
    assert "allowed" in found.describe()


@pytest.mark.parametrize(
    ("first", "second", "dtype", "words"),
    [
        ("return x * 2", "return x * 2.001", "float32", "the reference has"),
        ("return torch.nn.functional.gelu(x, approximate='tanh')", "return x * torch.sigmoid(1.702 * x)", "bfloat16",
         "differ"),
        ("return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)",
         "return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)", "float32", "differ"),
        ("return x.clone()", "return x.index_fill(1, torch.tensor([3]), 7)", "float32", "first at [0, 3]: 7"),
        ("return x.clone()", "return x + 1", "int32", "must be equal"),
        ("return x.clone()", "return x * float('nan')", "float32", "NaN on one side only"),
        ("return x.clone()", "return x[:, :4]", "float32", "the shape [4, 4]"),
        ("return x.clone()", "return x.half()", "float32", "cast it with .to(torch.float32)"),
        ("return x.clone()", "return 3", "float32", "not a tensor"),
        ("return x.clone()", "return x, x", "float32", "returns 2 values"),
        ("return x.clone()", "raise KeyError('no')", "float32", "KeyError"),
        ("return x.clone()", "__import__('os').fork()", "float32", "raised: PermissionError"),
        ("return x.clone()", "open('/etc/hostname')", "float32", "raised"),
        ("return x.clone()", "__import__('os')._exit(0)", "float32", "exited"),
    ],
)  # fmt: skip
def test_what_computes_something_else_is_told_with_the_first_element(
    sandbox: Sandbox, first: str, second: str, dtype: str, words: str
) -> None:
    found = compare_references(_toy(first, dtype=dtype), _toy(second, dtype=dtype), sandbox=sandbox)
    assert not found.agrees
    assert words in str(found.reason)


def test_float64_shows_a_formula_that_the_rounding_of_narrow_types_hides(sandbox: Sandbox) -> None:
    first = _toy("return torch.nn.functional.gelu(x, approximate='tanh')", dtype="bfloat16")
    other = _toy("return torch.nn.functional.gelu(x)", dtype="bfloat16")
    assert "with inputs in float64" in str(compare_references(first, other, sandbox=sandbox).reason)


def test_a_forward_that_writes_into_its_input_is_compared_on_inputs_of_its_own(sandbox: Sandbox) -> None:
    assert compare_references(_toy("return x * 2"), _toy("return x.mul_(2)"), sandbox=sandbox).agrees


def test_a_function_without_end_is_killed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_LIMITS", Limits(wall_seconds=0.5))
    found = compare_references(_toy("return x.clone()"), _toy("while True: pass"), sandbox=sandbox)
    assert "0.5 s" in str(found.reason)


def _forward(module: str, call: str = "forward_native(x)") -> str:
    return f"def run_sglang(x):\n    from sglang.{module} import forward_native\n    return {call}\n"


def _compare(sandbox: Sandbox, source: str, module: str) -> agreement.Agreement:
    return compare_function(_toy("return x * 2"), source, "run_sglang", modules=(f"sglang.{module}",), sandbox=sandbox)


def test_a_forward_of_another_package_is_compared(sandbox: Sandbox) -> None:
    assert _compare(sandbox, _forward("double"), "double").agrees
    assert "differ" in str(_compare(sandbox, _forward("double", "forward_native(x) + 1"), "double").reason)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("deep", "No module named 'not_installed_anywhere'"),
        ("missing", "No module named 'sglang.missing'"),
        ("leaving", "SystemExit"),
        ("writing", "PermissionError"),
    ],
)
def test_a_package_that_cannot_be_imported_leaves_the_question_open(sandbox: Sandbox, module: str, words: str) -> None:
    found = _compare(sandbox, _forward(module), module)
    assert not found.agrees
    assert found.reason is None
    assert words in str(found.unavailable)


def test_a_package_that_probes_for_tools_is_told_that_there_are_none(sandbox: Sandbox) -> None:
    source = "import sglang.probing\ndef run_sglang(x):\n    return x * 2\n"
    assert _compare(sandbox, source, "probing").agrees


def test_an_import_that_the_package_does_not_offer_is_the_callers_mistake(sandbox: Sandbox) -> None:
    source = "def run_sglang(x):\n    from sglang.double import nothing\n    return nothing(x)\n"
    assert "cannot import name 'nothing'" in str(_compare(sandbox, source, "double").reason)


def test_definitions_of_one_interface_may_be_the_same_whatever_their_names() -> None:
    other = _toy("return x", name="else_n8", inputs={"a": {"shape": ["M", "N"], "dtype": "float32"}})
    assert may_be_same(_toy("return x"), other)
    assert not may_be_same(_toy("return x"), _toy("return x", dtype="int32"))
    assert not may_be_same(_toy("return x"), _toy("return x", name="toy_n8_w127"))
    reference = "CAP = {}\ndef run(x):\n    return x\n"
    assert not may_be_same(_toy("", reference=reference.format(30)), _toy("", reference=reference.format(50)))


def test_interface_differences_are_spelled_out() -> None:
    other = _toy("return x", outputs={"y": {"shape": ["M"], "dtype": "float32"}})
    assert find_interface_differences(_toy("return x"), other) == [
        "outputs.y is float32 ['var', 8]; toy_n8 has float32 ['var']"
    ]
