from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fib_tools.gate.fixes.library import Library
from fib_tools.gate.normalise import Normalised
from fib_tools.sources.packages import Package


@pytest.fixture
def make_raw() -> Callable[..., dict[str, Any]]:
    """Build a dump of one tensor in and one out; inputs and axes are added, other fields replaced."""

    def make(
        body: str, *, inputs: Mapping[str, Any] | None = None, axes: Mapping[str, Any] | None = None, **changes: Any
    ) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "name": "toy_n8",
            "op_type": "toy",
            "tags": ["fi_api:flashinfer.toy.toy"],
            "axes": {"M": {"type": "var"}, "N": {"type": "const", "value": 8}, **(axes or {})},
            "inputs": {"x": {"shape": ["M", "N"], "dtype": "float32"}, **(inputs or {})},
            "outputs": {"y": {"shape": ["M", "N"], "dtype": "float32"}},
            "reference": f"import torch\n\n{body}",
        }
        return {**raw, **changes}

    return make


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run the `run` of what became of a dump."""

    def call(found: Normalised, *inputs: Any) -> Any:
        assert found.refused is None
        assert found.definition is not None
        namespace: dict[str, Any] = {}
        exec(found.definition.reference, namespace)  # noqa: S102  # our own text
        return namespace["run"](*inputs)

    return call


@pytest.fixture
def make_library(tmp_path: Path) -> Callable[[Mapping[str, str]], Library]:
    """Write a small FlashInfer of the given files, by their path in the package."""

    def make(files: Mapping[str, str]) -> Library:
        folder = tmp_path / "flashinfer"
        for path, text in {"__init__.py": "", "trace/templates/__init__.py": "", **files}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        return Library(Package(name="flashinfer", folder=folder, version="9.9", fingerprint="none"))

    return make
