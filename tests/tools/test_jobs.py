from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import PathError, RequestError
from fib_tools.tools.job import JobState
from fib_tools.tools.jobs import JobRequest, Jobs, Outcome, save_outcome

PATIENCE = 60.0
"""Seconds until a test gives up on a child."""


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "work" / "jobs")


def request(tmp_path: Path, verb: str = "onboard", **arguments: Any) -> JobRequest:
    return JobRequest(
        tool=f"fib_{verb}_x",
        verb=verb,
        arguments=arguments,
        workspace=str(tmp_path / "work"),
        offline=True,
        created="2026-01-01T00:00:00+00:00",
    )


def test_a_job_runs_to_its_end_and_keeps_log_and_result(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, "inventory", model="qwen3-8b", op_types=["rmsnorm"]))
    assert jobs.get(job_id).state is JobState.RUNNING
    lines = list(jobs.wait(job_id, PATIENCE))
    job, outcome = jobs.get(job_id), jobs.outcome(job_id)
    assert job.state is JobState.DONE
    assert lines == list(jobs.log(job_id))
    assert any("listing the kernels" in line for line in lines)
    assert outcome is not None
    assert outcome.result is not None
    assert outcome.result.document["manifest"]["kernels"]
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
    stranger = Jobs(tmp_path / "work" / "jobs")
    assert stranger.get(job_id).state is JobState.RUNNING
    os.killpg(int((tmp_path / "work" / "jobs" / job_id / "pid").read_text(encoding="utf-8")), signal.SIGKILL)
    list(stranger.wait(job_id, PATIENCE))
    job = stranger.get(job_id)
    assert job.state is JobState.DIED
    assert job.failure is not None
    assert "call the tool again" in (job.failure.next or "")
    assert stranger.outcome(job_id) is None


def test_a_crash_keeps_its_traceback_from_callers(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(request(tmp_path, "no_such_verb"))
    list(jobs.wait(job_id, PATIENCE))
    assert jobs.get(job_id).state is JobState.DIED
    folder = tmp_path / "work" / "jobs" / job_id
    assert "Traceback" in (folder / "stderr.txt").read_text(encoding="utf-8")
    assert "Traceback" not in jobs.get(job_id).model_dump_json()


@pytest.mark.parametrize("job_id", ["nope", "onboard-20260101-000000-0000"])
def test_a_job_that_is_not_there_is_refused(jobs: Jobs, job_id: str) -> None:
    with pytest.raises(RequestError, match="there is no job"):
        jobs.get(job_id)


@pytest.mark.parametrize("job_id", ["../../etc", "/etc", "", ".", "a/b", "a\0b"])
def test_an_id_cannot_leave_the_folder(jobs: Jobs, job_id: str) -> None:
    for act in (jobs.get, jobs.cancel, jobs.log, jobs.outcome):
        with pytest.raises(PathError):
            act(job_id)


def test_only_the_newest_finished_jobs_are_kept(jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "jobs"
    for number in range(104):
        own = folder / f"validate-{number:03}"
        own.mkdir(parents=True)
        made = request(tmp_path, "validate").model_copy(update={"created": f"2026-01-01T00:{number // 60:02}:00+00:00"})
        (own / "request.json").write_text(made.model_dump_json(), encoding="utf-8")
        save_outcome(own, Outcome(state=JobState.DONE, seconds=0))
    job_id = jobs.start(request(tmp_path, model="kimi-k9"))
    list(jobs.wait(job_id, PATIENCE))
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 101
    assert kept[1:3] == ["validate-004", "validate-005"]
