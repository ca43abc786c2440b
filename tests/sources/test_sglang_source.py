from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.sources.packages import Package, find_package
from fib_tools.sources.sglang_source import find_excerpts, find_words

_ACTIVATION = '''
import torch


class SiluAndMul:
    def __init__(self):
        self.x = 1

    def forward_native(self, x):
        return x

    def forward(self, x):
        return self.forward_native(x)


class QuickGELU:
    """Another activation."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def silu(x):
    return x
'''


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return _write(tmp_path, {"srt/layers/activation.py": _ACTIVATION})


def _write(root: Path, files: dict[str, str]) -> Package:
    for name, text in {"__init__.py": "", "version.py": '__version__ = "0.5.23"\n', **files}.items():
        path = root / "sglang" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = find_package("sglang", root)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SiluAndMul", ("silu", "mul")),
        ("silu_and_mul", ("silu", "mul")),
        ("QuickGELU", ("quick", "gelu")),
        ("MLAIndexer", ("mla", "indexer")),
        ("a_1", ()),
    ],
)
def test_names_of_code_and_names_of_kernels_have_the_same_words(text: str, words: tuple[str, ...]) -> None:
    assert find_words(text) == words


def test_of_a_layer_the_plainest_forward_is_shown_with_its_place(package: Package) -> None:
    first = find_excerpts(package, find_words("silu_and_mul"))[0]
    assert (first.file, first.name) == ("sglang/srt/layers/activation.py", "SiluAndMul.forward_native")
    assert first.line == _ACTIVATION.splitlines().index("    def forward_native(self, x):") + 1
    assert first.text == "    def forward_native(self, x):\n        return x"


def test_words_that_a_name_writes_as_one_are_found(tmp_path: Path) -> None:
    package = _write(
        tmp_path, {"srt/layers/layernorm.py": "class RMSNorm:\n    def forward(self, x):\n        return x\n"}
    )
    assert [item.name for item in find_excerpts(package, ["rmsnorm"])] == ["RMSNorm.forward"]


def test_what_is_about_something_else_is_not_shown(package: Package) -> None:
    assert find_excerpts(package, find_words("lightning_attention")) == ()
    assert find_excerpts(package, ()) == ()


def test_the_models_own_file_weighs_more(tmp_path: Path) -> None:
    body = "class GatedDelta:\n    def forward(self, x):\n        return x\n"
    files = {"srt/models/own.py": body, "srt/models/other.py": body.replace("GatedDelta", "GatedDeltaOther")}
    package = _write(tmp_path, files)
    found = find_excerpts(package, ["gated", "delta"], own_files=["sglang/srt/models/own.py"])
    assert [item.file for item in found] == ["sglang/srt/models/own.py"]


def test_a_file_that_is_no_python_stops_nothing(tmp_path: Path) -> None:
    package = _write(tmp_path, {"srt/layers/activation.py": _ACTIVATION, "srt/layers/silu.py": "def silu(:\n"})
    assert find_excerpts(package, ["silu"])[0].file == "sglang/srt/layers/activation.py"


def test_characters_that_a_terminal_obeys_and_endless_lines_are_cut(tmp_path: Path) -> None:
    text = f"def silu(x):\n    y = '\x1b[2J\u202e{'a' * 5000}'\n" + "    x = x\n" * 5000
    excerpt = find_excerpts(_write(tmp_path, {"srt/layers/silu.py": text}), ["silu"])[0]
    assert "\x1b" not in excerpt.text
    assert max(map(len, excerpt.text.splitlines())) <= 160
    assert len(excerpt.text.splitlines()) == 200
