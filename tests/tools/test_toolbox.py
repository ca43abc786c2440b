from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import FibError, PathError, RequestError
from fib_tools.model.base import to_document
from fib_tools.operations import JOB_TOOLS, OPERATIONS
from fib_tools.phases.context import Context
from fib_tools.tools.answer import Page, document_size
from fib_tools.tools.schemas import check_fields
from fib_tools.tools.toolbox import Toolbox


@pytest.fixture
def toolbox(context: Context) -> Toolbox:
    return Toolbox(context)


def test_every_operation_is_a_tool_and_long_ones_can_be_followed(context: Context) -> None:
    toolbox = Toolbox(context, allow_submit=True)
    names = [tool.name for tool in toolbox.tools]
    assert names == [operation.tool for operation in OPERATIONS if operation.tool] + [name for name, _, _ in JOB_TOOLS]
    assert len(names) - len(JOB_TOOLS) <= 16, "more tasks than a model can choose from"
    for tool in toolbox.tools:
        own = set(tool.input_schema["properties"])
        assert ("wait_seconds" in own) == (tool.is_long or tool.name == "fib_get_job")
        assert set(Page.model_fields) <= own or tool.name == "fib_cancel_job"


def test_a_tool_that_writes_outside_is_there_only_when_allowed(context: Context) -> None:
    assert "fib_submit_prs" not in {tool.name for tool in Toolbox(context).tools}
    assert "fib_submit_prs" in {tool.name for tool in Toolbox(context, allow_submit=True).tools}
    with pytest.raises(RequestError, match="there is no tool 'fib_submit_prs'"):
        Toolbox(context).call("fib_submit_prs", {"yes": True})


def test_a_short_tool_answers_at_once(toolbox: Toolbox, context: Context) -> None:
    answer = toolbox.call("fib_show_status", {})
    assert answer.job is None
    assert answer.result["workspace"] == str(context.workspace.root)
    assert not context.workspace.root.exists(), "a read-only tool makes nothing"


def test_a_long_tool_answers_with_a_job_that_can_be_followed_to_its_result(toolbox: Toolbox) -> None:
    first = toolbox.call("fib_inventory_model", {"model": "qwen3-8b", "op_types": ["rmsnorm"]})
    assert first.job is not None
    assert first.has_errors is None
    seen: list[str] = []
    arguments: dict[str, Any] = {"job_id": first.job.job_id, "wait_seconds": 50, "log_lines": 2, "limit": 1}
    done = toolbox.call("fib_get_job", arguments, progress=lambda step, _done, _total: seen.append(step))
    assert done.job is not None
    assert done.job.state.value == "done"
    assert done.has_errors is False
    assert len(done.result["manifest"]["kernels"]) == 1
    assert done.next_offset == 1
    assert done.log == tuple(seen[-2:])
    assert done.log_total == len(seen)
    rest = toolbox.call("fib_get_job", {**arguments, "offset": 1, "limit": 50, "log_offset": 0})
    assert rest.total == len(rest.result["manifest"]["kernels"]) + 1
    assert rest.log == tuple(seen[:2])
    assert rest.log_next_offset == 2
    with pytest.raises(RequestError, match=r"the result has no part 'nope\.x'"):
        toolbox.call("fib_get_job", {"job_id": first.job.job_id, "fields": ["nope.x"]})
    listed = toolbox.call("fib_get_job", {})
    assert [job.job_id for job in listed.jobs] == [first.job.job_id]


def test_a_long_tool_waits_when_asked_and_its_refusal_is_an_error(toolbox: Toolbox) -> None:
    with pytest.raises(FibError, match="unknown model 'kimi-k9'") as caught:
        toolbox.call("fib_onboard_model", {"model": "kimi-k9", "wait_seconds": 50})
    assert "did you mean" in (caught.value.todo or "")


def test_an_answer_over_a_job_keeps_to_its_bound(toolbox: Toolbox) -> None:
    arguments = {"model": "kimi-k2", "wait_seconds": 50, "max_bytes": 2000}
    answer = toolbox.call("fib_inventory_model", arguments)
    assert document_size(to_document(answer)) <= 2000
    assert answer.left_out
    assert answer.job is not None
    for log in ({"log_offset": 0, "log_lines": 500}, {"log_lines": 500}, {"log_lines": 0}):
        for size in (2000, 3000, 8000):
            again = toolbox.call("fib_get_job", {"job_id": answer.job.job_id, "max_bytes": size, **log})
            assert document_size(to_document(again)) <= size


def test_what_a_caller_sent_comes_back_shortened(toolbox: Toolbox) -> None:
    long = "x" * 500_000
    for name, arguments in (
        ("fib_onboard_model", {"model": long, "wait_seconds": 50}),
        ("fib_show_status", {"fields": [long]}),
        ("fib_get_job", {"job_id": long}),
        (long, {}),
    ):
        with pytest.raises(FibError) as caught:
            toolbox.call(name, arguments)
        assert len(str(caught.value)) < 7000
    with pytest.raises(RequestError, match="the arguments have more than"):
        toolbox.call("fib_onboard_model", {"model": long * 5})
    answer = toolbox.call("fib_get_job", {"max_bytes": 2000})
    assert document_size(to_document(answer)) <= 2000


def test_a_link_out_of_the_workspace_is_no_dataset_for_an_agent(context: Context, tmp_path: Path) -> None:
    context.workspace.create()
    (tmp_path / "outside").mkdir()
    (context.workspace.root / "flashinfer-trace").symlink_to(tmp_path / "outside")
    with pytest.raises(FibError, match="leads out"):
        Toolbox(context).call("fib_onboard_model", {"model": "qwen3-8b", "op_types": ["rmsnorm"], "wait_seconds": 50})
    chosen = replace(context, dataset_override=tmp_path / "outside")
    assert Toolbox(chosen).call("fib_show_status", {}).result["documents"] == {}
    assert list((tmp_path / "outside").iterdir()) == []


