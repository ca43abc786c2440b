"""Triton's compiler, made ready where runners are forked from: two thirds of a process's first compilation are its start.

It imports its passes, hashes its own files and asks `ptxas` for its version, once in each process.
"""

from __future__ import annotations

import os
import tempfile

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaUtils
from triton.compiler import ASTSource

__all__ = ["warm_compiler", "warm_launcher"]

_CACHE = "TRITON_CACHE_DIR"


@triton.jit
def _copy(source, target):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # Triton reads types itself
    tl.store(target, tl.load(source))


def warm_launcher() -> None:
    """Load the C module that every process would compile anew; the driver must be there."""
    CudaUtils()


def warm_compiler() -> None:
    """Compile a kernel, for which no device is needed."""
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
