from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from fib_tools.cli.app import main
from fib_tools.operation import Effect
from fib_tools.operations import JOB_TOOLS, OPERATIONS
from fib_tools.phases.context import Context
from fib_tools.skills import list_skills
from fib_tools.tools import desk
from fib_tools.tools.answer import Answer
from mcp_server import tools
from mcp_server.server import build_server

pytestmark = pytest.mark.anyio
SNAPSHOTS = Path(__file__).parents[1] / "snapshots" / "tools"


async def test_every_tool_says_what_it_changes(context: Context) -> None:
    effects = {operation.tool: operation.effect for operation in OPERATIONS if operation.tool}
    effects |= {name: effect for name, _, effect in JOB_TOOLS}
    async with Client(build_server(context, allow_submit=True)) as client:
        tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == set(effects)
    for tool in tools:
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (effects[tool.name] is Effect.READ)
        assert tool.annotations.destructive_hint is (effects[tool.name] is Effect.OUTSIDE)
        assert tool.annotations.open_world_hint is not None
        assert tool.output_schema is not None


async def test_the_tools_are_those_of_the_snapshots(context: Context) -> None:
    async with Client(build_server(context, allow_submit=True)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOTS.mkdir(parents=True, exist_ok=True)
        for old in SNAPSHOTS.glob("*.json"):
            old.unlink()
        for name, tool in tools.items():
            (SNAPSHOTS / f"{name}.json").write_text(_shown(tool), encoding="utf-8")
    accept = "if this is meant: UPDATE_SNAPSHOTS=1 pytest tests/mcp_server/test_server.py"
    assert {path.stem for path in SNAPSHOTS.glob("*.json")} == set(tools), accept
    for name, tool in tools.items():
        assert _shown(tool) == (SNAPSHOTS / f"{name}.json").read_text(encoding="utf-8"), accept


def _shown(tool: Any) -> str:
    """What a model is told; the schema of the answer follows from the result's class."""
    document = tool.model_dump(by_alias=True, mode="json", exclude_none=True, exclude={"output_schema"})
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


async def test_progress_reaches_the_client_while_a_job_runs(context: Context) -> None:
    seen: list[str] = []

    async def hear(_progress: float, _total: float | None, message: str | None) -> None:
        seen.append(message or "")

    async with Client(build_server(context)) as client:
        arguments = {"model": "qwen3-8b", "op_types": ["rmsnorm"], "wait_seconds": 50}
        answer = await client.call_tool("fib_onboard_model", arguments, progress_callback=hear)
    assert not answer.is_error
    assert answer.structured_content is not None
    assert answer.structured_content["job"]["state"] == "done"
    assert any("reading the model's config" in line for line in seen)


async def test_text_and_structured_content_are_one_answer(context: Context) -> None:
    async with Client(build_server(context)) as client:
        answer = await client.call_tool("fib_show_status", {})
    assert json.loads(answer.content[0].text) == answer.structured_content  # type: ignore[union-attr]


async def test_an_expected_error_tells_what_where_and_what_next(context: Context) -> None:
    async with Client(build_server(context)) as client:
        answer = await client.call_tool("fib_onboard_model", {"model": "kimi-k9", "wait_seconds": 50})
    assert answer.is_error
    text = answer.content[0].text  # type: ignore[union-attr]
    assert "unknown model 'kimi-k9'" in text
    assert "did you mean kimi-k2" in text


async def test_a_crash_tells_the_client_nothing_of_itself(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(*_: object, **__: object) -> Answer:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(desk, "take_whole", crash)
    async with Client(build_server(context)) as client:
        answer = await client.call_tool("fib_show_status", {})
    assert answer.is_error
    assert "secret" not in str(answer.content)
    assert "fib_show_status" in str(answer.content)
    assert "the secret of the house" in caplog.text


async def test_an_unknown_tool_is_an_error(context: Context) -> None:
    async with Client(build_server(context)) as client:
        answer = await client.call_tool("fib_nope", {})
    assert answer.is_error


@pytest.mark.parametrize(
    ("verb", "options", "arguments"),
    [
        ("status", [], {}),
        ("discover", ["--since", "30d"], {"since": "30d", "limit": 500, "max_bytes": 64000}),
        ("inventory", ["qwen3-8b", "--op-types", "rmsnorm"], {"model": "qwen3-8b", "op_types": ["rmsnorm"]}),
        ("define", ["qwen3-8b", "--dry-run"], {"model": "qwen3-8b", "dry_run": True, "max_bytes": 64000}),
        ("validate", [], {"max_bytes": 64000, "limit": 500}),
    ],
)
async def test_both_faces_give_one_document(
    context: Context,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    options: list[str],
    arguments: dict[str, Any],
) -> None:
    root = context.workspace.root
    assert main(["onboard", "qwen3-8b", "--op-types", "rmsnorm", "--workspace", str(root), "--offline", "--quiet"]) == 0
    capsys.readouterr()
    main([verb, *options, "--json", "--quiet", "--offline", "--workspace", str(root)])
    printed = json.loads(capsys.readouterr().out)
    operation = next(entry for entry in OPERATIONS if entry.verb == verb)
    async with Client(build_server(context)) as client:
        own = {"fields": list(printed)} | ({"wait_seconds": 50} if operation.is_long else {}) | arguments
        answer = await client.call_tool(operation.tool, {"max_bytes": 64000, **own})
    assert answer.structured_content is not None
    assert not answer.structured_content.get("left_out")
    assert answer.structured_content["result"] == printed


async def test_resources_are_the_documents_of_the_workspace(context: Context) -> None:
    async with Client(build_server(context)) as client:
        done = await client.call_tool(
            "fib_onboard_model", {"model": "qwen3-8b", "op_types": ["rmsnorm"], "wait_seconds": 50}
        )
        assert not done.is_error
        kernels = done.structured_content["result"]["manifest"]["kernels"]  # type: ignore[index]
        manifest = await _read(client, "fib://manifests/qwen3-8b")
        definition = await _read(client, f"fib://definitions/{kernels[0]['name']}")
        op_types = await _read(client, "fib://op-types")
        validation = await _read(client, "fib://validation")
        listed = {str(item.uri) for item in (await client.list_resources()).resources}
        templates = {item.uri_template for item in (await client.list_resource_templates()).resource_templates}
    assert [kernel["name"] for kernel in manifest["kernels"]] == [kernel["name"] for kernel in kernels]
    assert definition["name"] == kernels[0]["name"]
    assert "rmsnorm" in op_types["rmsnorm"]
    assert validation["result"]["counts"]["definition"] == len(kernels)
    assert listed == {"fib://op-types", "fib://validation"}
    assert templates == {"fib://manifests/{model}", "fib://definitions/{name}"}


async def _read(client: Client, uri: str) -> Any:
    return json.loads((await client.read_resource(uri)).contents[0].text)  # type: ignore[union-attr]


@pytest.mark.parametrize("uri", ["fib://manifests/nope", "fib://definitions/nope", "fib://definitions/..%2Fsecret"])
async def test_a_document_that_is_not_there_is_refused(context: Context, uri: str) -> None:
    async with Client(build_server(context)) as client:
        with pytest.raises(MCPError, match=r"no manifest|no Definition|cannot|Unknown resource|climbs"):
            await client.read_resource(uri)


async def test_each_skill_is_a_prompt_with_its_arguments_filled_in(context: Context) -> None:
    async with Client(build_server(context)) as client:
        prompts = (await client.list_prompts()).prompts
        text = (await client.get_prompt("onboard-model", {"arguments": "kimi-k2 --dry-run"})).messages[0].content.text  # type: ignore[union-attr]
        bare = (await client.get_prompt("onboard-model")).messages[0].content.text  # type: ignore[union-attr]
        await client.get_prompt("onboard-model", {"nonsense": "x"})
    assert [prompt.name for prompt in prompts] == [skill.name for skill in list_skills()]
    assert "kimi-k2 --dry-run" in text
    assert "$ARGUMENTS" not in text + bare


async def test_waiting_calls_never_keep_others_waiting(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_WAITING", 1)
    async with Client(build_server(context)) as client:
        begun = await client.call_tool("fib_onboard_model", {"model": "kimi-k2"})
        job_id = begun.structured_content["job"]["job_id"]  # type: ignore[index]
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client.call_tool, "fib_get_job", {"job_id": job_id, "wait_seconds": 50})
            assert not (await client.call_tool("fib_show_status", {})).is_error
            cancelled = await client.call_tool("fib_cancel_job", {"job_id": job_id})
    assert cancelled.structured_content is not None
    assert cancelled.structured_content["job"]["state"] == "cancelled"


async def test_a_secret_is_masked_in_texts_and_nowhere_else(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "workspace")
    async with Client(build_server(context)) as client:
        answer = await client.call_tool("fib_show_status", {})
    assert not answer.is_error
    assert answer.structured_content is not None
    assert "workspace" in answer.structured_content["result"]
