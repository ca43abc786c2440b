"""A transformers model with made-up weights, from its config alone: the same calls as with real ones, and other values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.building import build_empty, build_random, find_text, plan_dtypes
from fib_tools.capture.checkpoints.configs import cut_config
from fib_tools.errors import RequestError
from fib_tools.host.cpu import read_memory_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["make_dummy"]

_SEED = 0


def make_dummy(
    config: Any,
    *,
    where: str,
    layers: int | None = None,
    dtype: torch.dtype,
    device: str = "cpu",
    attention: str = "eager",
) -> Any:
    """Make the first layers of a config's language model, with weights as before training, the same each time.

    Raises:
        ConfigError: transformers cannot build the model.
        RequestError: the model has fewer layers, or does not fit into memory.
    """
    import torch

    config = cut_config(find_text(config), layers)
    empty = build_empty(config, dtype=dtype, attention=attention, where=where)
    _check_memory(empty, device, layers)
    devices = [] if device == "cpu" else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(_SEED)
        model = build_random(config, dtype=dtype, attention=attention, where=where, device=device)
    for name, kept in plan_dtypes(empty, dtype).items():
        tensor = model.get_parameter_or_buffer(name)
        tensor.data = tensor.data.to(kept)
    return model.requires_grad_(requires_grad=False)


def _check_memory(empty: Any, device: str, layers: int | None) -> None:
    import torch

    size = sum(each.nbytes for each in (*empty.parameters(), *empty.buffers()))
    of_host = read_memory_bytes()
    room = of_host if device == "cpu" else torch.cuda.mem_get_info()[0]
    if size > room:
        raise RequestError(
            f"the weights take {size / 1e9:.0f} GB, and there are {room / 1e9:.0f} GB of memory",
            where=f"--device {device}",
            todo=_advise(layers, has_other=device != "cpu" and size <= of_host),
        )


def _advise(layers: int | None, *, has_other: bool) -> str:
    """Say what helps, where the first layers alone were asked for as well."""
    remedies = ["pass --device cpu"] if has_other else []
    if layers is None:
        remedies.append("pass --layers: others call the same kernels")
    elif layers > 1:
        remedies.append("take fewer layers: others call the same kernels")
    return ", or ".join(remedies) or "one layer is too large for this machine: take one with more memory"
