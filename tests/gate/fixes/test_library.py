from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fib_tools.errors import SourceError
from fib_tools.gate.fixes import library as module
from fib_tools.gate.fixes.draft import RefusedError
from fib_tools.gate.fixes.inline import complete
from fib_tools.gate.fixes.library import Library, find_library

MakeLibrary = Callable[[Mapping[str, str]], Library]

_TOY = "def _toy(x):\n    return helper(x)\n"
_TEMPLATE = "trace/templates/toy.py"


def _call(source: str, x: int) -> Any:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102  # our own text
    return namespace["_toy"](x)


def test_a_helper_comes_with_all_it_needs_in_turn(make_library: MakeLibrary) -> None:
    lines = "import math\nSCALE: int = 3\n\ndef _inner(x):\n    return math.floor(x) * SCALE\n\n"
    library = make_library({_TEMPLATE: f"{lines}def helper(x):\n    return _inner(x) + 1\n\n{_TOY}"})
    source, names = complete(_TOY, library, what="reference")
    assert _call(source, 2) == 7
    assert set(names) == {"helper", "_inner", "SCALE"}
    assert source.startswith("import math\n")


def test_what_a_default_or_a_decorator_needs_is_written_before_it(make_library: MakeLibrary) -> None:
    helper = (
        "def twice(function):\n    return lambda x: 2 * function(x)\n\nSTEP = 5\n\n"
        "@twice\ndef helper(x, step=STEP, *, more=STEP):\n    return x + step + more\n\n"
    )
    source, _ = complete(_TOY, make_library({_TEMPLATE: helper + _TOY}), what="reference")
    assert _call(source, 1) == 22


def test_a_class_follows_its_base_and_its_fields(make_library: MakeLibrary) -> None:
    helper = (
        "class Base:\n    pass\n\nLIMIT = 4\n\nclass Kind(Base):\n    limit = LIMIT\n    def get(self):\n        return"
        " self.limit\n\ndef helper(x):\n    return x + Kind().get()\n\n"
    )
    source, _ = complete(_TOY, make_library({_TEMPLATE: helper + _TOY}), what="reference")
    assert source.index("class Base") < source.index("class Kind")
    assert _call(source, 1) == 5


def test_the_first_of_two_branches_defines_a_name(make_library: MakeLibrary) -> None:
    branches = "try:\n    from math import floor as helper\nexcept ImportError:\n    from einops import helper\n\n"
    source, _ = complete(_TOY, make_library({_TEMPLATE: branches + _TOY}), what="reference")
    assert "einops" not in source
    assert _call(source, 2) == 2


def test_helpers_are_followed_through_relative_imports_and_other_names(make_library: MakeLibrary) -> None:
    library = make_library(
        {
            _TEMPLATE: f"from ...shared import triple as helper\n\n{_TOY}",
            "shared/__init__.py": "from .inner import triple\n",
            "shared/inner.py": "from math import prod as product\n\ndef triple(x):\n    return product([3, x])\n",
        }
    )
    source, _ = complete(_TOY, library, what="reference")
    assert "from math import prod as product" in source
    assert "flashinfer" not in source
    assert _call(source, 4) == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the reference uses helper, which flashinfer.trace.templates.toy does not define"),
        ("from ...gone import helper\n", "the reference uses helper, which flashinfer.gone does not define"),
        ("from ... import helper\n", "the reference uses the module flashinfer.helper"),
        ("from triton import helper\n", "the reference imports triton"),
        ("import einops as helper\n", "the reference imports einops"),
    ],
)
def test_a_name_that_is_no_plain_python_of_the_library_is_refused(
    make_library: MakeLibrary, text: str, words: str
) -> None:
    library = make_library({_TEMPLATE: f"{text}\n{_TOY}", "helper.py": ""})
    with pytest.raises(RefusedError, match=words):
        complete(_TOY, library, what="reference")


def test_more_helpers_than_the_limit_are_refused(make_library: MakeLibrary) -> None:
    values = "".join(f"A{index} = A{index + 1}\n" for index in range(210))
    library = make_library({_TEMPLATE: f"{values}A210 = 0\nhelper = A0\n\n{_TOY}"})
    with pytest.raises(RefusedError, match="needs more than 200 helpers"):
        complete(_TOY, library, what="reference")


_API = "@flashinfer_api(trace=None)\ndef helper(x):\n    return get_module().launch(x)\n"


@pytest.mark.parametrize("decorator", ["@flashinfer_api(trace=None)", "@api.flashinfer_experimental_api"])
def test_a_kernel_is_replaced_by_its_own_reference(make_library: MakeLibrary, decorator: str) -> None:
    library = make_library(
        {
            _TEMPLATE: f"from ...kernels import helper\n\n{_TOY}",
            "kernels.py": _API.replace("@flashinfer_api(trace=None)", decorator),
            "trace/templates/other.py": "helper_trace = 3\n",
            "trace/templates/real.py": "def _slow(x):\n    return x * 7\n\nhelper_trace = T(name='h', reference=_slow)\n",
        }
    )
    source, names = complete(_TOY, library, what="reference")
    assert names == ("_slow",)
    assert "get_module" not in source
    assert _call(source, 2) == 14


@pytest.mark.parametrize("template", ["", "helper_trace = T(reference=lambda x: x)\n", "helper_trace = T(axes={})\n"])
def test_a_kernel_without_a_reference_is_refused(make_library: MakeLibrary, template: str) -> None:
    files = {
        _TEMPLATE: f"from ...kernels import helper\n\n{_TOY}",
        "kernels.py": _API,
        "trace/templates/real.py": template,
    }
    with pytest.raises(RefusedError, match=r"calls FlashInfer's kernel flashinfer\.kernels\.helper"):
        complete(_TOY, make_library(files), what="reference")


def test_only_the_template_module_with_the_same_code_is_home(make_library: MakeLibrary) -> None:
    library = make_library(
        {
            "trace/templates/a.py": _TOY.replace("helper(x)", "helper(-x)"),
            "trace/templates/b.py": "# a comment changes nothing\n" + _TOY.replace("helper(x)", "helper( x )"),
        }
    )
    assert library.find_home("_toy", _TOY) == "flashinfer.trace.templates.b"
    assert library.find_home("_toy", _TOY.replace("helper", "other")) is None


def test_no_library_is_found_where_flashinfer_is_missing_or_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_package", lambda _name: None)
    assert find_library.__wrapped__() is None

    def fail(_name: str) -> None:
        raise SourceError("no package", where="flashinfer", todo="install it")

    monkeypatch.setattr(module, "find_package", fail)
    assert find_library.__wrapped__() is None


def test_modules_that_import_a_name_from_each_other_are_refused(make_library: MakeLibrary) -> None:
    files = {
        _TEMPLATE: f"from flashinfer.a import helper\n{_TOY}",
        "a.py": "from .b import helper\n",
        "b.py": "from .a import helper\n",
    }
    with pytest.raises(RefusedError, match="from each other"):
        complete(_TOY, make_library(files), what="reference")
