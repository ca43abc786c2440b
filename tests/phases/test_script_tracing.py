from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fib_tools.phases.context import Context
from fib_tools.phases.trace_model import trace_model
from tiny_checkpoints import make_llama, write_safetensors

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
ids = torch.arange(3, 9)[None]
with torch.no_grad():
    print(model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0).shape)
"""
START = (ROOT / "fib_tools" / "fib_tools_tracing.pth").read_text(encoding="utf-8")


def run(script: Path, weights: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as Python does where the line stands in site-packages."""
    program = f"{START}\nimport runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FIB_")}
    return subprocess.run(
        [sys.executable, "-c", program, str(script), weights],
        env={**inherited, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "your_script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_a_script_that_knows_nothing_of_it_gives_workloads(context: Context, script: Path, tmp_path: Path) -> None:
    weights = str(write_safetensors(make_llama(), tmp_path / "hf"))
    trace_model(context, weights, max_new_tokens=2, lengths=(4,), create_missing=True)
    before = {path.name: path.read_bytes() for path in context.dataset.root.glob("workloads/gqa_paged/*")}
    root = str(context.dataset.root)
    done = run(script, weights, FIB_ENABLE_TRACING="Yes", FIB_DATASET_PATH=root)
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 9])\n"), done.stderr
    assert "Workloads of" in done.stderr
    after = {path.name: path.read_bytes() for path in context.dataset.root.glob("workloads/gqa_paged/*")}
    assert after.keys() == before.keys()
    assert after != before
    plain = run(script, weights, FIB_DATASET_PATH=root)
    assert (plain.returncode, plain.stdout) == (0, done.stdout)
    assert "fib-tools" not in plain.stderr


def test_what_is_wrong_with_the_request_does_not_stop_the_script(script: Path, tmp_path: Path) -> None:
    weights = str(write_safetensors(make_llama(), tmp_path / "hf"))
    unnamed = run(script, weights, FIB_ENABLE_TRACING="1")
    assert unnamed.returncode == 0
    assert "set FIB_DATASET_PATH" in unnamed.stderr
    nowhere = run(script, weights, FIB_ENABLE_TRACING="1", FIB_DATASET_PATH=str(tmp_path / "none"))
    assert nowhere.returncode == 0
    assert "names no dataset" in nowhere.stderr
