from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from claude_code import Claude, list_offered, list_results, list_texts
from fib_tools import __version__
from fib_tools.operation import Effect
from fib_tools.phases.context import Context, Workspace
from fib_tools.skills import get_skill, list_skills
from fib_tools.tools.toolbox import Toolbox
from scripted_anthropic import ScriptedAnthropic, Text, ToolUse, Turn

ROOT = Path(__file__).parents[2]
PLUGIN_PREFIX = "mcp__plugin_fib-tools_fib__"


def load(path: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / path).read_text(encoding="utf-8"))
    return document


def test_every_package_of_the_project_has_its_version() -> None:
    server = load("server.json")
    versions = [load(".claude-plugin/plugin.json")["version"], server["version"], server["packages"][0]["version"]]
    assert versions == [__version__] * 3


def test_the_settings_allow_the_skills_and_the_tools_that_stay_in_the_workspace(tmp_path: Path) -> None:
    toolbox = Toolbox(Context(workspace=Workspace(root=tmp_path)), allow_submit=True)
    tools = [f"mcp__fib__{tool.name}" for tool in toolbox.tools if tool.effect is not Effect.OUTSIDE]
    skills = [f"Skill({skill.name})" for skill in list_skills()]
    settings = load(".claude/settings.json")
    assert settings["permissions"] == {"allow": [*sorted(tools), *sorted(skills)]}
    assert settings["enabledMcpjsonServers"] == list(load(".mcp.json")["mcpServers"]) == ["fib"]


def test_claude_code_finds_the_skills_where_they_are() -> None:
    link = ROOT / ".claude" / "skills"
    assert link.is_symlink()
    assert link.readlink() == Path("../skills")


def test_the_registry_entry_says_what_its_schema_wants() -> None:
    """The rules of server.schema.json, version 2025-12-11, for what the entry uses."""
    server = load("server.json")
    assert set(server) == {"$schema", "name", "title", "description", "version", "websiteUrl", "packages"}
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", server["name"])
    assert 1 <= len(server["description"]) <= 100
    assert 1 <= len(server["title"]) <= 100
    assert server["websiteUrl"].startswith("https://")
    (package,) = server["packages"]
    assert set(package) == {
        "registryType",
        "registryBaseUrl",
        "identifier",
        "version",
        "runtimeHint",
        "transport",
        "packageArguments",
        "environmentVariables",
    }
    assert (package["registryType"], package["identifier"]) == ("pypi", "fib-tools")
    assert package["transport"] == {"type": "stdio"}
    assert package["packageArguments"] == [{"type": "positional", "value": "mcp"}]
    for variable in package["environmentVariables"]:
        assert {"name", "description"} <= set(variable) <= {"name", "description", "format", "isSecret"}
        assert variable.get("format", "string") in {"string", "number", "boolean", "filepath"}


def test_the_npm_clients_are_pinned_exactly() -> None:
    package = load("tests/clients/package.json")
    wanted = {**package["dependencies"], **package["optionalDependencies"]}
    locked = load("tests/clients/package-lock.json")["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("integrity" in entry for path, entry in locked.items() if path)


def test_an_installation_that_the_server_needs_writes_nothing_to_the_protocol(tmp_path: Path) -> None:
    commands = tmp_path / "venv" / "bin"
    commands.mkdir(parents=True)
    for name, said in (("python", "installing $*"), ("fib", "serving $*")):
        (commands / name).write_text(f'#!/bin/sh\necho "{said}"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    command = [make, "-s", "-C", str(ROOT), "mcp", f"VENV={commands.parent}"]
    environment = {"PATH": os.environ["PATH"]}  # nothing of the make that may run the tests
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [run.stdout for run in runs] == ["serving mcp\n"] * 2
    assert "installing -m pip install" in runs[0].stderr
    assert runs[1].stderr == ""


@pytest.mark.parametrize("target", [".", ".claude-plugin/plugin.json", ".claude-plugin/marketplace.json"])
def test_claude_code_has_nothing_to_say_against_the_plugin(claude: Claude, target: str) -> None:
    ran = claude.run("plugin", "validate", "--strict", "--json", target, folder=ROOT)
    assert ran.document["success"], ran.output
    assert ran.status == 0


def test_the_plugin_works_in_the_project_of_its_user(claude: Claude, tmp_path: Path, installed: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    cache = claude.environment["XDG_CACHE_HOME"]
    claude = Claude(binary=claude.binary, home=claude.home, environment={"XDG_CACHE_HOME": cache})
    data = claude.config / "plugins" / "data" / "fib-tools-inline"
    data.mkdir(parents=True)
    (data / "venv").symlink_to(installed)
    dry_run = {"model": "kimi-k2", "dry_run": True, "wait_seconds": 50}
    uses = [ToolUse(f"{PLUGIN_PREFIX}fib_onboard_model", dry_run), ToolUse(f"{PLUGIN_PREFIX}fib_show_status")]
    with ScriptedAnthropic([Turn(uses[0]), Turn(uses[1]), Turn(Text("done"))]) as server:
        ran = claude.ask(
            "/fib-tools:onboard-model kimi-k2 --dry-run",
            "--plugin-dir",
            str(ROOT),
            "--allowedTools",
            "mcp__plugin_fib-tools_fib",
            folder=project,
            url=server.url,
        )
    assert ran.status == 0, ran.errors
    skill = get_skill("onboard-model").render("kimi-k2 --dry-run").strip()
    assert any(skill in text for text in list_texts(server.requests[0]))
    assert "fib_onboard_model" in list_offered(server.requests[0], PLUGIN_PREFIX)
    assert [name for name in list_offered(server.requests[0], "mcp__") if "fib_get_job" in name] == [
        "plugin_fib-tools_fib__fib_get_job"
    ]
    assert [result.is_error for result in list_results(server.requests[-1])] == [False, False]
    assert len(list((project / "tmp").glob("onboard_kimi-k2_*.json"))) == 1
