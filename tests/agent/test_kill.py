from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agent_bench import Bench
from fib_tools import skills
from fib_tools.agent.request import Status
from scripted_anthropic import ScriptedAnthropic, Text, ToolUse, Turn

CHILD = """
import sys
from pathlib import Path
from agent_bench import FakeToolbox
from fib_tools import skills
from fib_tools.agent.loop import run_agent
from fib_tools.agent.request import AgentRequest

skills.skills_folder = lambda: Path(sys.argv[2])
run_agent(FakeToolbox(), AgentRequest(task="onboard kimi-k2"), jobs=Path(sys.argv[1]))
"""

PATIENCE_SECONDS = 60


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_process_killed_while_the_model_thinks_is_resumed_by_another(bench: Bench, jobs: Path) -> None:
    asked, killed = threading.Event(), threading.Event()

    def answer(requests: list[dict[str, Any]]) -> Turn:
        if len(requests) > 1:
            asked.set()
            killed.wait(PATIENCE_SECONDS)
        return Turn(Text("I begin."), ToolUse("fib_onboard_model", {"model": "kimi-k2"}))

    with ScriptedAnthropic(answer) as server:
        tests = str(Path(__file__).parents[1])
        environment = {**os.environ, "ANTHROPIC_BASE_URL": server.url, "PYTHONPATH": tests}
        command = [sys.executable, "-c", CHILD, str(jobs), str(skills.skills_folder())]
        with subprocess.Popen(command, env=environment) as process:
            assert asked.wait(PATIENCE_SECONDS)
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)
            killed.set()

    (folder,) = jobs.iterdir()
    assert json.loads((folder / "agent.json").read_text(encoding="utf-8"))["status"] == "running"
    result = bench.run([Turn(Text("All done."))], task=None, resume="latest")

    assert (result.status, result.text, result.turns) == (Status.DONE, "All done.", 2)
    assert bench.toolbox.calls == [], "the killed process had the tool's answer on the disk"
    assert [message["role"] for message in bench.requests[0]["messages"]] == ["user", "assistant", "user"]
