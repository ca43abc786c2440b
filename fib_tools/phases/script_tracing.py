"""A script that knows nothing of this package, watched: `FIB_ENABLE_TRACING=1 FIB_DATASET_PATH=... python script.py`.

A line in site-packages (`fib_tools_tracing.pth`) has Python import this at its start where that variable is set. Nothing
heavy is imported before the script imports transformers itself, and what goes wrong here never stops the script.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fib_tools.errors import FibError
from fib_tools.host.env import read_script_dataset

if TYPE_CHECKING:
    from fib_tools.capture.forward.watch import Watch

__all__ = ["start"]

_AWAITED = "transformers.modeling_utils"
_SAMPLES = 100


def start() -> None:
    """Wait for transformers, if the environment asks for it; what is wrong with the request is told at once."""
    try:
        root = read_script_dataset()
    except FibError as error:
        _tell(str(error))
        return
    if root is not None and not (root / "definitions").is_dir():
        _tell(f"FIB_DATASET_PATH names no dataset: there is no folder definitions in {root}; nothing is watched")
    elif root is not None and not isinstance(sys.meta_path[0], _Finder):
        sys.meta_path.insert(0, _Finder(root))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, once, and has the watch begin when it is there."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._root)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as another does, then begins to watch."""

    def __init__(self, inner: importlib.abc.Loader, root: Path) -> None:
        self._inner, self._root = inner, root

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        try:
            _begin(self._root)
        except Exception:  # noqa: BLE001  # the script must run as it would without this
            traceback.print_exc()


def _begin(root: Path) -> None:
    from fib_tools.capture.forward.observe import observe

    held = ExitStack()
    watch = held.enter_context(observe(page_size=1, new_ones=True))
    atexit.register(_end, root, held, watch)


def _end(root: Path, held: ExitStack, watch: Watch) -> None:
    """Write the Workloads of what was seen, and say what became of it."""
    held.close()
    try:
        _settle(root, watch)
    except FibError as error:
        _tell(str(error))
    except Exception:  # noqa: BLE001  # the script has done its work: its exit status is its own
        traceback.print_exc()


def _settle(root: Path, watch: Watch) -> None:
    from fib_tools.dataset.store import Dataset
    from fib_tools.phases.collect import settle_workloads
    from fib_tools.phases.context import Context, Workspace
    from fib_tools.phases.trace_model import count_padded, match_calls

    dataset = Dataset.open(root)
    tallies = watch.tallies
    collected, missing, unmapped = match_calls(dataset, tallies, _SAMPLES)
    context = Context(workspace=Workspace(root=root.resolve().parent), dataset_override=root)
    # weights and prompts are the script's own affair: whether they are real, nobody here knows
    entries = settle_workloads(context, dataset, collected, origin="synthetic", dry_run=False, adds=True)
    calls = sum(tally.count for tally in tallies)
    written = sum(entry.workloads for entry in entries)
    _tell(f"{calls} calls; {written} Workloads of {len(entries)} Definitions in {root}")
    if padded := count_padded(tallies):
        _tell(f"{padded} calls are of rows that may count padding")
    for each in missing:
        _tell(f"no Definition {each.name} ({each.calls} calls){': ' if each.reason else ''}{each.reason}")
    for other in unmapped:
        would = f", which would be {other.kernel}" if other.kernel else ""
        _tell(
            f"not described: {other.what} ({other.calls} calls of {', '.join(other.shapes[:3])}){would}: {other.reason}"
        )


def _tell(text: str) -> None:
    sys.stderr.write(f"fib-tools: {text}\n")
