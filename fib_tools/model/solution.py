"""A Solution: source code that claims to compute what a Definition says."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import PurePosixPath

from pydantic import Field, model_validator

from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.canonical import content_hash

__all__ = ["BASELINE", "Binding", "BuildSpec", "Language", "Solution", "SourceFile"]

BASELINE = "baseline"
"""The author of the kernels that people run: they may call the libraries whose kernels are measured."""


class Language(str, Enum):
    """What a Solution is written in."""

    PYTHON = "python"
    TRITON = "triton"
    CPP = "cpp"
    CUDA = "cuda"
    TILELANG = "tilelang"


class Binding(str, Enum):
    """How compiled code is bound to Python."""

    TVM_FFI = "tvm-ffi"
    TORCH = "torch"


class SourceFile(Model):
    """One file of a Solution."""

    path: NonEmpty
    """Relative to the Solution's own folder; never absolute, never with `..`."""
    content: NonEmpty

    @model_validator(mode="after")
    def _validate_path_stays_inside(self) -> SourceFile:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or "\\" in self.path or "\0" in self.path:
            raise ValueError(f"source path {self.path!r} leaves the solution's folder")
        return self


_CAPABILITY = re.compile(r"sm_?(\d+)[af]?")


class BuildSpec(Model):
    """What it takes to build and call a Solution."""

    language: Language
    target_hardware: list[NonEmpty] = Field(min_length=1)
    entry_point: NonEmpty
    """`file::function`, with exactly one `::`."""
    dependencies: list[NonEmpty] = Field(default_factory=list)
    destination_passing_style: bool = True
    """True: outputs are the last arguments; false: outputs are returned."""
    binding: Binding | None = None

    @model_validator(mode="after")
    def _validate_entry_point(self) -> BuildSpec:
        if self.entry_point.count("::") != 1:
            raise ValueError(f"entry point {self.entry_point!r} is not file::function")
        return self

    def fits(self, capability: int) -> bool:
        """Tell whether it is made for a GPU: only one that names compute capabilities, such as sm90, can say that it is not.

        A `capability` (major times ten plus minor) of 0 is not known, and everything fits it.
        """
        named = [_CAPABILITY.fullmatch(hardware) for hardware in self.target_hardware]
        return not capability or any(found is None or int(found[1]) == capability for found in named)

    @property
    def fits_cpu(self) -> bool:
        """Tell whether it can run without a GPU: it names `cpu`, or is plain Python and not for compute capabilities alone."""
        if "cpu" in map(str.casefold, self.target_hardware):
            return True
        return self.language is Language.PYTHON and not all(map(_CAPABILITY.fullmatch, self.target_hardware))


class Solution(Model):
    """A named, authored implementation of one Definition."""

    name: NonEmpty
    definition: NonEmpty
    author: NonEmpty
    """`baseline` is the FlashInfer wrapper."""
    description: str | None = None
    spec: BuildSpec
    sources: list[SourceFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _validate_sources(self) -> Solution:
        paths = [source.path for source in self.sources]
        if len(set(paths)) != len(paths):
            raise ValueError("two sources have the same path")
        entry_file = self.spec.entry_point.partition("::")[0]
        if entry_file not in paths:
            raise ValueError(f"entry file {entry_file!r} is not among the sources")
        return self

    @property
    def hash(self) -> str:
        """Identify the Solution by everything that changes what runs, calling style and target included."""
        return content_hash({"definition": self.definition, "spec": self.spec, "sources": self.sources})
