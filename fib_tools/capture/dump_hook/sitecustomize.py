"""Run by Python at the start of every process of the engine: prepares the hook, and hands on to another sitecustomize.

It does nothing unless FIB_DUMP_DIR names a folder, and no fault of it may stop the program that it runs in.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import traceback
from pathlib import Path

__all__: tuple[str, ...] = ()

_PACKAGE = "fib_dump_hook"


def _load_package(folder: Path) -> None:
    """Import this folder as a package of its own, without the package that it is a part of."""
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)


def _prepare(folder: Path) -> None:
    _load_package(folder)
    importlib.import_module(f"{_PACKAGE}.install").install(
        Path(os.environ["FIB_DUMP_DIR"]),
        skipped=_read_list("FIB_DUMP_SKIP"),
        watched=_read_list("FIB_DUMP_WATCH"),
        is_light=bool(os.environ.get("FIB_DUMP_LIGHT")),
    )


def _read_list(name: str) -> list[str]:
    return [item for item in os.environ.get(name, "").split(",") if item]


def _hand_on(folder: Path) -> None:
    """Run the sitecustomize that this one stands before, if there is one."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize" and os.environ.get("FIB_DUMP_DIR"):
    for _step in (_prepare, _hand_on):
        try:
            _step(Path(__file__).resolve().parent)
        except Exception:  # noqa: BLE001  # the program must run as it would without this file
            traceback.print_exc()
            # then FlashInfer dumps by itself, with nothing repaired
            os.environ.setdefault(
                "FLASHINFER_TRACE_DUMP_DIR", str(Path(os.environ["FIB_DUMP_DIR"]) / "dumps" / "unhooked")
            )
