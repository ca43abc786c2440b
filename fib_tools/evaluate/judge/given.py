"""Inputs that a Workload gives: scalars by value, tensors from the dataset's blobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fib_tools.errors import FormatError
from fib_tools.host.paths import confine

__all__ = ["load_given_inputs"]


def load_given_inputs(inputs: Mapping[str, Any], *, device: str, root: Path) -> dict[str, Any]:
    """Load the inputs that a workload gives: scalars by value, tensors from the dataset's blobs.

    Raises:
        FormatError: a blob has no such tensor.
        PathError: a blob's path leaves the dataset.
    """
    from safetensors import safe_open

    fixed: dict[str, Any] = {}
    for name, spec in inputs.items():
        if spec["type"] == "scalar":
            fixed[name] = spec["value"]
        elif spec["type"] == "safetensors":
            path = confine(root, spec["path"])
            with safe_open(path, framework="pt", device="cpu") as blob:
                if spec["tensor_key"] not in blob.keys():  # noqa: SIM118  # it is no mapping
                    raise FormatError(f"no tensor {spec['tensor_key']!r} in it", where=spec["path"])
                fixed[name] = blob.get_tensor(spec["tensor_key"]).to(device)
    return fixed
