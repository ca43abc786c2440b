"""What every phase is asked: a model, and the serving configurations of interest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

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
]

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
