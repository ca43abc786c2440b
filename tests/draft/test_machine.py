from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.draft.machine import blames_machine, check_machine
from fib_tools.errors import RequestError
from fib_tools.model.solution import Language


def put(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "nvcc").write_text("#!/bin/sh\n")
    (folder / "nvcc").chmod(0o755)


@pytest.mark.parametrize("named", ["PATH", "CUDA_HOME", "CUDA_PATH"])
def test_a_compiler_is_found_where_extensions_look_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    if named != "PATH":
        monkeypatch.delenv("CUDA_HOME")
    with pytest.raises(RequestError, match="there is no nvcc"):
        check_machine(Language.CUDA, "cuda", 90)
    put(tmp_path / "cuda" / "bin")
    monkeypatch.setenv(named, str(tmp_path / "cuda" / "bin" if named == "PATH" else tmp_path / "cuda"))
    check_machine(Language.CUDA, "cuda", 90)


def test_a_gpu_and_a_language_that_runs_on_the_device_are_asked_for() -> None:
    with pytest.raises(RequestError, match="there is no GPU here"):
        check_machine(Language.PYTHON, "cuda", 0)
    with pytest.raises(RequestError, match="triton does not run on a CPU"):
        check_machine(Language.TRITON, "cpu", 0)
    check_machine(Language.PYTHON, "cpu", 0)


@pytest.mark.parametrize(
    ("detail", "is_machine"),
    [
        ("No module named 'triton'", True),
        ("CUDA_HOME environment variable is not set", True),
        ("No module named 'numba'", False),
        ("name 'x' is not defined", False),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_a_draft(detail: str, *, is_machine: bool) -> None:
    assert blames_machine(detail) is is_machine
