from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bench_run import HONEST, norm, solution
from fib_tools.evaluate.inspection.sample import Setting
from fib_tools.evaluate.judge import runner as runners
from fib_tools.evaluate.judge.channel import Channel
from fib_tools.evaluate.judge.refusal import RefusedError
from fib_tools.evaluate.judge.runner import Runner, choose_connections
from fib_tools.host.sandbox import Limits
from fib_tools.model.solution import BASELINE
from fib_tools.model.trace import EvaluationStatus


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Sandbox:
    """A sandbox whose only session is the test itself."""

    protections = None

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        self.process = Channel(theirs, takes_files=True)
        self.limits = Limits()
        self.payload: dict[str, Any] = {}

    def open_session(self, _entry: str, payload: dict[str, Any], *, limits: Limits) -> Sandbox:
        self.limits, self.payload = limits, payload
        return self

    def answer(self, **answer: Any) -> None:
        """Answer the judge's last question."""
        self.process.send({**answer, "token": self.process.receive(1.0)["token"]})

    def forget(self) -> None:
        self.channel.close()


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runners, "time", clock)
    return clock


def make_runner(sandbox: Sandbox, *, is_trusted: bool = False) -> Runner:
    return Runner(
        cast("Any", sandbox),
        norm(),
        solution("s", HONEST),
        device="cpu",
        dataset="/nowhere",
        lifetime=60.0,
        first_call={},
        is_trusted=is_trusted,
    )


@pytest.fixture
def runner(sandbox: Sandbox) -> Iterator[Runner]:
    """A runner of which others are measured while it builds."""
    made = make_runner(sandbox)
    made.begin_build("events")
    yield made
    made.close()
    sandbox.process._socket.close()
    for descriptor in sandbox.process.descriptors:
        os.close(descriptor)


@pytest.mark.usefixtures("runner")
def test_a_call_that_is_made_again_for_its_author_may_use_what_a_runner_may(sandbox: Sandbox) -> None:
    again = Setting(definition=norm(), tolerances={}, device="cpu", dataset=Path("/nowhere"), seconds=60.0)
    assert again.limits == sandbox.limits


def test_only_a_trusted_baseline_keeps_what_libraries_compile(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path / "fi"))
    monkeypatch.delenv("TVM_FFI_CACHE_DIR", raising=False)
    folders = {str(tmp_path / "fi/.cache/flashinfer"), str(tmp_path / ".cache/tvm-ffi")}
    for is_trusted in (False, True):
        made = make_runner(sandbox, is_trusted=is_trusted)
        assert set(sandbox.limits.writable) == (folders if is_trusted else set())
        assert all(Path(folder).is_dir() == is_trusted for folder in folders)
        assert len(sandbox.payload["caches"]) == 2 * is_trusted
        os.close(made._told)
        os.close(made._tell)
    sandbox.process._socket.close()
    sandbox.channel.close()


@pytest.mark.parametrize(
    ("author", "source", "connections"),
    [
        ("someone", HONEST, 1),
        ("someone", HONEST + "\nside = torch.cuda.Stream()\n", None),
        ("someone", HONEST + "\n// cudaStreamCreate\n", None),
        (BASELINE, HONEST, None),
    ],
)
def test_a_solution_that_names_no_stream_has_one_queue_to_the_device(
    author: str, source: str, connections: int | None
) -> None:
    assert choose_connections(solution("s", source, author=author)) == connections
    assert choose_connections(None) == 1, "the reference"


def test_a_first_call_that_ended_while_others_were_measured_is_in_time(
    runner: Runner, sandbox: Sandbox, clock: Clock
) -> None:
    assert runner.is_busy
    sandbox.answer(ok={})
    runner.advance()
    sandbox.answer(ok={"seconds": 2.5})
    assert not runner.is_busy
    clock.now = 1000.0
    runner.finish_build(1.0)
    runner.finish_first_call(10.0)
    assert runner.first_call_seconds == 2.5


def test_a_first_call_that_hung_while_others_were_measured_has_half_of_its_time_left(
    runner: Runner, sandbox: Sandbox, clock: Clock
) -> None:
    sandbox.answer(ok={})
    runner.advance()
    clock.now = 1e6
    with pytest.raises(RefusedError, match=r"its first call, .* did not end within 0\.2 s") as caught:
        runner.finish_first_call(0.2)
    assert caught.value.refusal.status is EvaluationStatus.TIMEOUT
    assert runner.is_dead


def test_what_did_not_come_in_time_is_called_what_it_is(runner: Runner) -> None:
    with pytest.raises(RefusedError, match=r"^its check did not end within 0\.01 s$"):
        runner.ask({"do": "call"}, 0.01, late="its check did not end")


def test_a_build_that_failed_while_others_were_measured_is_told_at_its_turn(runner: Runner, sandbox: Sandbox) -> None:
    assert not runner.failed_to_build
    sandbox.answer(error={"kind": "raised", "message": "CUDA error: out of memory", "trace": ""})
    runner.advance()
    assert runner.failed_to_build
    assert runner.is_dead, "what follows on a device that is lost fails too"
    with pytest.raises(RefusedError, match="CUDA error"):
        runner.finish_build(1.0)
