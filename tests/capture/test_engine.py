from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture import engine
from fib_tools.capture.engine import EngineOptions, RunOutcome, load_outcome, make_runs
from fib_tools.capture.runs import EngineRun, make_run

FAKE = Path(__file__).with_name("fake_engine.py")


def a_run(name: str = "tp1", behaviour: str = "succeed", **changes: Any) -> EngineRun:
    run = {
        "name": name,
        "tp": 1,
        "attention_tp": 1,
        "gpus": 1,
        "config": {"behaviour": behaviour},
        "overrides": {},
        "vocab_size": 1000,
        **changes,
    }
    return make_run(run, is_mla=False, is_fp8_block=False, is_plain_moe=False)


def make(folder: Path, *runs: EngineRun, **changes: Any) -> tuple[RunOutcome, ...]:
    settings: dict[str, Any] = {"environment": {"PATH": os.environ["PATH"]}, "child": FAKE, **changes}
    return make_runs(runs, folder, EngineOptions(**settings))


@pytest.fixture(autouse=True)
def no_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed here is not the subject."""
    monkeypatch.setattr(engine, "list_versions", lambda: {"sglang": "0.0"})


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(500):
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def test_a_run_that_succeeds_leaves_its_stages_and_is_done(tmp_path: Path) -> None:
    (outcome,) = make(tmp_path, a_run())
    assert (outcome.status, outcome.error) == ("done", "")
    assert outcome.stages == {"import": 0.5, "start": 0.5, "greedy": 0.5, "shutdown": 0.5}
    assert outcome.versions == {"sglang": "0.0"}
    assert load_outcome(tmp_path / "tp1") == outcome
    assert read_json(tmp_path / "tp1" / "stages.json")["status"] == "done"


def test_the_environment_is_what_was_chosen_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    make(tmp_path, a_run(variant="paged"))
    seen = read_json(tmp_path / "tp1" / "seen.json")["environment"]
    assert "HF_TOKEN" not in seen
    assert seen["SGLANG_FLASHINFER_USE_PAGED"] == "1"
    assert seen["FLASHINFER_TRACE_DUMP"] == "1"
    assert seen["PYTHONPATH"].endswith("dump_hook")
    assert "cutlass_fused_moe" in seen["FIB_DUMP_SKIP"]


def test_a_crash_is_told_in_the_engines_own_words(tmp_path: Path) -> None:
    (outcome,) = make(tmp_path, a_run(behaviour="crash"))
    assert outcome.status == "failed"
    assert "ended with status 1" in outcome.error
    assert outcome.error.endswith("start()\nValueError: heads do not divide")
    assert load_outcome(tmp_path / "tp1") is None


def test_an_engine_that_is_killed_has_the_error_of_the_process_that_failed(tmp_path: Path) -> None:
    (outcome,) = make(tmp_path, a_run(behaviour="killed"))
    assert "status -9" in outcome.error
    assert "RuntimeError: the worker died" in outcome.error


def test_requests_that_failed_make_a_run_partial_and_it_is_made_again(tmp_path: Path) -> None:
    for _ in range(2):
        (outcome,) = make(tmp_path, a_run(behaviour="partial"))
        assert (outcome.status, outcome.error) == ("partial", "min-p: RuntimeError: no such sampler")


def test_a_run_that_hangs_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    (outcome,) = make(tmp_path, a_run(behaviour="hang"), stage_timeout=1.0)
    assert outcome.status == "timed out"
    assert "'start' ran past 1 s" in outcome.error
    assert not any(is_alive(pid) for pid in read_json(tmp_path / "tp1" / "pids.json"))


def test_a_run_that_lacks_memory_is_made_once_more_with_less(tmp_path: Path) -> None:
    said: list[str] = []
    (outcome,) = make(tmp_path, a_run(behaviour="memory"), report=said.append)
    assert outcome.status == "done"
    assert "tp1: out of memory, again with less" in said
    asked = read_json(tmp_path / "tp1" / "seen.json")["arguments"]
    assert (asked["max_total_tokens"], asked["mem_fraction_static"]) == (4096, 0.42)


def test_a_run_that_lacks_memory_twice_has_failed(tmp_path: Path) -> None:
    run = a_run(behaviour="memory")
    run = run.model_copy(update={"arguments": {**run.arguments, "max_total_tokens": 1 << 20}})
    (outcome,) = make(tmp_path, run)
    assert outcome.status == "failed"
    assert "OutOfMemoryError" in outcome.error


def test_a_run_that_was_made_is_not_made_again(tmp_path: Path) -> None:
    make(tmp_path, a_run())
    (tmp_path / "tp1" / "seen.json").unlink()
    (outcome,) = make(tmp_path, a_run())
    assert outcome.status == "resumed"
    assert not (tmp_path / "tp1" / "seen.json").exists()


@pytest.mark.parametrize("reason", ["another request", "another version", "asked for"])
def test_a_run_is_made_again_when_it_would_show_something_else(
    tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, a_run())
    if reason == "another version":
        monkeypatch.setattr(engine, "list_versions", lambda: {"sglang": "0.1"})
    run = a_run(vocab_size=2000) if reason == "another request" else a_run()
    (outcome,) = make(tmp_path, run, rerun=reason == "asked for")
    assert outcome.status == "done"


def test_one_run_that_fails_stops_no_other(tmp_path: Path) -> None:
    runs = [a_run("first", "crash"), a_run("second"), a_run("third")]
    assert [item.status for item in make(tmp_path, *runs, jobs=2)] == ["failed", "done", "done"]


def test_after_the_deadline_nothing_starts(tmp_path: Path) -> None:
    outcomes = make(tmp_path, a_run("first"), a_run("second"), deadline=time.monotonic() - 1)
    assert [item.status for item in outcomes] == ["timed out", "timed out"]
    assert not (tmp_path / "first").exists()


def test_an_interrupt_ends_the_whole_tree(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text(a_run(behaviour="hang").model_dump_json(), encoding="utf-8")
    code = f"""
    import signal
    from pathlib import Path
    from fib_tools.capture.engine import EngineOptions, make_runs
    from fib_tools.capture.runs import EngineRun
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    run = EngineRun.model_validate_json(Path({str(run)!r}).read_text())
    make_runs([run], Path({str(tmp_path)!r}), EngineOptions(environment={{}}, child=Path({str(FAKE)!r})))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE) as process:
        pids = wait_for(lambda: read_json(tmp_path / "tp1" / "pids.json"))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert not any(is_alive(pid) for pid in pids)
