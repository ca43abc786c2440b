"""MCP Inspector, a client of another SDK, in its command line mode over stdio."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_dataset import Case, write_cases
from bench_run import write_dataset
from fib_tools.operation import Effect
from fib_tools.phases.context import Context, Workspace
from fib_tools.skills import list_skills
from fib_tools.tools.toolbox import Toolbox

Inspect = Callable[..., "subprocess.CompletedProcess[str]"]

TOOL_REPORTED_AN_ERROR = 5
"""Exit status of the inspector when the answer has isError."""
DRAFT = {"definition": "rmsnorm_h64", "device": "cpu", "language": "python"}
NEEDED: dict[str, dict[str, Any]] = {
    "fib_get_manual_brief": {"model": "kimi-k2", "wait_seconds": 50},
    "fib_get_kernel_brief": DRAFT,
    "fib_get_evaluation": DRAFT,
}
"""Arguments of read-only tools that cannot do without."""


@pytest.fixture
def toolbox(workspace: Path) -> Toolbox:
    return Toolbox(Context(workspace=Workspace(root=workspace), offline=True))


@pytest.fixture
def inspect(client_binaries: Path, node_path: str, tmp_path: Path, workspace: Path) -> Inspect:
    """Runs the inspector, which starts the server, asks it one thing and ends it."""
    environment = {"PATH": node_path, "HOME": str(tmp_path)}
    passed = {"FIB_WORKSPACE": str(workspace), "FIB_OFFLINE": "1"}

    def run(method: str, *options: str) -> subprocess.CompletedProcess[str]:
        server = [sys.executable, "-m", "fib_tools", "mcp"]
        variables = [part for name, value in passed.items() for part in ("-e", f"{name}={value}")]
        command = [client_binaries / "mcp-inspector", "--cli", *server, "--method", method, *variables, *options]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )

    return run


def answered(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


def test_every_schema_is_portable(inspect: Inspect, toolbox: Toolbox) -> None:
    ran = inspect("tools/list", "--strict")
    offered = {tool["name"]: tool for tool in answered(ran)["tools"]}
    assert set(offered) == {tool.name for tool in toolbox.tools}
    for tool in toolbox.tools:
        assert offered[tool.name]["annotations"]["readOnlyHint"] == (tool.effect is Effect.READ)
        assert offered[tool.name]["outputSchema"] == tool.output_schema


def test_every_read_only_tool_answers_as_its_schema_says(inspect: Inspect, toolbox: Toolbox, workspace: Path) -> None:
    dataset = write_dataset(workspace / "flashinfer-trace", {}, sizes=(3,))
    case = Case(
        definition=DRAFT["definition"], op_type="rmsnorm", author="someone", solution="s", axes={"batch_size": 3}
    )
    write_cases(dataset.root, [case])
    read_only = [tool.name for tool in toolbox.tools if tool.effect is Effect.READ]
    assert read_only
    for name in read_only:
        arguments = json.dumps(NEEDED.get(name, {}))
        document = answered(inspect("tools/call", "--tool-name", name, "--tool-args-json", arguments))
        (block,) = document["content"]
        assert json.loads(block["text"]) == document["structuredContent"]


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("fib_show_status", {"limit": 0}, "limit"),
        ("fib_show_status", {"nope": 1}, "nope"),
        ("fib_get_job", {"job_id": "../../etc/passwd"}, "cannot be a file name"),
        ("fib_onboard_model", {"model": "../../etc/passwd", "wait_seconds": 50}, "etc/passwd"),
    ],
)
def test_a_bad_argument_is_the_tools_error(inspect: Inspect, tool: str, arguments: dict[str, Any], said: str) -> None:
    ran = inspect("tools/call", "--tool-name", tool, "--tool-args-json", json.dumps(arguments))
    assert ran.returncode == TOOL_REPORTED_AN_ERROR, ran.stdout + ran.stderr
    assert said in ran.stdout


def test_resources_are_listed_and_read(inspect: Inspect) -> None:
    listed = {resource["uri"] for resource in answered(inspect("resources/list"))["resources"]}
    assert "fib://op-types" in listed
    templates = answered(inspect("resources/templates/list"))["resourceTemplates"]
    assert "fib://definitions/{name}" in {template["uriTemplate"] for template in templates}
    (content,) = answered(inspect("resources/read", "--uri", "fib://op-types"))["contents"]
    assert "rmsnorm" in json.loads(content["text"])


def test_there_is_a_prompt_for_each_skill(inspect: Inspect) -> None:
    listed = {prompt["name"] for prompt in answered(inspect("prompts/list"))["prompts"]}
    assert listed == {skill.name for skill in list_skills()}
    got = inspect("prompts/get", "--prompt-name", "onboard-model", "--prompt-args", "arguments=kimi-k2")
    (message,) = answered(got)["messages"]
    assert "The user typed: kimi-k2" in message["content"]["text"]
