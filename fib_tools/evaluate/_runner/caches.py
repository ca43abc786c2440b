"""Where compilers keep what they make: in the folder of the confined process that runs them, which ends with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["keep_caches_here"]

_CACHES = (
    "CUDA_CACHE_PATH",
    "FLASHINFER_WORKSPACE_BASE",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "TRITON_CACHE_DIR",
    "TVM_FFI_CACHE_DIR",
)


def keep_caches_here(elsewhere: Mapping[str, str]) -> None:
    """Set the compilers' folders, by environment variable, to folders of this process, or to those it may write to."""
    for name in _CACHES:
        os.environ[name] = elsewhere.get(name, str(Path.cwd() / "cache" / name.lower()))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else torch.compile leaves processes behind
