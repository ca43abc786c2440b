"""What attention wrappers hold when they run: forward() sets it behind plan(), so that no level-10 dump shows it.

Beside the files of a dumped call: fib_state.json    {"causal": true, "sm_scale": 0.0883, "window_left": -1, ...}
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from .recorder import Recorder

__all__ = ["STATE_FILE", "hook_dumps"]

STATE_FILE = "fib_state.json"
_HELD = ("causal", "sm_scale", "logits_soft_cap", "window_left", "pos_encoding_mode")


def hook_dumps(module: ModuleType, *, recorder: Recorder) -> None:
    """Have FlashInfer's dumps of a wrapper's run() say what the wrapper holds; others are left as they are."""
    original = getattr(module, "_dump_function_inputs", None)
    if original is None:  # a version without level 10
        return

    @functools.wraps(original)
    def dump(func: Any, func_name: str, args: Any, *others: Any, **options: Any) -> Any:
        folder = original(func, func_name, args, *others, **options)
        if folder and func_name.endswith("Wrapper.run") and args:
            try:
                (Path(folder) / STATE_FILE).write_text(json.dumps(_read_state(args[0])), encoding="utf-8")
            except OSError as error:
                recorder.note("fault", {"step": f"the state of {func_name}", "error": str(error)})
        return folder

    module._dump_function_inputs = dump  # type: ignore[attr-defined]  # noqa: SLF001  # there is no public place


def _read_state(wrapper: Any) -> dict[str, Any]:
    held = {name: getattr(wrapper, f"_{name}", ...) for name in _HELD}
    return {name: value for name, value in held.items() if value is None or isinstance(value, (bool, int, float, str))}
