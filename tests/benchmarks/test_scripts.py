from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_ASK_EACH = """
import contextlib, io, os, runpy, sys, traceback
import fib_tools.operations, torch  # what most of them import, once for all
sys.path.insert(0, os.path.dirname(sys.argv[1]))
children = {}
for path in sys.argv[1:]:
    child = os.fork()
    if child:
        children[child] = path
        if len(children) < 2:
            continue
        child, status = os.wait()
        children.pop(child)
        continue
    sys.argv = [path, "--help"]
    said, status = io.StringIO(), 1
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc(file=said)
    name = os.path.basename(path)
    if status or not said.getvalue().startswith(f"usage: {name}"):
        os.write(1, f"{name}: {status!r}: {said.getvalue()[-500:]}\\n".encode())
    os._exit(0)
for _ in children:
    os.wait()
"""


def test_every_script_says_how_it_is_used_where_there_is_no_gpu() -> None:
    scripts = [str(path) for path in sorted(BENCHMARKS.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
    assert len(scripts) > 30
    ran = subprocess.run(
        [sys.executable, "-c", _ASK_EACH, *scripts], capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert (ran.stdout, ran.returncode) == ("", 0), ran.stderr
