"""The headless agent with the real tools and the real skill; only the model is scripted."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_bench import KEY
from fib_tools.agent.loop import run_agent
from fib_tools.agent.request import AgentRequest, Status
from fib_tools.agent.result import AgentResult
from fib_tools.phases.context import Context, Workspace
from fib_tools.tools.toolbox import Toolbox
from scripted_anthropic import Dropped, Fault, ScriptedAnthropic, Text, ToolUse, Turn

ONBOARD = Turn(
    Text("I onboard kimi-k2."),
    ToolUse("fib_onboard_model", {"model": "kimi-k2", "fields": ["manifest_path", "sources"]}),
)
CHECK = Turn(ToolUse("fib_validate_dataset", {"checks": ["layout", "definition"]}), ToolUse("fib_show_status"))
REPORT = Turn(Text("kimi-k2 is onboarded; every Definition is status:unverified."))

CHILD = """
import sys
from pathlib import Path
from fib_tools.agent.loop import run_agent
from fib_tools.agent.request import AgentRequest
from fib_tools.phases.context import Context, Workspace
from fib_tools.tools.toolbox import Toolbox

root = Path(sys.argv[1])
toolbox = Toolbox(Context(workspace=Workspace(root=root), offline=True))
report = lambda step, _done, _total: print(step, flush=True)
run_agent(toolbox, AgentRequest(task="onboard kimi-k2"), jobs=root / "jobs", progress=report)
"""


class ScriptedModel:
    """Follows a script, but waits for a job that still runs: how fast the machine is must not matter."""

    def __init__(self, *script: Turn | Fault | Dropped) -> None:
        self._script: Iterator[Turn | Fault | Dropped] = iter(script)

    def __call__(self, requests: list[dict[str, Any]]) -> Turn | Fault | Dropped:
        for block in requests[-1]["messages"][-1]["content"]:
            if block["type"] == "tool_result" and not block.get("is_error"):
                job = json.loads(block["content"]).get("job", {})
                if job.get("state") == "running":
                    return Turn(ToolUse("fib_get_job", {"job_id": job["job_id"], "fields": ["summary"]}))
        return next(self._script)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("FIB_WORKSPACE", "FIB_OFFLINE", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        yield


def run_offline(root: Path, server: ScriptedAnthropic, request: AgentRequest) -> AgentResult:
    toolbox = Toolbox(Context(workspace=Workspace(root=root), offline=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", KEY)
        patch.setenv("ANTHROPIC_BASE_URL", server.url)
        return run_agent(toolbox, request, jobs=root / "jobs", sleep=lambda _seconds: None)


def hash_definitions(root: Path) -> dict[str, str]:
    folder = root / "flashinfer-trace" / "definitions"
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.json"))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[AgentResult, dict[str, str]]:
    """A run in which nothing goes wrong."""
    root = tmp_path_factory.mktemp("undisturbed")
    with ScriptedAnthropic(ScriptedModel(ONBOARD, CHECK, REPORT)) as server:
        result = run_offline(root, server, AgentRequest(task="onboard kimi-k2"))
    return result, hash_definitions(root)


def test_the_agent_onboards_kimi_k2_within_its_allowance(
    undisturbed: tuple[AgentResult, dict[str, str]],
) -> None:
    result, definitions = undisturbed

    assert (result.status, result.text) == (Status.DONE, "kimi-k2 is onboarded; every Definition is status:unverified.")
    assert len(definitions) > 40
    assert result.tool_calls <= 15
    assert result.tool_bytes + result.skill_bytes <= 40_000


def test_with_faults_of_every_kind_the_same_definitions_come_out(
    undisturbed: tuple[AgentResult, dict[str, str]], tmp_path: Path
) -> None:
    malformed = Turn(ToolUse("fib_onboard_model", raw='{"model": kimi-k2}'))
    unknown = Turn(ToolUse("fib_onboard_model", {"model": "kimi-k2", "colour": "red"}), ToolUse("fib_onboard_all"))
    faults = Fault(429, headers={"retry-after": "5"}), malformed, Fault(529), unknown, Dropped(ONBOARD, after_events=6)
    with ScriptedAnthropic(ScriptedModel(*faults, ONBOARD, CHECK, REPORT)) as server:
        result = run_offline(tmp_path, server, AgentRequest(task="/onboard-model kimi-k2"))
        errors = [
            json.loads(block["content"])["error"]
            for message in server.requests[-1]["messages"]
            for block in message["content"]
            if block.get("is_error")
        ]

    assert result.status is Status.DONE
    assert errors == ["RequestError"] * 3
    assert hash_definitions(tmp_path) == undisturbed[1]


@pytest.mark.skipif(os.name != "posix", reason="jobs are POSIX process groups")
def test_killed_in_the_middle_of_the_work_it_resumes_and_the_same_definitions_come_out(
    undisturbed: tuple[AgentResult, dict[str, str]], tmp_path: Path
) -> None:
    with ScriptedAnthropic(ScriptedModel(ONBOARD)) as server:
        environment = {**os.environ, "ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": server.url}
        command = [sys.executable, "-c", CHILD, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert any("executing references" in line for line in process.stdout)
            process.send_signal(signal.SIGKILL)
    kill_job(tmp_path)
    assert len(hash_definitions(tmp_path)) < len(undisturbed[1])

    with ScriptedAnthropic(ScriptedModel(CHECK, REPORT)) as server:
        result = run_offline(tmp_path, server, AgentRequest(resume="latest"))

    assert (result.status, result.turns) == (Status.DONE, 3)
    assert hash_definitions(tmp_path) == undisturbed[1]


def kill_job(root: Path) -> None:
    """Kill the onboarding too, as a machine that goes down does, and wait until it is gone."""
    (folder,) = root.glob("jobs/onboard-*")
    os.killpg(int((folder / "pid").read_text(encoding="utf-8")), signal.SIGKILL)
    with (folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
