from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fib_tools.agent.request import AgentOptions

WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "onboard.yml"

FAKE_FIB = '#!/bin/sh\nprintf "%s\\n" "$@" > called\n'


def load() -> dict[Any, Any]:
    document = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def list_steps() -> list[dict[str, Any]]:
    return [step for job in load()["jobs"].values() for step in job["steps"]]


def run_onboard_step(tmp_path: Path, **variables: str) -> tuple[int, str]:
    """Run the step's own script with a `fib` that only notes its arguments."""
    (step,) = [step for step in list_steps() if step.get("name") == "Onboard"]
    fake = tmp_path / "bin" / "fib"
    fake.parent.mkdir()
    fake.write_text(FAKE_FIB, encoding="utf-8")
    fake.chmod(0o755)
    ran = subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env={"PATH": f"{fake.parent}{os.pathsep}{os.defpath}", "COMMENT": "", "MODEL": "", "MAX_USD": "2", **variables},
        capture_output=True,
        check=False,
    )
    called = tmp_path / "called"
    return ran.returncode, called.read_text(encoding="utf-8") if called.exists() else ""


def test_every_action_is_pinned_to_a_commit() -> None:
    used = [step["uses"] for step in list_steps() if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []


def test_the_workflow_may_only_read_and_keeps_no_credentials() -> None:
    workflow = load()
    assert workflow["permissions"] == {"contents": "read"}
    assert [job for job in workflow["jobs"].values() if "permissions" in job] == []
    (checkout,) = [step for step in list_steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["persist-credentials"] is False


def test_no_script_holds_an_expression_so_that_no_outside_text_becomes_code() -> None:
    scripts = [step["run"] for step in list_steps() if "run" in step]
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


def test_only_the_step_that_needs_the_key_has_it() -> None:
    assert [step["name"] for step in list_steps() if "secrets." in str(step)] == ["Onboard"]
    assert "secrets." not in str(load().get("env", ""))


def test_only_those_who_belong_to_the_repository_can_start_it_by_a_comment() -> None:
    workflow = load()
    (job,) = workflow["jobs"].values()
    assert set(workflow[True]) == {"workflow_dispatch", "issue_comment"}, "YAML 1.1 reads the key `on` as true"
    assert "github.event.comment.author_association" in job["if"]
    assert '["OWNER", "MEMBER", "COLLABORATOR"]' in job["if"]


def test_the_agent_is_given_options_that_it_has() -> None:
    (step,) = [step for step in list_steps() if step.get("name") == "Onboard"]
    used = set(re.findall(r" --([a-z-]+)", step["run"]))
    assert {"max-usd", "max-turns"} <= used
    assert used <= {name.replace("_", "-") for name in AgentOptions.model_fields} | {"workspace"}


@pytest.mark.parametrize(
    ("variables", "task"),
    [
        ({"COMMENT": "/onboard-model kimi-k2"}, "/onboard-model kimi-k2"),
        ({"COMMENT": "/onboard-model kimi-k2 --dry-run\r\nplease"}, "/onboard-model kimi-k2 --dry-run"),
        ({"MODEL": "moonshotai/Kimi-K2-Instruct"}, "/onboard-model moonshotai/Kimi-K2-Instruct"),
    ],
)
def test_a_plain_command_reaches_the_agent(tmp_path: Path, variables: dict[str, str], task: str) -> None:
    status, called = run_onboard_step(tmp_path, **variables)
    assert status == 0
    assert called.splitlines()[:4] == ["agent", task, "--max-usd", "2"]


@pytest.mark.parametrize(
    "variables",
    [
        {"COMMENT": "/onboard-model kimi-k2; touch owned"},
        {"COMMENT": "/onboard-model $(touch owned)"},
        {"COMMENT": "/onboard-model `touch owned`"},
        {"COMMENT": '/onboard-model "; touch owned; "'},
        {"COMMENT": "/onboard-model --max-usd 900"},
        {"COMMENT": "/optimize-kernel gemm"},
        {"MODEL": "kimi-k2 && touch owned"},
        {"MODEL": ""},
        {"MODEL": "kimi-k2", "MAX_USD": "1e9"},
        {"MODEL": "kimi-k2", "MAX_USD": "2; touch owned"},
    ],
    ids=str,
)
def test_anything_else_is_refused_and_runs_nothing(tmp_path: Path, variables: dict[str, str]) -> None:
    status, called = run_onboard_step(tmp_path, **variables)
    assert (status, called) == (2, "")
    assert not (tmp_path / "owned").exists()
