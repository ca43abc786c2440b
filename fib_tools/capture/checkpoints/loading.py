"""A transformers model with the first layers of a checkpoint.

>>> checkpoint = open_checkpoint(Path("Llama-3.1-8B"))
>>> model = load_model(checkpoint, layers=2)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.assignment import Assignment, plan_assignments
from fib_tools.capture.checkpoints.building import build_empty, fill_computed_buffers, plan_dtypes, set_tensor
from fib_tools.capture.checkpoints.configs import count_layers, cut_config
from fib_tools.capture.checkpoints.placement import Placement, place_on, plan_placement
from fib_tools.capture.checkpoints.stored import Checkpoint
from fib_tools.errors import ConfigError, FormatError, RequestError

if TYPE_CHECKING:
    import torch

__all__ = ["load_model", "parse_dtype"]

_TABLES = 1 << 30
"""Bytes that a model may compute beside its weights, rotary tables for instance; a config could ask for any number."""


def load_model(
    checkpoint: Checkpoint,
    *,
    layers: int | None = None,
    dtype: torch.dtype | str = "bfloat16",
    device: str = "cpu",
    attention: str = "eager",
    spread: Path | None = None,
) -> Any:
    """Load the first layers with their embedding and head, and read only what they need.

    All names and shapes are compared before the first value is read; one tensor is converted at a time.
    Where file and model agree in dtype, a parameter on the CPU is a view of the mapped file: its first use reads the disk.
    With a folder to `spread` into, parts go where there is room for them, to GPUs, the host's memory or files in there.

    Raises:
        ConfigError: transformers cannot build the model.
        FormatError: a tensor is missing, left over, there twice, or of another shape.
        RequestError: the model has fewer layers, or the dtype is none that weights can have.
    """
    import torch

    kind = parse_dtype(dtype)
    _check_size(checkpoint)
    settings = cut_config(checkpoint.config, layers)
    whole = build_empty(checkpoint.config, dtype=kind, attention=attention, where=checkpoint.origin)
    model = build_empty(settings, dtype=kind, attention=attention, where=checkpoint.origin)
    plan = plan_assignments(checkpoint, model=model, whole=whole)
    del whole
    dtypes = plan_dtypes(model, kind)
    placement = place_on(device) if spread is None else plan_placement(model, spread)
    with torch.no_grad():
        for assignment in plan.assignments:
            _assign(model, assignment, dtypes, placement)
    model.tie_weights(missing_keys=set(plan.tied), recompute_mapping=False)
    limit = checkpoint.bytes + _TABLES
    fill_computed_buffers(model, device="cpu" if spread else device, limit_bytes=limit, where=checkpoint.origin)
    _check_filled(model, checkpoint)
    placement.finish(model)
    return model


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Give the dtype of a name that weights can have.

    Raises:
        RequestError: it is none.
    """
    import torch

    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if kind not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise RequestError(
            f"a model cannot be loaded as {dtype!r}", todo="ask for bfloat16, float16, float32 or float64"
        )
    return kind


def _check_size(checkpoint: Checkpoint) -> None:
    """Refuse a config with more layers than there are tensors, before anything is built from it."""
    total = count_layers(checkpoint.config)
    if total > len(checkpoint.tensors):
        raise ConfigError(
            f"the config asks for {total} layers, and the files hold {len(checkpoint.tensors)} tensors",
            where=checkpoint.origin,
            todo="take the config that was published with the weights",
        )


def _assign(model: Any, assignment: Assignment, dtypes: dict[str, torch.dtype], placement: Placement) -> None:
    dtype = dtypes[assignment.targets[0]]
    for name, value in assignment.convert(model, lambda stored: stored.read(dtype)).items():
        set_tensor(model, name, placement.put(name, value.to(dtypes[name])))


def _check_filled(model: Any, checkpoint: Checkpoint) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.device.type == "meta":
            raise FormatError(
                f"nothing has filled {name!r} of the model",
                where=checkpoint.origin,
                todo="report it with the model's name: fib-tools does not know how this model is stored",
            )
