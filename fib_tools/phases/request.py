"""What every phase is asked: a model, and the serving configurations of interest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fib_tools.errors import PathError, RequestError
from fib_tools.op_types.registry import list_op_types
from fib_tools.sources.cookbook import find_serving_configs, load_bundled_cookbook

__all__ = [
    "ConfigOption",
    "EpOption",
    "HardwareOption",
    "ModelArgument",
    "ModelRequest",
    "OpTypesOption",
    "PageSizesOption",
    "RepoOption",
    "SglangPathOption",
    "TpOption",
    "check_hardware",
    "check_op_types",
    "check_path",
]

_LARGEST_GROUP = 1024
"""GPUs over which one layer is cut; far beyond any deployment."""
_LARGEST_PAGE = 4096

ModelArgument = Annotated[
    str, Field(description="A known name (kimi-k2), a Hugging Face repository (org/name) or a folder with config.json.")
]
RepoOption = Annotated[str | None, Field(description="Hugging Face repository to read config.json from.")]
ConfigOption = Annotated[Path | None, Field(description="A config.json to use instead of any other source.")]
TpOption = Annotated[
    tuple[int, ...] | None, Field(description="Tensor-parallel sizes; the cookbook's NVIDIA ones if left out.")
]
EpOption = Annotated[tuple[int, ...] | None, Field(description="Expert-parallel sizes, crossed with the TP sizes.")]
PageSizesOption = Annotated[
    tuple[int, ...] | None, Field(description="KV page sizes; those the engine chooses if left out.")
]
HardwareOption = Annotated[
    str | None, Field(description="Only the cookbook's configurations of this GPU, such as H200.")
]
OpTypesOption = Annotated[tuple[str, ...] | None, Field(description="Only kernels of these op_types.")]
SglangPathOption = Annotated[
    Path | None, Field(description="SGLang's source: a clone, an installed package or an unpacked wheel.")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRequest:
    """The model and configurations that an operation was asked for."""

    model: str
    hf_repo_id: str | None = None
    config: Path | None = None
    tp_list: tuple[int, ...] | None = None
    ep_list: tuple[int, ...] | None = None
    page_sizes: tuple[int, ...] | None = None
    hardware: str | None = None
    sglang_path: Path | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no deployment has.

        Raises:
            RequestError: naming the option.
        """
        _check_sizes("--tp-list", self.tp_list, largest=_LARGEST_GROUP)
        _check_sizes("--ep-list", self.ep_list, largest=_LARGEST_GROUP)
        _check_sizes("--page-sizes", self.page_sizes, largest=_LARGEST_PAGE)
        for path in (self.config, self.sglang_path):
            check_path(path)


def _check_sizes(option: str, sizes: tuple[int, ...] | None, *, largest: int) -> None:
    todo = f"use whole numbers from 1 to {largest}"
    if sizes is not None and not sizes:
        raise RequestError(f"{option} holds no value", todo=todo)
    for size in sizes or ():
        if not 1 <= size <= largest:
            raise RequestError(f"{option} holds {size}", todo=todo)


def check_path(path: Path | None) -> None:
    """Refuse a path that the system cannot even be asked for.

    Raises:
        PathError: it holds a NUL.
    """
    if path is not None and "\0" in str(path):
        raise PathError(f"{str(path)!r} holds a NUL character", todo="pass another path")


def check_op_types(op_types: Collection[str] | None) -> None:
    """Refuse an op_type that no kernel has: it would select nothing.

    Raises:
        RequestError: with those there are.
    """
    known = [entry.name for entry in list_op_types()]
    for name in op_types or ():
        if name not in known:
            raise RequestError(f"no op_type {name!r}", todo=f"use {', '.join(known)}")


def check_hardware(hardware: str | None, *, model: str | None = None) -> None:
    """Refuse a GPU of which the cookbook does not know, or on which it does not serve the model that it knows.

    Raises:
        RequestError: with the GPUs there are.
    """
    if hardware is None:
        return
    configs = [config for config in load_bundled_cookbook().configs if config.is_nvidia]
    _require(hardware, (config.hardware for config in configs), f"no GPU {hardware!r} in the sgl-cookbook")
    if model is not None:
        served = [config.hardware for config in find_serving_configs(model)]
        _require(hardware, served or [hardware], f"the sgl-cookbook does not serve {model} on {hardware}")


def _require(hardware: str, names: Iterable[str | None], what: str) -> None:
    known = sorted({name for name in names if name})
    if hardware.casefold() not in {name.casefold() for name in known}:
        raise RequestError(what, todo=f"use {', '.join(known)}, or leave --hardware out and pass --tp-list")
