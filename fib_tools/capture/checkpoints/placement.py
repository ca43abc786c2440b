"""Where each part of a model lies: all on one device, or as accelerate plans it for a model that is too large for that.

A plan fills the GPUs, then the host's memory, and leaves the rest to the disk. What lies there is memory mapped to a file
whose name is gone, so that nothing is left of it when this process ends; to run, accelerate brings it to a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.errors import MissingDependencyError
from fib_tools.host.files import storage_errors, temporary_sibling

if TYPE_CHECKING:
    import torch

__all__ = ["Placement", "place_on", "plan_placement"]

_DISK = "disk"
_HOST = "cpu"

Device = str | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Devices by the paths of modules; that of the longest path counts."""

    devices: Mapping[str, Device]
    folder: Path | None = None
    """For what lies on the disk."""

    def put(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Put a parameter where it belongs."""
        device = self._find(name)
        return self._map(value) if device == _DISK else value.to(device)

    def _find(self, name: str) -> Device:
        paths = [path for path in self.devices if not path or name == path or name.startswith(f"{path}.")]
        return self.devices[max(paths, key=len)]

    def _map(self, value: torch.Tensor) -> torch.Tensor:
        """Copy a tensor into a file of its own; room for it is taken first, for want of it shows too late in mapped memory.

        Raises:
            StorageError: the disk has no room for it.
        """
        import torch

        if self.folder is None or not value.numel():
            return value
        path = temporary_sibling(self.folder / "weight")
        with storage_errors(path):
            try:
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, value.nbytes)
                mapped = torch.from_file(str(path), shared=True, size=value.numel(), dtype=value.dtype)
            finally:
                path.unlink(missing_ok=True)
        return mapped.view(value.shape).copy_(value)

    def finish(self, model: Any) -> None:
        """Have what lies elsewhere brought to a GPU when it is called; where there is none, nothing has to be."""
        devices = {path: _HOST if device == _DISK else device for path, device in self.devices.items()}
        if len(set(devices.values())) == 1:
            model.to(next(iter(devices.values())))
            return
        from accelerate import dispatch_model

        dispatch_model(model, devices, skip_keys=model._skip_keys_device_placement)  # noqa: SLF001  # as transformers does


def place_on(device: str) -> Placement:
    """Place all of a model on one device."""
    return Placement(devices={"": device})


def plan_placement(model: Any, folder: Path) -> Placement:
    """Plan where the parts of a model on the meta device go, by how much memory each device has left.

    Raises:
        MissingDependencyError: accelerate is not installed.
    """
    try:
        from accelerate import infer_auto_device_map
    except ImportError as error:
        install = "pip install 'fib-tools[trace]'"
        raise MissingDependencyError("accelerate", purpose="--device-map auto", install=install) from error
    whole = list(model._no_split_modules or ())  # noqa: SLF001  # modules that one device has to hold, by transformers
    devices = infer_auto_device_map(model, max_memory=_measure_room(model, whole), no_split_module_classes=whole)
    return Placement(devices=devices, folder=folder)


def _measure_room(model: Any, whole: list[str]) -> dict[Device, int]:
    from accelerate.utils import get_balanced_memory

    room: dict[Device, int] = get_balanced_memory(model, no_split_module_classes=whole)
    return room
