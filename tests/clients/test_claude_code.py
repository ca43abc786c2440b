from __future__ import annotations

import json
from pathlib import Path

from claude_code import Claude, list_offered, list_results, list_texts
from fib_tools.dataset.store import Dataset
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.onboard import onboard_model
from fib_tools.phases.request import ModelOptions
from fib_tools.skills import get_skill, list_skills
from fib_tools.tools.toolbox import Toolbox
from onboarding_script import FINAL_WORDS, follow_skill
from scripted_anthropic import ScriptedAnthropic, Text, ToolUse, Turn

ROOT = Path(__file__).parents[2]
PREFIX = "mcp__fib__"
DESCRIPTION_LIMIT = 4096
"""Characters; Claude Code cuts what is longer."""


def list_kernels(folder: Path) -> set[str]:
    """The kernels that kimi-k2 needs, from the library itself."""
    context = Context(workspace=Workspace(root=folder), offline=True)
    result = onboard_model(context, "kimi-k2", options=ModelOptions(), dry_run=True)
    return {entry.name for entry in result.defined.entries}


def test_a_dry_run_reaches_the_model_with_skill_and_tools_and_defines_nothing(
    claude: Claude, workspace: Path, installed: Path
) -> None:
    assert installed
    with ScriptedAnthropic(follow_skill(PREFIX, "kimi-k2", dry_run=True)) as server:
        ran = claude.ask("/onboard-model kimi-k2 --phases 0,1,2 --dry-run", folder=ROOT, url=server.url)
    assert ran.status == 0, ran.errors
    assert ran.document["result"] == FINAL_WORDS
    assert ran.document["permission_denials"] == []
    skill = get_skill("onboard-model").render("kimi-k2 --phases 0,1,2 --dry-run")
    assert any(skill.strip() in text for text in list_texts(server.requests[0]))
    assert set(list_offered(server.requests[0], PREFIX)) == {tool.name for tool in toolbox(workspace).tools}
    results = list_results(server.requests[-1])
    assert [result.is_error for result in results] == [False] * len(results)
    assert any(line.endswith("would define, 0 executed") for line in results[0].document["summary"])
    assert list((workspace / "flashinfer-trace").rglob("*.json")) == []


def test_a_real_run_leaves_every_definition_in_the_workspace(
    claude: Claude, workspace: Path, tmp_path: Path, installed: Path
) -> None:
    assert installed
    with ScriptedAnthropic(follow_skill(PREFIX, "kimi-k2", dry_run=False)) as server:
        ran = claude.ask("/onboard-model kimi-k2 --phases 0,1,2", folder=ROOT, url=server.url)
    assert ran.status == 0, ran.errors
    results = list_results(server.requests[-1])
    assert [result.is_error for result in results] == [False] * len(results)
    kernels = list_kernels(tmp_path / "other")
    dataset = Dataset(workspace / "flashinfer-trace")
    assert {name for name in kernels if dataset.find_definition(name)} == kernels
    assert f"kimi-k2: {len(kernels)} defined, {len(kernels)} executed" in json.dumps(
        [result.document["summary"] for result in results]
    )


def test_every_skill_is_listed_for_the_model_and_runs_without_a_question(claude: Claude, installed: Path) -> None:
    assert installed
    names = [skill.name for skill in list_skills()]
    uses = [ToolUse("Skill", {"skill": name, "args": f"words for {name}"}) for name in names]
    with ScriptedAnthropic([Turn(*uses), Turn(Text("read"))]) as server:
        ran = claude.ask("read all skills", folder=ROOT, url=server.url)
    assert ran.document["permission_denials"] == []
    listed = json.dumps(server.requests[0]["messages"])
    texts = list_texts(server.requests[-1])
    for skill in list_skills():
        assert f"- {skill.name}: " in listed
        assert any(skill.render(f"words for {skill.name}").strip() in text for text in texts), skill.name


def test_no_description_is_cut_on_its_way_to_the_model(claude: Claude, workspace: Path, installed: Path) -> None:
    assert installed
    with ScriptedAnthropic([Turn(Text("done"))]) as server:
        claude.ask("hello", folder=ROOT, url=server.url)
    offered = list_offered(server.requests[0], PREFIX)
    for tool in toolbox(workspace).tools:
        assert offered[tool.name]["description"] == tool.description
        assert len(tool.description) < DESCRIPTION_LIMIT
        assert offered[tool.name]["input_schema"]["properties"] == tool.input_schema["properties"]


def toolbox(workspace: Path) -> Toolbox:
    return Toolbox(Context(workspace=Workspace(root=workspace), offline=True))
