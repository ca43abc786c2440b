from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import ChildError, FormatError, PathError, RequestError
from fib_tools.tools.job import JobState
from fib_tools.tools.job_files import JobRequest, Outcome, save_outcome
from fib_tools.tools.jobs import Jobs

PATIENCE = 60.0
"""Seconds until a test gives up on a child."""


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "work")


def request(tmp_path: Path, verb: str = "onboard", **arguments: Any) -> JobRequest:
    return JobRequest(
        tool=f"fib_{verb}_x",
        verb=verb,
        arguments=arguments,
        workspace=str(tmp_path / "work"),
        offline=True,
        created=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


def test_a_job_runs_to_its_end_and_keeps_log_and_result(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, "inventory", model="qwen3-8b", op_types=["rmsnorm"]))
    assert jobs.get(job_id).state is JobState.RUNNING
    lines = list(jobs.wait(job_id, PATIENCE))
    job, result = jobs.get(job_id), jobs.result(job_id)
    assert job.state is JobState.DONE
    assert lines == list(jobs.log(job_id))
    assert any("listing the kernels" in line for line in lines)
    assert result is not None
    assert result.document["manifest"]["kernels"]
    assert [found.job_id for found in jobs.list_jobs()] == [job_id]


def test_a_request_that_cannot_be_served_tells_why(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, model="kimi-k9"))
    list(jobs.wait(job_id, PATIENCE))
    job = jobs.get(job_id)
    assert job.state is JobState.REFUSED
    assert job.failure is not None
    assert (job.failure.error, job.failure.what) == ("UnknownModelError", "unknown model 'kimi-k9'")
    assert "did you mean kimi-k2" in (job.failure.next or "")


def test_the_caller_of_a_job_is_confined_to_the_workspace(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, model="x", config="/etc/hostname"))
    list(jobs.wait(job_id, PATIENCE))
    failure = jobs.get(job_id).failure
    assert failure is not None
    assert failure.error == "PathError"


def test_a_cancelled_job_ends_and_leaves_what_it_finished(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, model="kimi-k2"))
    next(iter(jobs.wait(job_id, PATIENCE)))
    assert jobs.cancel(job_id).state is JobState.CANCELLED
    again = jobs.start(request(tmp_path, model="kimi-k2", op_types=["rmsnorm"]))
    list(jobs.wait(again, PATIENCE))
    assert jobs.get(again).state is JobState.DONE
    assert jobs.cancel(again).state is JobState.DONE, "what has ended is left as it is"


def test_a_killed_job_is_seen_as_dead_by_whoever_looks(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, model="kimi-k2"))
    next(iter(jobs.wait(job_id, PATIENCE)))
    stranger = Jobs(tmp_path / "work")
    assert stranger.get(job_id).state is JobState.RUNNING
    os.killpg(int((tmp_path / "work" / "jobs" / job_id / "pid").read_text(encoding="utf-8")), signal.SIGKILL)
    list(stranger.wait(job_id, PATIENCE))
    job = stranger.get(job_id)
    assert job.state is JobState.DIED
    assert job.failure is not None
    assert "call the tool again" in (job.failure.next or "")
    assert stranger.result(job_id) is None


def test_a_crash_keeps_its_traceback_from_callers(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, "no_such_verb"))
    list(jobs.wait(job_id, PATIENCE))
    assert jobs.get(job_id).state is JobState.CRASHED
    folder = tmp_path / "work" / "jobs" / job_id
    assert "Traceback" in (folder / "stderr.txt").read_text(encoding="utf-8")
    assert "Traceback" not in jobs.get(job_id).model_dump_json()


@pytest.mark.parametrize("job_id", ["nope", "onboard-20260101-000000-0000", "x" * 199])
def test_a_job_that_is_not_there_is_refused(jobs: Jobs, job_id: str) -> None:
    with pytest.raises(RequestError, match="there is no job"):
        jobs.get(job_id)


@pytest.mark.parametrize("job_id", ["../../etc", "/etc", "", ".", "a/b", "a\0b"])
def test_an_id_cannot_leave_the_folder(jobs: Jobs, job_id: str) -> None:
    for act in (jobs.get, jobs.cancel, jobs.log, jobs.result):
        with pytest.raises(PathError):
            act(job_id)


