"""The documents about one model: its architecture, where SGLang implements it, and which Definition each module has.

`model_architecture.json`, `sglang_implementation.json` and `model_analysis_<slug>.json`, beside `model_config.json`,
which is the model's own config.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.modules_traced import TracedModule
from fib_tools.model.base import Model, NonEmpty
from fib_tools.model.kernel import Disagreement
from fib_tools.model.manifest import SourceVersion
from fib_tools.sources.sglang import StackedParam

__all__ = [
    "AnalysedKernel",
    "AnalysedModule",
    "Analysis",
    "Architecture",
    "ConfigOrigin",
    "Implementation",
    "ImplementedModule",
    "KernelCalls",
    "ModuleInfo",
    "Unmapped",
]


class ConfigOrigin(Model):
    """Which config everything was read from."""

    repo_id: str | None
    revision: str | None
    """The commit on the Hub; None where the copy does not say it."""
    origin: NonEmpty
    """`hub`, `cache`, `registry` (bundled), `file` or `local`."""
    location: NonEmpty
    sha256: NonEmpty


class ModuleInfo(Model):
    """A module of the tree."""

    key: NonEmpty
    path: NonEmpty
    parent: str | None
    type: Literal["block", "layer"]
    count: int
    layers: str
    """Such as `0-2, 5`; `none` outside of the layers."""


class Architecture(Model):
    """What a model is made of, by its config and by running transformers' code of it without weights."""

    format: Literal[1] = 1
    model: NonEmpty
    config: ConfigOrigin
    architecture: NonEmpty
    facts: ModelFacts
    parameter_count: int | None
    """As transformers builds it; None without a trace."""
    traced_by: str
    """The version of transformers and its class, or why there is no trace."""
    modules: tuple[ModuleInfo, ...]
    traced: tuple[TracedModule, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]


class ImplementedModule(Model):
    """A line of SGLang that builds a module."""

    key: NonEmpty
    at: NonEmpty
    """`file:line`."""
    class_name: NonEmpty
    attribute: NonEmpty
    linear: NonEmpty
    """The class of the layer that it is given."""


class KernelCalls(Model):
    """What SGLang does with FlashInfer's API of a kernel."""

    name: NonEmpty
    fi_api: str | None
    sgl_status: NonEmpty
    call_sites: tuple[str, ...]


class Implementation(Model):
    """Where SGLang serves a model."""

    format: Literal[1] = 1
    model: NonEmpty
    architecture: NonEmpty
    sglang: SourceVersion
    """The version that was read, and from where."""
    commit: str | None
    """Of the clone that was read."""
    file: str | None
    """None: SGLang serves no such architecture."""
    line: int | None
    class_name: str | None
    files: tuple[str, ...]
    """Its file, then those it takes classes from."""
    modules: tuple[ImplementedModule, ...]
    fused: tuple[StackedParam, ...]
    kernels: tuple[KernelCalls, ...]


class AnalysedKernel(Model):
    """A kernel that a module calls."""

    name: NonEmpty
    """The Definition's canonical name."""
    op_type: NonEmpty
    definition: str | None
    """The dataset's Definition of this kernel, whatever its name; None: it has none."""
    reason: str = ""
    """Why there is none."""
    tp: tuple[int, ...]
    ep: tuple[int, ...]
    page_sizes: tuple[int, ...]
    stages: tuple[str, ...]


class AnalysedModule(ModuleInfo):
    """A module and its Definitions."""

    definitions: tuple[str, ...]
    kernels: tuple[AnalysedKernel, ...]


class Unmapped(Model):
    """Something of the model that no Definition describes."""

    subject: NonEmpty
    module: str | None = None
    """The key of the module it is in."""
    reason: NonEmpty


class Analysis(Model):
    """Which Definition each module has, and what has none."""

    format: Literal[1] = 1
    model: NonEmpty
    config: ConfigOrigin
    sources: dict[str, SourceVersion] = Field(default_factory=dict)
    serving: tuple[str, ...]
    modules: tuple[AnalysedModule, ...]
    unmapped: tuple[Unmapped, ...]
