"""What every phase is asked: a model, and the serving configurations of interest."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.model.base import Model
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import list_op_types
from fib_tools.sources.cookbook import Cookbook, find_serving_configs

__all__ = [
    "ALLOW_SUBMIT",
    "COMMAND_LINE_ONLY",
    "DEFAULTS",
    "NEEDED_BY_AGENTS",
    "ModelArgument",
    "ModelOptions",
    "check_definitions",
    "check_hardware",
    "check_op_types",
    "choose_definitions",
]

COMMAND_LINE_ONLY = "command line only"
"""Marks a parameter, or a group of them, that agents are not offered: it names a place outside the workspace, or says how
to run what has the rights of the user."""

NEEDED_BY_AGENTS = "needed by agents"
"""Marks a parameter that people may leave out, for something else that agents are not offered."""

ALLOW_SUBMIT = "Offer the tools that write outside the workspace: pull requests, issues."
"""What the option of that name is for, at every face that has it."""

_GroupSize = Annotated[int, Field(ge=1, le=1024)]
"""GPUs over which one layer is cut; the largest is far beyond any deployment."""
_PageSize = Annotated[int, Field(ge=1, le=4096)]
_GroupSizes = Annotated[tuple[_GroupSize, ...], Field(min_length=1)]
_PageSizes = Annotated[tuple[_PageSize, ...], Field(min_length=1)]

ModelArgument = Annotated[
    str, Field(description="A known name (kimi-k2), a Hugging Face repository (org/name) or a folder with config.json.")
]


class ModelOptions(Model):
    """Where a model's facts come from, and which of its kernels and serving configurations are of interest."""

    hf_repo_id: str | None = None
    """Hugging Face repository to read config.json from."""
    config: Path | None = None
    """A config.json to use instead of any other source."""
    tp_list: _GroupSizes | None = None
    """Tensor-parallel sizes; the cookbook's NVIDIA ones if left out."""
    ep_list: _GroupSizes | None = None
    """Expert-parallel sizes, crossed with the TP sizes."""
    page_sizes: _PageSizes | None = None
    """KV page sizes; those the engine chooses if left out."""
    hardware: str | None = None
    """Only the cookbook's configurations of this GPU, such as H200."""
    op_types: tuple[str, ...] | None = None
    """Only kernels of these op_types."""
    sglang_path: Path | None = None
    """SGLang's source: a clone, an installed package or an unpacked wheel."""


def check_op_types(op_types: Collection[str] | None) -> None:
    """Refuse an op_type that no kernel has: it would select nothing.

    Raises:
        RequestError: with those there are.
    """
    known = [entry.name for entry in list_op_types()]
    for name in op_types or ():
        if name not in known:
            raise RequestError(f"no op_type {name!r}", todo=f"use {', '.join(known)}")


def check_definitions(names: Collection[str], known: Collection[str], *, where: str) -> None:
    """Refuse a name that no Definition has.

    Raises:
        RequestError: with those that are like it.
    """
    missing = sorted(set(names).difference(known))
    if missing:
        near = difflib.get_close_matches(missing[0], known)
        todo = f"did you mean {' or '.join(near)}?" if near else "see the folder definitions"
        raise RequestError(f"no Definition {missing[0]!r}", where=where, todo=todo)


def choose_definitions(
    loaded: Mapping[str, Definition],
    names: Collection[str] | None,
    op_types: Collection[str] | None = None,
    *,
    where: str,
) -> list[Definition]:
    """Choose the Definitions of a dataset that are asked for, in order of their names.

    Raises:
        RequestError: a name is none of theirs.
    """
    check_definitions(names or (), loaded, where=where)
    return [
        definition
        for name, definition in sorted(loaded.items())
        if (names is None or name in names) and (op_types is None or definition.op_type in op_types)
    ]


def check_hardware(hardware: str | None, cookbook: Cookbook, *, model: str | None = None) -> None:
    """Refuse a GPU of which the cookbook does not know, or on which it does not serve the model that it knows.

    Raises:
        RequestError: with the GPUs there are.
    """
    if hardware is None:
        return
    configs = [config for config in cookbook.configs if config.is_nvidia]
    _require(hardware, (config.hardware for config in configs), f"no GPU {hardware!r} in the sgl-cookbook")
    if model is not None:
        served = [config.hardware for config in find_serving_configs(model, cookbook=cookbook)]
        _require(hardware, served or [hardware], f"the sgl-cookbook does not serve {model} on {hardware}")


def _require(hardware: str, names: Iterable[str | None], what: str) -> None:
    known = sorted({name for name in names if name})
    if hardware.casefold() not in {name.casefold() for name in known}:
        raise RequestError(what, todo=f"use {', '.join(known)}, or leave --hardware out and pass --tp-list")


DEFAULTS = ModelOptions()