def test_advice_speaks_of_tools_and_their_arguments(toolbox: Toolbox) -> None:
    with pytest.raises(FibError) as caught:
        toolbox.call("fib_onboard_model", {"model": "kimi-k2", "phases": [3], "wait_seconds": 50})
    assert caught.value.todo == (
        "run: fib_onboard_model kimi-k2 phases 0,1,2, or pass the workspace that was carried here"
    )
    for tool in toolbox.tools:
        assert "--" not in tool.description
        assert not re.search(r"\bfib (?!tools)[a-z]|(?<!\w)--[a-z]", json.dumps(tool.input_schema))
        assert "Exit status" not in tool.description


def test_a_broad_path_takes_in_a_narrow_one(toolbox: Toolbox) -> None:
    both = toolbox.call("fib_show_status", {"fields": ["documents.definition", "documents"]})
    assert set(both.result) == {"documents"}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("fib_nope", {}, "there is no tool 'fib_nope'"),
        ("fib_onboard_model", {}, "model is missing"),
        ("fib_onboard_model", {"model": "x", "nope": 1}, "there is no option 'nope'"),
        ("fib_onboard_model", {"model": 3}, "model cannot be 3"),
        ("fib_onboard_model", {"model": "x", "tp_list": [0]}, "tp_list cannot be 0"),
        ("fib_onboard_model", {"model": "x", "wait_seconds": 51}, "wait_seconds cannot be 51"),
        ("fib_define_kernels", {"path": "other"}, "path cannot be 'other'"),
        ("fib_validate_dataset", {"report": "x.html"}, "there is no option 'report'"),
        ("fib_show_status", {"limit": 0}, "limit cannot be 0"),
        ("fib_show_status", {"max_bytes": 10**9}, "max_bytes cannot be 1000000000"),
        ("fib_show_status", {"fields": ["nope"]}, "the result has no part 'nope'"),
        (
            "fib_onboard_model",
            {"model": "x", "fields": ["manifest.kernel"]},
            r"the result has no part 'manifest\.kernel'",
        ),
        ("fib_get_job", {"job_id": "nope"}, "there is no job 'nope'"),
        ("fib_discover_models", {"since": "4x"}, "since cannot be '4x'"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    toolbox: Toolbox, context: Context, name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        toolbox.call(name, arguments)
    assert caught.value.todo
    assert not context.workspace.root.exists()


@pytest.mark.parametrize("path", ["../../etc", "/etc/passwd", ".."])
def test_paths_lead_nowhere_outside_the_workspace(toolbox: Toolbox, path: str) -> None:
    for name, arguments in (
        ("fib_inventory_model", {"model": "x", "config": path}),
        ("fib_define_kernels", {"path": "dump", "from_dir": path}),
    ):
        with pytest.raises(FibError, match=r"workspace|climbs|leads out"):
            toolbox.call(name, {**arguments, "wait_seconds": 50})
    with pytest.raises(PathError):
        toolbox.call("fib_cancel_job", {"job_id": path})


@pytest.mark.parametrize(
    "field",
    ["manifest", "manifest.refused", "manifest.kernels.witnesses.source", "sources.config.origin", "defined.entries"],
)
def test_every_part_that_a_result_can_have_may_be_asked_for(toolbox: Toolbox, field: str) -> None:
    schema = next(tool for tool in toolbox.tools if tool.name == "fib_onboard_model").output_schema
    check_fields(schema, [field])
    with pytest.raises(RequestError, match="the result has no part") as caught:
        check_fields(schema, [f"{field}.nope"] if field != "manifest.kernels.witnesses.source" else ["nope"])
    assert "manifest.kernels" in (caught.value.todo or "")


def test_a_definition_may_be_submitted_as_an_object_or_as_text(toolbox: Toolbox) -> None:
    document = {"name": "x", "op_type": "nope"}
    for said in (document, json.dumps(document)):
        answer = toolbox.call("fib_submit_definition", {"definition": said, "dry_run": True, "wait_seconds": 50})
        assert answer.has_errors
        assert answer.result["status"] == "refused"
        assert {"axes", "inputs", "outputs", "reference"} <= {problem["field"] for problem in answer.result["problems"]}


def test_an_argument_that_is_null_counts_as_left_out(toolbox: Toolbox) -> None:
    assert toolbox.call("fib_show_status", {"fields": None}).result["clones"] == []


def test_schemas_are_compact_and_say_what_every_argument_is(toolbox: Toolbox) -> None:
    for tool in toolbox.tools:
        text = json.dumps(tool.input_schema)
        assert '"title"' not in text
        assert "null" not in text
        assert tool.input_schema["additionalProperties"] is False
        assert all(schema.get("description") for schema in tool.input_schema["properties"].values())
    define = next(tool for tool in toolbox.tools if tool.name == "fib_define_kernels").input_schema["properties"]
    assert define["path"]["enum"] == ["template", "dump"]
    assert define["tp_list"]["items"] == {"type": "integer", "minimum": 1, "maximum": 1024}
    assert define["limit"]["maximum"] == 500


def test_tokens_in_a_job_never_reach_an_answer(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "hf_" + "s3cr3tvalue" * 2
    monkeypatch.setenv("HF_TOKEN", secret)
    toolbox = Toolbox(context)
    with pytest.raises(FibError) as caught:
        toolbox.call("fib_inventory_model", {"model": f"org/{secret}", "wait_seconds": 50})
    assert secret not in str(caught.value)
    assert tmp_path.exists()
