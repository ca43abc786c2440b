"""On what something was measured."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

__all__ = ["describe_machine"]


def describe_machine(packages: Iterable[str]) -> str:
    """Name the GPU, and the versions of packages."""
    import torch

    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{device}, {', '.join(found)}"
