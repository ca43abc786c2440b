"""From a Solution's sources to a function: Python and Triton are imported, C++ and CUDA are compiled."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fib_tools.errors import MissingDependencyError, RequestError
from fib_tools.evaluate._runner.refusals import RuleError
from fib_tools.evaluate.rules.source_native import check_symbols
from fib_tools.host.env import find_nvcc
from fib_tools.model.solution import Binding, Language, Solution

__all__ = ["Built", "build_reference", "build_solution"]

_HOST_SUFFIXES = (".cpp", ".cc", ".cxx", ".c")
_DEVICE_SUFFIXES = (".cu",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What can be called."""

    run: Callable[..., Any]
    setup: Callable[..., Any] | None = None
    """A plan of what `run` will do, from structure and scalars alone; its result is passed as `state`."""


def build_reference(source: str, name: str, folder: Path) -> Built:
    """Load a Definition's reference."""
    module = _import_file(_write(folder, "reference.py", source), f"fib_reference_{name}")
    return Built(run=module.run)


def build_solution(solution: Solution, folder: Path, arguments: Sequence[str]) -> Built:
    """Write a Solution's sources into a folder and build what its entry point names; `arguments` are those of a call.

    Raises:
        MissingDependencyError: its compiler is not installed.
        RequestError: it has no such entry point.
    """
    for source in solution.sources:
        _write(folder, source.path, source.content)
    file, _, symbol = solution.spec.entry_point.partition("::")
    if solution.spec.language in {Language.CPP, Language.CUDA}:
        binding = solution.spec.binding or Binding.TVM_FFI
        module = _compile_torch(solution, folder) if binding is Binding.TORCH else _compile_tvm_ffi(solution, folder)
        _check_symbols(folder / "_build")
    else:
        module = _import_source(folder, file)
    run = getattr(module, symbol, None)
    if not callable(run):
        raise RequestError(f"{file} has no function {symbol!r}", todo="name the function in spec.entry_point")
    setup = getattr(module, "setup", None)
    _check_arity(run, solution, arguments, state={"state": None} if callable(setup) else {})
    return Built(run=run, setup=setup if callable(setup) else None)


def _check_arity(
    run: Callable[..., Any], solution: Solution, arguments: Sequence[str], *, state: Mapping[str, None]
) -> None:
    """Refuse a function that cannot be called as its style says; one that does not tell its parameters is tried.

    Raises:
        RequestError: naming the field that says how it is called.
    """
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **state)
    except TypeError:
        writes = solution.spec.destination_passing_style
        style = "outputs are the last arguments" if writes else "outputs are returned"
        raise RequestError(
            f"{solution.spec.entry_point} is {signature}, and is called with ({', '.join([*arguments, *state])}):"
            f" spec.destination_passing_style is {str(writes).lower()}, so {style}",
            todo="change the one or the other",
        ) from None


def _check_symbols(output: Path) -> None:
    """Refuse what asks the system for things that a kernel has no use for, however its text spelled that.

    The compiled objects are read: the library holds what a toolchain links into it statically, which is not the Solution's.

    Raises:
        RuleError: it does, or there is nothing to read (`source-native`).
    """
    objects = sorted(output.rglob("*.o"))
    if not objects:
        raise RuleError("source-native", f"{output.name} has no compiled objects that could be read")
    for path in objects:
        command = ["nm", "--undefined-only", str(path)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # beside the compiler
        undefined = [line.split()[-1] for line in listed.stdout.splitlines() if line.strip()]
        for violation in check_symbols(path.name, undefined):
            raise RuleError(violation.rule.name, violation.detail)


def _write(folder: Path, path: str, content: str) -> Path:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8")
    return target


def _import_source(folder: Path, file: str) -> ModuleType:
    """Import a source as part of a package of all sources, and let them find each other by plain names too."""
    package = ModuleType(folder.name)
    package.__path__ = [str(folder)]
    sys.modules[folder.name] = package
    sys.path.insert(0, str(folder))
    return _import_file(folder / file, ".".join((folder.name, *Path(file).with_suffix("").parts)))


def _import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError(f"{path.name} is no Python file", todo="name a .py file in spec.entry_point")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _sources(solution: Solution, folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    return [str(folder / source.path) for source in solution.sources if source.path.endswith(suffixes)]


def _require_compiler(solution: Solution) -> None:
    purpose = f"building {solution.name}"
    suffixes = {Path(source.path).suffix for source in solution.sources}
    if suffixes & {*_DEVICE_SUFFIXES} and find_nvcc() is None:
        raise MissingDependencyError("nvcc", purpose=purpose, install="install the CUDA toolkit")
    if suffixes & {*_HOST_SUFFIXES, *_DEVICE_SUFFIXES} and shutil.which("ninja") is None:
        raise MissingDependencyError("ninja", purpose=purpose, install="pip install ninja")


def _compile_torch(solution: Solution, folder: Path) -> Any:
    """Build a torch extension, whose functions the sources export with pybind11."""
    from torch.utils import cpp_extension

    _require_compiler(solution)
    output = folder / "_build"
    output.mkdir()
    return cpp_extension.load(
        name="fib_solution",
        sources=_sources(solution, folder, _HOST_SUFFIXES + _DEVICE_SUFFIXES),
        extra_include_paths=[str(folder)],
        extra_cflags=["-O3"],
        extra_cuda_cflags=["-O3", "--use_fast_math"] if _wants_fast_math(solution) else ["-O3"],
        build_directory=str(output),
        verbose=False,
    )


def _wants_fast_math(solution: Solution) -> bool:
    return "use_fast_math" in solution.spec.dependencies


def _compile_tvm_ffi(solution: Solution, folder: Path) -> Any:
    """Build a shared library whose functions the sources export with TVM_FFI_DLL_EXPORT_TYPED_FUNC."""
    try:
        from tvm_ffi import cpp
    except ImportError as error:
        raise MissingDependencyError(
            "apache-tvm-ffi", purpose=f"building {solution.name}", install="pip install apache-tvm-ffi"
        ) from error
    _require_compiler(solution)
    output = folder / "_build"
    output.mkdir()
    module: Any = cpp.load(
        name="fib_solution",
        cpp_files=_sources(solution, folder, _HOST_SUFFIXES) or None,
        cuda_files=_sources(solution, folder, _DEVICE_SUFFIXES) or None,
        extra_cflags=["-O3"],
        extra_cuda_cflags=["-O3"],
        extra_include_paths=[str(folder)],
        build_directory=str(output),
    )
    return module