def test_only_the_newest_finished_jobs_are_kept(jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "jobs"
    for number in range(104):
        own = folder / f"validate-{number:03}"
        own.mkdir(parents=True)
        (own / "request.json").write_text(request(tmp_path, "validate").model_dump_json(), encoding="utf-8")
        save_outcome(own, Outcome(state=JobState.DONE, seconds=0))
        os.utime(own, (number, number))
    job_id = jobs.start(request(tmp_path, model="kimi-k9"))
    list(jobs.wait(job_id, PATIENCE))
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 101
    assert kept[1:3] == ["validate-004", "validate-005"]


def test_the_same_request_joins_the_job_that_runs(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, model="kimi-k2"))
    assert Jobs(tmp_path / "work").start(request(tmp_path, model="kimi-k2")) == job_id
    other = jobs.start(request(tmp_path, "inventory", model="kimi-k9"))
    assert other != job_id
    jobs.cancel(job_id)
    again = jobs.start(request(tmp_path, model="kimi-k2"))
    assert again != job_id, "what has ended is begun anew"
    jobs.cancel(again)


@pytest.mark.parametrize("written", ["innocent", "0", "1", "-1", "abc", "", "9" * 40])
def test_a_damaged_number_never_ends_another_process(jobs: Jobs, tmp_path: Path, written: str) -> None:
    job_id = jobs.start(request(tmp_path, model="kimi-k2"))
    next(iter(jobs.wait(job_id, PATIENCE)))
    path = tmp_path / "work" / "jobs" / job_id / "pid"
    pid = path.read_text(encoding="utf-8")
    read, write = os.pipe()
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=read, start_new_session=True) as innocent:
        os.close(read)
        path.write_text(str(innocent.pid) if written == "innocent" else written, encoding="utf-8")
        with pytest.raises(ChildError, match="the process of the job is not found"):
            jobs.cancel(job_id)
        assert innocent.poll() is None
        os.close(write)
    path.write_text(pid, encoding="utf-8")
    assert jobs.cancel(job_id).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("request.json", "{"),
        ("request.json", '{"created": "yesterday"}'),
        ("outcome.json", '{"version": 1, "state": "running", "seconds": 1}'),
        ("outcome.json", '{"version": 1, "state": "done", "seconds": -5}'),
        ("result.json", '{"has_errors": 1}'),
    ],
)
def test_damaged_files_of_one_job_are_no_hindrance_to_others(jobs: Jobs, tmp_path: Path, name: str, text: str) -> None:
    broken = jobs.start(request(tmp_path, "inventory", model="qwen3-8b", op_types=["rmsnorm"]))
    list(jobs.wait(broken, PATIENCE))
    (tmp_path / "work" / "jobs" / broken / name).write_text(text, encoding="utf-8")
    with pytest.raises(FormatError):
        (jobs.result if name == "result.json" else jobs.get)(broken)
    other = jobs.start(request(tmp_path, "inventory", model="kimi-k9"))
    list(jobs.wait(other, PATIENCE))
    assert other in [job.job_id for job in jobs.list_jobs()]


def test_a_link_out_of_the_workspace_is_no_folder_for_jobs(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "work" / "jobs").symlink_to(tmp_path / "outside")
    with pytest.raises(PathError):
        Jobs(tmp_path / "work").start(request(tmp_path, model="kimi-k2"))
    assert list((tmp_path / "outside").iterdir()) == []


def test_no_secret_is_kept_with_a_job(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-rather-secret-value")
    document = '{"name": "a-rather-secret-value", "op_type": "x"}'
    job_id = jobs.start(request(tmp_path, "admit", definition=document, dry_run=True))
    list(jobs.wait(job_id, PATIENCE))
    assert jobs.result(job_id) is not None
    for path in (tmp_path / "work").rglob("*"):
        assert not path.is_file() or b"a-rather-secret-value" not in path.read_bytes(), path


def test_waiting_ends_when_nobody_wants_to(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, model="kimi-k2"))
    list(jobs.wait(job_id, PATIENCE, is_wanted=lambda: False))
    assert jobs.get(job_id).state is JobState.RUNNING
    jobs.cancel(job_id)
