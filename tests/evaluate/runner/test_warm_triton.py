from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WARM = """
import os
before = dict(os.environ)
from fib_tools.evaluate._runner.warm_triton import warm_compiler
import triton.knobs
runs = []
knob = triton.knobs.compilation
knob.listener = lambda **said: runs.append(said["cache_hit"])
warm_compiler()
assert dict(os.environ) == before
print(runs)
"""


def test_triton_compiles_a_kernel_anew_and_leaves_no_trace(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        command = [sys.executable, "-c", WARM]
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=100)
        assert found.stdout.split() == ["[False]"]
    assert not list(tmp_path.iterdir())
