"""Every op_type this project knows, found by looking at the files of the package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import fib_tools.op_types
from fib_tools.errors import RequestError
from fib_tools.op_types.base import KernelType, OpType

__all__ = ["find_kernel_type", "find_op_type", "get_kernel_type", "list_kernel_types", "list_modules", "list_op_types"]


def list_modules() -> tuple[str, ...]:
    """Name the modules of the package, for a process that wants them loaded before it forks."""
    names = sorted(module.name for module in pkgutil.iter_modules(fib_tools.op_types.__path__))
    return tuple(f"fib_tools.op_types.{name}" for name in names)


@cache
def list_op_types() -> tuple[OpType, ...]:
    """Load the `OP_TYPE` of every module that has one, in order of name."""
    modules = [importlib.import_module(name) for name in list_modules()]
    return tuple(module.OP_TYPE for module in modules if hasattr(module, "OP_TYPE"))


@cache
def _kernel_types() -> dict[str, KernelType[Any]]:
    return {kernel.id: kernel for op_type in list_op_types() for kernel in op_type.kernels}


def list_kernel_types() -> tuple[KernelType[Any], ...]:
    """Return all kernel types, in order of op_type."""
    return tuple(_kernel_types().values())


def find_op_type(name: str) -> OpType | None:
    """Find an op_type by the folder name of its Definitions."""
    return next((op_type for op_type in list_op_types() if op_type.name == name), None)


def find_kernel_type(kernel_id: str) -> KernelType[Any] | None:
    """Find a kernel type by its id."""
    return _kernel_types().get(kernel_id)


def get_kernel_type(kernel_id: str) -> KernelType[Any]:
    """Return a kernel type by its id.

    Raises:
        RequestError: when there is none.
    """
    kernel = find_kernel_type(kernel_id)
    if kernel is None:
        raise RequestError(f"no kernel type {kernel_id!r}", todo=f"use one of: {', '.join(_kernel_types())}")
    return kernel
