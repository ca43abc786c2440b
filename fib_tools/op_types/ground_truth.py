"""Ground truth: the real kernel behind a Definition, and the source that calls it as the reference is called.

A wrapper takes the Definition's inputs in their order and returns its outputs. What a serving engine does once, when it
loads weights, such as swapping halves or tiling scales, stands in the wrapper with a comment.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["AMPERE_ON", "BLACKWELL", "HOPPER", "HOPPER_ON", "GroundTruth", "Wrapper", "no_kernel"]

AMPERE_ON = (80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
"""Compute capabilities, major times ten plus minor."""
HOPPER = (90,)
HOPPER_ON = (90, 100, 103, 110, 120, 121)
BLACKWELL = (100, 103, 110, 120, 121)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrapper:
    """Source that computes a Definition with a real kernel."""

    kind: Literal["flashinfer", "sglang", "torch"]
    api: str
    """The function or class it is about, dotted."""
    body: str
    """Source with `def run`, indented or not; without imports and constants.

    A `def setup` beside it takes the same inputs, plans, and returns what `run` then takes as `state`.
    """
    imports: tuple[str, ...] = ()
    """Import lines beside `import torch`."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    capabilities: tuple[int, ...] = AMPERE_ON
    """The GPUs that have the kernel."""

    @property
    def has_setup(self) -> bool:
        """Whether planning is declared apart from the run."""
        return "def setup(" in self.body

    @property
    def source(self) -> str:
        """The module, as a Solution holds it."""
        imports = "\n".join(_ordered(("import torch", *self.imports)))
        blocks = [imports, *([self._constants()] if self.constants else [])]
        return "\n\n".join(blocks) + "\n\n\n" + self._body() + "\n"

    def function(self, name: str) -> str:
        """Write a function that imports what the wrapper needs and gives its `run`, as a test holds it."""
        body = self._body().replace("\n\n\n", "\n\n")
        blocks = ["\n".join(_ordered(self.imports)), self._constants(), body, "return run"]
        return f"def {name}():\n" + textwrap.indent("\n\n".join(block for block in blocks if block), "    ") + "\n"

    def _constants(self) -> str:
        return "\n".join(f"{name} = {_literal(value)}" for name, value in self.constants.items())

    def _body(self) -> str:
        return textwrap.dedent(self.body).strip()


def _literal(value: object) -> str:
    """Write a value with double quotes, as formatted code has them."""
    text = repr(value)
    return text.replace("'", '"') if '"' not in text else text


def _ordered(imports: tuple[str, ...]) -> list[str]:
    """Put plain imports before those of names."""
    return sorted(imports, key=lambda line: (line.startswith("from "), line))


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruth:
    """The real kernels of one Definition, the best first: FlashInfer's, SGLang's, torch's."""

    wrappers: tuple[Wrapper, ...] = ()
    reason: str = ""
    """Why there is none, or none on some GPUs."""

    def find(self, capability: int) -> Wrapper | None:
        """Find the first wrapper whose kernel a GPU has, such as 90 for Hopper."""
        return next((wrapper for wrapper in self.wrappers if capability in wrapper.capabilities), None)


def no_kernel(reason: str) -> GroundTruth:
    """Say that there is no kernel to compare with, and why."""
    return GroundTruth(reason=reason)
