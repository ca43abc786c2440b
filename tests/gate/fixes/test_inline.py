from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fib_tools.gate import normalise as gate
from fib_tools.gate.fixes.draft import RefusedError
from fib_tools.gate.fixes.inline import complete
from fib_tools.gate.fixes.library import Library
from fib_tools.gate.normalise import normalise

MakeLibrary = Callable[[Mapping[str, str]], Library]

_TEMPLATE = "trace/templates/toy.py"


def _call(source: str, x: int) -> Any:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102  # our own text
    return namespace["_toy"](x)


def test_a_source_that_lacks_nothing_is_unchanged_without_a_library() -> None:
    source = "import math\n\ndef _toy(x):\n    return math.sqrt(x)  # kept\n"
    assert complete(source, None, what="reference") == (source, ())


def test_a_missing_name_without_a_library_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match="the reference uses helper, and no FlashInfer is installed"):
        complete("def _toy(x):\n    return helper(x)\n", None, what="reference")


def test_a_library_with_other_code_may_not_fill_the_gaps(make_library: MakeLibrary) -> None:
    library = make_library({_TEMPLATE: "def helper(x):\n    return x\n\ndef _toy(x):\n    return helper(x) + 1\n"})
    with pytest.raises(RefusedError, match=r"uses helper, and FlashInfer 9\.9 has another _toy"):
        complete("def _toy(x):\n    return helper(x)\n", library, what="reference")


def test_flashinfer_imported_as_a_module_is_refused(make_library: MakeLibrary) -> None:
    with pytest.raises(RefusedError, match="imports flashinfer as a module"):
        complete("import flashinfer.norm\n\ndef _toy(x):\n    return x\n", make_library({}), what="reference")


def test_imports_inside_a_reference_are_written_in_under_the_name_it_uses(make_library: MakeLibrary) -> None:
    source = (
        "def _toy(x):\n    from flashinfer.deep import (\n        add,\n        scale as by,\n    )\n"
        "    return by(add(x))\n"
    )
    deep = "def add(x):\n    return x + 1\n\ndef scale(x):\n    from flashinfer.deeper import TEN\n    return x * TEN\n"
    library = make_library({_TEMPLATE: source, "deep.py": deep, "deeper.py": "TEN = 10\n"})
    found, names = complete(source, library, what="reference")
    assert "flashinfer" not in found
    assert set(names) == {"add", "scale", "TEN"}
    assert _call(found, 2) == 30


def test_helpers_that_import_each_other_are_written_once(make_library: MakeLibrary) -> None:
    source = "def _toy(x):\n    from flashinfer.even import even\n    return even(x)\n"
    body = "def {0}(x):\n    from flashinfer.{1} import {1}\n    return {2} if x == 0 else {1}(x - 1)\n"
    files = {"even.py": body.format("even", "odd", True), "odd.py": body.format("odd", "even", False)}
    found, _ = complete(source, make_library({_TEMPLATE: source, **files}), what="reference")
    assert found.count("def even(") == found.count("def odd(") == 1
    assert _call(found, 4) is True


def test_imports_that_go_on_and_on_are_refused(make_library: MakeLibrary) -> None:
    source = "def _toy(x):\n    from flashinfer.m0 import f0\n    return f0(x)\n"
    files = {
        f"m{index}.py": f"def f{index}(x):\n    from flashinfer.m{index + 1} import f{index + 1}\n    return x\n"
        for index in range(9)
    }
    with pytest.raises(RefusedError, match="import FlashInfer without end"):
        complete(source, make_library({_TEMPLATE: source, **files}), what="reference")


_TOY = "def _toy(x):\n    return helper(x)\n"
_INIT = "def make():\n    return constant()\n"
_FILE = f"def helper(x):\n    return x * 4\n\ndef constant():\n    return 1\n\n{_TOY}\n{_INIT}"


def test_a_dump_with_gaps_is_filled_and_says_from_where(
    make_library: MakeLibrary,
    make_raw: Callable[..., dict[str, Any]],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    library = make_library({_TEMPLATE: _FILE})
    monkeypatch.setattr(gate, "find_library", lambda: library)
    found = normalise(make_raw(_TOY, init=_INIT))
    assert float(run(found, torch.ones(1, 8)).sum()) == 32
    assert "reference: helper written in from FlashInfer 9.9" in found.changes
    assert found.definition is not None
    assert "def constant" in str((found.definition.model_extra or {})["init"])


def test_an_init_that_cannot_be_filled_is_kept_as_it_is(
    make_raw: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "find_library", lambda: None)
    found = normalise(make_raw("def _toy(x):\n    return x\n", init=_INIT))
    assert found.definition is not None
    assert found.definition.model_extra == {"init": _INIT}
    assert "init left as it is: the init uses constant, and no FlashInfer is installed to look it up in" in (
        found.changes
    )
