"""The text of one reference test: what the Definition is, how inputs are made, and how the real kernel is called.

The first line carries the hash of the rest, so that a file that somebody changed is known and kept.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fib_tools.gate.recognise import find_kernel, recognise
from fib_tools.model.definition import Definition, DType
from fib_tools.op_types.base import KernelType
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper, no_kernel
from fib_tools.op_types.input_code import write_input_lines
from fib_tools.op_types.registry import find_kernel_type
from fib_tools.op_types.sizes import SIZES, choose_test_axes
from fib_tools.op_types.tolerance import Tolerance, exact, summed

__all__ = ["find_ground_truth", "is_ours", "read_conftest", "write_test"]

_MARKER = "# Written by fib tests write; edit it and it is yours: "
_HASH_LENGTH = 16
_WIDTH = 118
_TESTS = """
def test_the_reference_returns_what_it_declares(size, case):
    case.check_declared()


def test_the_reference_is_near_float64(size, case):
    case.check_float64()


def test_the_kernel_agrees_with_the_reference(size, case):
    case.check_kernel()
"""


def write_test(definition: Definition) -> str:
    """Write the test file of a Definition.

    Raises:
        FormatError: when no sizes meet its constraints.
    """
    kernel = find_kernel(definition)
    truth = find_ground_truth(definition)
    blocks = [
        _docstring(definition, truth),
        "import pytest\nimport torch",
        _facts(definition, kernel),
        _inputs(definition),
        *_kernels(truth),
        _TESTS.strip(),
    ]
    return _mark("\n\n".join(blocks[:3]) + "\n\n\n" + "\n\n\n".join(block.strip() for block in blocks[3:]) + "\n")


def read_conftest() -> str:
    """Read what the tests share, with a marker of its own."""
    source = Path(__file__).with_name("_reference_conftest.py").read_text(encoding="utf-8")
    return _mark(source)


def is_ours(text: str) -> bool:
    """Tell whether a file is as it was written, so that it may be written anew."""
    first, _, rest = text.partition("\n")
    return first.startswith(_MARKER) and first.removeprefix(_MARKER).strip() == _hash(rest)


def find_ground_truth(definition: Definition) -> GroundTruth:
    """Find the real kernels of a Definition, ours or another tool's."""
    found = recognise(definition)
    kernel = find_kernel_type(found.kernel) if found is not None else None
    if found is None or kernel is None:
        return no_kernel("this project does not know the kernel")
    built = found.build()
    if list(built.inputs) != list(definition.inputs) or list(built.outputs) != list(definition.outputs):
        return no_kernel(f"its interface is not that of {built.name}, which the wrapper has")
    return kernel.find_ground_truth(found.parameters)


def _mark(text: str) -> str:
    return f"{_MARKER}{_hash(text)}\n{text}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _docstring(definition: Definition, truth: GroundTruth) -> str:
    against = " or ".join(wrapper.api for wrapper in truth.wrappers) or "nothing: there is no kernel to call"
    return (
        f'"""Reference test of {definition.name}, against {against}.\n\n'
        f'From the dataset\'s folder: pytest tests/references/test_{definition.name}.py -v --device cuda"""'
    )


def _facts(definition: Definition, kernel: KernelType[Any] | None) -> str:
    sizes = [f'    "{size}": {_dict_call(choose_test_axes(definition, size))},' for size in SIZES]
    lines = [
        f"DEFINITION = {definition.name!r}".replace("'", '"'),
        f"OP_TYPE = {definition.op_type!r}".replace("'", '"'),
        "SIZES = {",
        *sizes,
        "}",
        "TOLERANCES = {  # rtol, atol in units of the row's RMS, share of hits, what is compared",
    ]
    for name, spec in definition.outputs.items():
        tolerance = kernel.find_tolerance(name, spec.dtype) if kernel else _plain(spec.dtype)
        values = f'({tolerance.rtol:.4g}, {tolerance.atol:.4g}, {tolerance.hit_ratio}, "{tolerance.how}")'
        lines += [f"    # {tolerance.source}", f'    "{name}": {values},']
    return "\n".join([*lines, "}", 'pytestmark = pytest.mark.parametrize("size", SIZES)'])


def _plain(dtype: DType) -> Tolerance:
    """Give a foreign kernel the general bounds."""
    is_number = dtype.value.startswith("float") or dtype is DType.BFLOAT16
    return summed(dtype) if is_number else exact(dtype)


def _dict_call(axes: dict[str, int]) -> str:
    return f"dict({', '.join(f'{name}={length}' for name, length in axes.items())})"


def _inputs(definition: Definition) -> str:
    lines = [f"    {line}" for line in write_input_lines(definition)]
    arguments = ", ".join(["draw", *definition.var_axes])
    return "\n".join([f"def make_inputs({arguments}):", *lines, *_wrapped("    return ", definition.inputs)])


def _wrapped(start: str, names: Iterable[str]) -> list[str]:
    """Break a tuple over lines where it is too long for one."""
    text = ", ".join(names)
    line = f"{start}{text}" if text.count(",") else f"{start}{text},"
    if len(line) <= _WIDTH:
        return [line]
    rows = textwrap.wrap(f"{text},", width=_WIDTH - 8)
    return [f"{start}(", *(f"        {row}" for row in rows), "    )"]


def _kernels(truth: GroundTruth) -> list[str]:
    functions = [f"{wrapper.kind}_kernel" for wrapper in truth.wrappers]
    functions = [name if functions.index(name) == at else f"{name}_{at}" for at, name in enumerate(functions)]
    blocks = [wrapper.function(name) for wrapper, name in zip(truth.wrappers, functions, strict=True)]
    rows = [_row(wrapper, name) for wrapper, name in zip(truth.wrappers, functions, strict=True)]
    table = ["KERNELS = [  # kind, what it is, compute capabilities, how it is loaded; the first that loads counts"]
    table = [*table, *rows, "]"] if rows else ["KERNELS = []"]
    why = [f"WHY_NO_KERNEL = {_quoted(truth.reason)}"] if truth.reason else []
    return [*blocks, "\n".join([*table, *why])]


def _row(wrapper: Wrapper, function: str) -> str:
    return f'    ("{wrapper.kind}", "{wrapper.api}", {wrapper.capabilities}, {function}),'


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text.replace("\n", " ")) + '"'
