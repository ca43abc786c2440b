"""Puts the hook into modules as they are imported: FlashInfer's traces, its decorator, and torch's matrix products."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from . import light, skipping, stating, watching
from .recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

__all__ = ["hook_traces", "install"]

_TEMPLATES = "flashinfer.trace.template"


def install(
    folder: Path, *, skipped: Iterable[str] = (), watched: Iterable[str] = (), is_light: bool = False
) -> Recorder:
    """Hook what is imported from now on; dumps and calls go below `folder`.

    The kernels of `skipped` do not run; the functions of `watched`, by dotted name, are recorded. With `is_light`
    FlashInfer's level-10 dumps leave out the values of large tensors.
    """
    recorder = Recorder(folder)
    names = frozenset(skipped)
    steps: dict[str, Callable[[ModuleType], None]] = {
        _TEMPLATES: functools.partial(_after_template, recorder=recorder),
        "flashinfer.api_logging": functools.partial(_after_logging, names=names, recorder=recorder, is_light=is_light),
    }
    functions: dict[str, list[str]] = {}
    for symbol in watched:
        module, _, name = symbol.rpartition(".")
        functions.setdefault(module, []).append(name)
    for module, found in functions.items():
        steps.setdefault(module, functools.partial(watching.watch_functions, names=found, recorder=recorder))
    sys.meta_path.insert(0, _Finder(steps, recorder))
    return recorder


def _after_logging(module: ModuleType, *, names: frozenset[str], recorder: Recorder, is_light: bool) -> None:
    if is_light:
        light.hook_light_dumps(module, recorder=recorder)
    stating.hook_dumps(module, recorder=recorder)
    skipping.hook_decorator(module, names=names, recorder=recorder)


def _after_template(module: ModuleType, *, recorder: Recorder) -> None:
    hook_traces(module, recorder)
    watching.watch_torch(recorder)


def hook_traces(module: ModuleType, recorder: Recorder) -> None:
    """Have every automatic trace go through the recorder; one with a folder of its own is left as it is."""
    template_class = module.TraceTemplate
    original = template_class.build_fi_trace_fn
    if getattr(original, "is_fib_hook", False):
        return

    @functools.wraps(original)
    def build_fi_trace_fn(self: Any, fi_api: str) -> Callable[..., dict[str, Any]]:
        inner = original(self, fi_api)

        @functools.wraps(inner)
        def fi_trace(save_dir: Any = None, name: str | None = None, **kwargs: Any) -> dict[str, Any]:
            if save_dir is not None:
                found: dict[str, Any] = inner(save_dir=save_dir, name=name, **kwargs)
                return found
            return recorder.record(functools.partial(inner, name=name), fi_api, kwargs, template=self)

        return fi_trace

    build_fi_trace_fn.is_fib_hook = True  # type: ignore[attr-defined]
    template_class.build_fi_trace_fn = build_fi_trace_fn
    recorder.note("hooked", {"module": module.__name__, "file": str(module.__file__)})


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: it has a step run after the import of some modules."""

    def __init__(self, steps: Mapping[str, Callable[[ModuleType], None]], recorder: Recorder) -> None:
        self._steps = dict(steps)
        self._recorder = recorder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Take the real spec, with a loader that runs the step."""
        step = self._steps.pop(fullname, None)
        if step is None:
            return None
        others = (
            finder for finder in sys.meta_path if finder is not self
        )  # an editable install has a finder of its own
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader, step, self._recorder)
        return spec


def _run_after(loader: Any, step: Callable[[ModuleType], None], recorder: Recorder) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        try:
            step(module)
        except Exception:  # noqa: BLE001  # FlashInfer must work whatever became of its parts
            recorder.note("fault", {"step": f"hook on {module.__name__}", "error": traceback.format_exc(limit=4)})
            if module.__name__ == _TEMPLATES:  # then FlashInfer dumps by itself, with nothing repaired
                os.environ.setdefault("FLASHINFER_TRACE_DUMP_DIR", str(recorder.folder / "dumps" / "unhooked"))

    loader.exec_module = exec_module
