from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fib_tools.cli import gpu_lock as face
from fib_tools.cli.app import main
from fib_tools.host.gpu_lock import Waiting, acquire
from gpu_requests import Asker


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("CUDA_VISIBLE_DEVICES", "FIB_GPU_LEASE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FIB_PRETEND_GPUS", "2")
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_the_exit_status_is_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-lock", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 7"]) == 7
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("GPU-pretend-0\n", "")


def test_options_after_the_dashes_belong_to_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-lock", "--gpus", "0", "--", "echo", "--help", "--json", "--gpus", "--", "-c"]) == 0
    assert capfd.readouterr().out == "--help --json --gpus -- -c\n"


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["--gpus", "3", "--", "true"], "RequestError", "3 GPUs were asked for, and there are 2"),
        (["--gpus", "-1", "--", "true"], "RequestError", "--gpus"),
        (["--timeout", "-1", "--", "true"], "RequestError", "--timeout"),
        (["--exec-timeout", "0", "--", "true"], "RequestError", "--exec-timeout"),
        (["--", "no-such-program"], "RequestError", "cannot run 'no-such-program'"),
        ([], "RequestError", "there is no command"),
    ],
)
def test_what_cannot_be_served_ends_with_status_2(
    arguments: list[str], kind: str, said: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert main(["gpu-lock", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in " ".join(captured.err.split())
    assert main(["gpu-lock", "--json", *arguments]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"] == kind
    assert said in document["what"]
    assert not folder.exists()


@pytest.mark.parametrize("impatience", [["--no-wait"], ["--timeout", "0.01"]])
def test_gpus_that_others_hold_are_refused_with_their_names(
    impatience: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with acquire(2, command="train --token ***"):
        assert main(["gpu-lock", *impatience, "--json", "--", "true"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"] == "LockedError"
    assert f"held by process {os.getpid()} (train --token ***)" in document["what"]


def test_past_the_time_limit_the_status_is_124() -> None:
    assert main(["gpu-lock", "--exec-timeout", "0.2", "--grace", "0.1", "--", "sleep", "60"]) == 124


def test_status_tells_holders_and_waiters(capsys: pytest.CaptureFixture[str]) -> None:
    with Asker(2) as holder:
        assert holder.hear()
        with Asker(1) as waiter:
            assert waiter.hear() == "waiting 1"
            assert main(["gpu-lock", "--status", "--json"]) == 0
            document = json.loads(capsys.readouterr().out)
            assert main(["gpu-lock", "--status"]) == 0
            text = capsys.readouterr().out
    assert [row["pid"] for row in document["holders"]] == [holder.pid]
    assert [row["pid"] for row in document["waiters"]] == [waiter.pid]
    assert document["is_pretend"] is True
    assert f"process {holder.pid} since" in text
    assert "Processes that keep a lock" in text
    assert "0 of 2 GPUs free, 1 waiting" in text


def test_status_of_a_quiet_machine_is_short(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["gpu-lock", "--status"]) == 0
    text = capsys.readouterr().out
    assert "Waiting" not in text
    assert f"2 of 2 GPUs free, 0 waiting; locks in {folder}" in text


def test_status_tells_of_strangers_and_of_what_is_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fib_tools.host import gpu_status

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(gpu_status, "find_processes", lambda _gpus: {"GPU-pretend-0": (77,), "GPU-pretend-1": None})
    assert main(["gpu-lock", "--status"]) == 0
    text = capsys.readouterr().out
    assert "without a lock: process 77" in text
    assert "free, but hidden by CUDA_VISIBLE_DEVICES" in text


def test_secrets_in_a_command_are_not_shown_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    status = f'"{sys.executable}" -m fib_tools gpu-lock --status --json > "{seen}"; : "$@"'
    assert main(["gpu-lock", "--", "sh", "-c", status, "x", "--token", "open-sesame", "API_KEY=open-sesame"]) == 0
    document = json.loads(seen.read_text(encoding="utf-8"))
    assert document["holders"][0]["command"].endswith("x --token *** API_KEY=***")
    assert "open-sesame" not in seen.read_text(encoding="utf-8")


def test_waiting_is_told_once_it_takes_long_and_when_something_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    now = 100.0
    monkeypatch.setattr(face.time, "monotonic", lambda: now)
    report = face._report_to(Console(stderr=True, no_color=True))
    for seconds, position in [(1.9, 3), (2.1, 3), (3.0, 3), (3.5, 2), (6.0, 2), (9.0, 1)]:
        now = 100.0 + seconds
        report(Waiting(position=position, seconds=seconds, reasons=("GPU-x: held",)))
    assert capsys.readouterr().err.splitlines() == [
        "waiting, 3 in the queue: GPU-x: held",
        "waiting, 2 in the queue: GPU-x: held",
        "waiting, 1 in the queue: GPU-x: held",
    ]


def test_help_lists_the_command_and_explains_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "gpu-lock" in capsys.readouterr().out
    assert main(["gpu-lock", "--help"]) == 0
    text = capsys.readouterr().out
    options = set(re.findall(r"--[a-z][a-z-]+", text))
    wanted = {"gpus", "timeout", "exec-timeout", "no-wait", "idle", "grace", "status", "json"}
    assert {f"--{name}" for name in wanted} <= options
    assert "--workspace" not in options


def test_an_interrupted_waiter_leaves_the_queue() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from fib_tools.cli.app import main; from fib_tools.cli import gpu_lock;"
        "gpu_lock._report_to = lambda c: lambda w: print('waiting', flush=True);"
        "sys.exit(main(['gpu-lock', '--', 'true']))"
    )
    with acquire(2):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
    with acquire(2, wait=False):
        pass
