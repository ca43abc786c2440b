"""Triton's compiler, made ready where runners are forked from: two thirds of a process's first compilation are its start.

It imports its passes, hashes its own files and asks `ptxas` for its version, once in each process.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaUtils
from triton.compiler import ASTSource

__all__ = ["warm_triton"]

_CACHE = "TRITON_CACHE_DIR"


@triton.jit  # type: ignore[untyped-decorator]  # it has no types
def _copy(source: Any, target: Any) -> None:
    tl.store(target, tl.load(source))


def warm_triton() -> None:
    """Load the C module that every process would compile anew, and compile a kernel; no device is needed for either."""
    CudaUtils()
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_CACHE] = folder  # where it finds nothing, so that it does compile
        try:
            pointers = {"source": "*fp32", "target": "*fp32"}
            triton.compile(ASTSource(_copy, pointers, {}), target=GPUTarget("cuda", 90, 32))
        finally:
            os.environ.pop(_CACHE)
            if before is not None:
                os.environ[_CACHE] = before
