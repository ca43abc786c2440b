from __future__ import annotations

import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench_run import HONEST, norm, solution, workload
from fib_tools.evaluate.inspection import ncu
from fib_tools.evaluate.inspection.ncu import Profile, find_ncu, profile_solution
from fib_tools.evaluate.inspection.sample import Sample, Setting
from fib_tools.host.sandbox import Sandbox

REPORT = Path(__file__).parent / "data" / "ncu_raw.csv"
FAKE = """#!{python} -I
import socket, subprocess, sys

arguments = sys.argv[1:]
for unknown in {unknown!r}:
    if unknown in arguments:
        sys.exit(f"==ERROR== unrecognised option '{{unknown}}'. Use --help for further details.")
place = arguments.index("--log-file")
done = subprocess.run(arguments[place + 2 :], check=False, stdout=subprocess.PIPE, text=True)
said = [f"target: {{done.returncode}} {{done.stdout.strip()}}"]
for name, escape in (
    ("write", lambda: open({outside!r}, "w")),
    ("connect", lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2)),
):
    try:
        escape()
        said.append(f"{{name}}: done")
    except OSError as error:
        said.append(f"{{name}}: denied")
print("; ".join(said))
if {reports}:
    with open(arguments[place + 1], "w") as out:
        out.write(open({report!r}).read())
"""
TALKS = (
    HONEST
    + """
try:
    open({outside!r}, "w")
except OSError:
    print("confined")
"""
)


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def profile(
    tmp_path: Path, port: int, *, reports: bool, seconds: float = 60.0, unknown: tuple[str, ...] = ()
) -> Profile:
    """Profile with a stand-in for ncu, which starts its target and says what it could do besides."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program, outside = programs / "ncu", str(tmp_path / "outside")
    (programs / "report.csv").write_bytes(REPORT.read_bytes())
    names = {"python": sys.executable, "outside": outside, "port": port, "report": str(programs / "report.csv")}
    program.write_text(FAKE.format(**names, reports=reports, unknown=unknown), encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    setting = Setting(definition=norm(), tolerances={}, device="cpu", dataset=tmp_path, seconds=seconds)
    sample = Sample(solution=solution("s", TALKS.replace("{outside!r}", repr(outside))), workload=workload(8), seed=7)
    packages = tuple(Path(entry) for entry in sys.path if entry and Path(entry).is_dir())
    with Sandbox(("torch", *ncu.PRELOAD), import_paths=packages, readable=(programs,)) as sandbox:
        found = profile_solution(sandbox, program, setting, sample)
    assert not Path(outside).exists()
    return found


def test_ncu_itself_runs_within_the_bounds_of_the_solution_that_it_starts(tmp_path: Path, listener: int) -> None:
    found = profile(tmp_path, listener, reports=False)
    assert found.problem == ("ncu failed: it saw no kernel: target: 0 confined; write: denied; connect: denied")


def test_a_profile_has_the_longest_kernels_first(tmp_path: Path, listener: int) -> None:
    found = profile(tmp_path, listener, reports=True)
    assert (found.axes, found.launches, found.problem) == ({"batch_size": 8}, 2, "")
    assert [kernel.microseconds for kernel in found.kernels] == [61.888, 2.304]


def test_an_ncu_that_speaks_through_sockets_only_is_too_old_for_the_sandbox(tmp_path: Path, listener: int) -> None:
    found = profile(tmp_path, listener, reports=True, unknown=("--communicator",))
    assert found.problem == (
        "ncu failed: this ncu is too old for the sandbox: it speaks with its target through sockets only, which the filter"
        " there does not know; install a newer Nsight Compute"
    )


def test_an_ncu_that_takes_too_long_is_ended(tmp_path: Path, listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncu, "_MARGIN_SECONDS", 59.0)  # its target needs longer than a second to import torch
    found = profile(tmp_path, listener, reports=True)
    assert (found.kernels, found.problem) == ((), "ncu failed: it saw no kernel: it took longer than 1 s")


def test_a_job_that_does_not_end_ncu_is_ended_itself(tmp_path: Path, listener: int) -> None:
    assert profile(tmp_path, listener, reports=True, seconds=0.5).problem == "ncu failed: the job ran past 0.5 s"


def test_where_ncu_is_not_installed_none_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncu, "_ELSEWHERE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_ncu() is None
    program = tmp_path / "ncu"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    assert find_ncu() == program
