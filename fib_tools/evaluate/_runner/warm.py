"""Imported by the process that runners are forked from: what is slow to load, and may be shared by all.

Nothing here may make a CUDA context: a fork could not use it.
"""

from __future__ import annotations

import contextlib
import os

__all__: list[str] = []

with contextlib.suppress(ImportError):
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # else a progress bar of a compiler's leaves a thread behind

with contextlib.suppress(Exception):  # without it all is slower, and nothing else
    if os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        from fib_tools.evaluate._runner.warm_triton import warm_compiler, warm_launcher

        warm_launcher()
        warm_compiler()
