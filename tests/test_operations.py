from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest

from fib_tools.errors import ConfigError, PathError, RequestError, StorageError, UnknownModelError
from fib_tools.model.summary import Result
from fib_tools.operation import Effect, Operation
from fib_tools.operations import OPERATIONS, get_operation
from fib_tools.phases.collect_options import CollectOptions
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.onboard_submit import SubmitOptions
from fib_tools.phases.request import COMMAND_LINE_ONLY, DEFAULTS, ModelArgument, ModelOptions

VERBS = {
    "coverage": "track",
    "status": "show",
    "brief": "get",
    "admit": "submit",
    "tests": "test",
    "bench": "benchmark",
    "kernel-brief": "get",
    "draft": "submit",
    "drafts": "get",
}
NO_TOOL = {
    "calibrate",
    "apply",
    "baselines",
    "collect",
    "coverage",
    "optimize",
    "optimize-model",
    "pages",
    "targets",
    "trace block",
    "trace diff",
    "trace model",
    "view",
}
"""Commands that agents are not offered: sixteen tools are what a model can choose from."""

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.verb)


@every_operation
def test_the_summary_is_the_first_line_of_the_help(operation: Operation) -> None:
    assert operation.summary == (inspect.getdoc(operation.function) or "").split("\n")[0]


@every_operation
def test_an_operation_says_what_it_does_in_one_sentence(operation: Operation) -> None:
    text = inspect.getdoc(operation.function) or ""
    first, *rest = text.split("\n")
    assert re.fullmatch(r"[A-Z][^\n]{10,130}\.", first), first
    assert not rest or rest[0] == "", "a blank line stands between the first sentence and the rest"


@every_operation
def test_every_option_of_an_operation_is_described(operation: Operation) -> None:
    for option in operation.list_options():
        assert re.fullmatch(r"\S.*\.", option.description, re.DOTALL), f"{option.name} is not described"


@every_operation
def test_an_operation_takes_a_context_and_returns_a_result(operation: Operation) -> None:
    hints = get_type_hints(operation.function)
    first = next(iter(inspect.signature(operation.function).parameters.values()))
    assert hints[first.name] is Context
    assert issubclass(hints["return"], Result)
    subjects = [option for option in operation.list_options() if option.is_subject]
    assert len(subjects) <= 1, "beyond its subject everything is named"


def test_the_fields_of_a_model_are_options_of_their_own_and_come_back_as_that_model(tmp_path: Path) -> None:
    seen: list[ModelOptions] = []

    def look(_context: Context, model: ModelArgument, options: ModelOptions = DEFAULTS) -> Result:
        """Look."""
        assert model == "x"
        seen.append(options)
        return Result()

    operation = replace(get_operation("inventory"), entry=look)
    assert [option.name for option in operation.list_options()] == ["model", *ModelOptions.model_fields]
    operation.run(Context(workspace=Workspace(root=tmp_path)), {"model": "x", "tp_list": (2,)})
    assert seen == [ModelOptions(tp_list=(2,))]


def test_a_group_of_options_can_be_for_people_only(tmp_path: Path) -> None:
    def look(_context: Context, options: Annotated[ModelOptions, COMMAND_LINE_ONLY] = DEFAULTS) -> Result:
        """Look."""
        assert options.tp_list == (2,)
        return Result()

    operation = replace(get_operation("inventory"), entry=look)
    assert {option.is_for_agents for option in operation.list_options()} == {False}
    operation.run(Context(workspace=Workspace(root=tmp_path)), {"tp_list": (2,)})


def test_an_agent_needs_what_stands_for_an_option_that_it_is_not_offered() -> None:
    model = next(option for option in get_operation("onboard").list_options_for_agents() if option.name == "model")
    assert model.default is inspect.Parameter.empty
    assert next(option for option in get_operation("onboard").list_options() if option.name == "model").default is None


@every_operation
def test_a_tool_is_named_for_its_command(operation: Operation) -> None:
    verb = VERBS.get(operation.verb, operation.verb)
    assert re.fullmatch(rf"fib_{verb}_[a-z_]+", operation.tool) or operation.verb in NO_TOOL
    assert get_operation(operation.verb) is operation


def test_verbs_and_tools_are_there_once() -> None:
    assert len({operation.verb for operation in OPERATIONS}) == len(OPERATIONS)
    tools = [operation.tool for operation in OPERATIONS if operation.tool]
    assert len(set(tools)) == len(tools) == len(OPERATIONS) - len(NO_TOOL)
    assert all(isinstance(operation.effect, Effect) for operation in OPERATIONS)


def test_a_result_has_nothing_to_say_of_its_own() -> None:
    assert not Result().has_errors
    assert Result().summary().lines == ()


SIZES = ("tp_list", "ep_list", "page_sizes")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True)


@pytest.mark.parametrize("option", SIZES)
@pytest.mark.parametrize("sizes", [(), (0,), (1, -8), (1 << 40,), ("eight",)])
def test_sizes_that_no_deployment_has_are_refused_by_the_option(
    context: Context, option: str, sizes: tuple[int, ...]
) -> None:
    with pytest.raises(RequestError, match=f"^{option} cannot be ") as caught:
        get_operation("inventory").run(context, {"model": "kimi-k2", option: sizes})
    assert "sizes" in (caught.value.todo or "")
    assert not context.workspace.root.exists()


def test_an_option_that_is_not_there_is_named_before_one_that_is_missing(context: Context) -> None:
    with pytest.raises(RequestError, match="there is no option 'modl'") as caught:
        get_operation("inventory").run(context, {"modl": "kimi-k2"})
    assert "model, hf_repo_id" in (caught.value.todo or "")
    with pytest.raises(RequestError, match="model is missing"):
        get_operation("inventory").run(context, {})


def test_a_path_with_a_nul_is_refused(context: Context) -> None:
    with pytest.raises(PathError, match="NUL"):
        get_operation("inventory").run(context, {"model": "x", "config": Path("a\0b")})


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.json", "link/config.json"])
def test_a_confined_caller_reads_no_file_outside_the_workspace(context: Context, tmp_path: Path, path: str) -> None:
    context.workspace.create()
    (context.workspace.root / "link").symlink_to(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PathError):
        get_operation("inventory").run(replace(context, is_confined=True), {"model": "x", "config": path})


@pytest.mark.parametrize("model", ["/outside", "../outside", "outside"])
def test_a_confined_caller_cannot_name_a_folder_outside_the_workspace_as_a_model(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}", encoding="utf-8")
    said = str(tmp_path / "outside") if model == "/outside" else model
    with pytest.raises((PathError, UnknownModelError)):
        get_operation("inventory").run(replace(context, is_confined=True), {"model": said})
    with pytest.raises(ConfigError):
        get_operation("inventory").run(context, {"model": str(tmp_path / "outside")})


def test_the_relative_paths_of_a_confined_caller_begin_in_the_workspace(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Path | None] = []

    def look(_context: Context, options: ModelOptions = DEFAULTS) -> Result:
        """Look."""
        seen.append(options.config)
        return Result()

    operation = replace(get_operation("inventory"), entry=look)
    inside = context.workspace.root / "a.json"
    for caller, said in ((context, "a.json"), (replace(context, is_confined=True), "a.json"), (context, str(inside))):
        operation.run(caller, {"config": said})
    assert seen == [Path("a.json"), inside, inside]


def test_what_the_system_refuses_to_read_is_an_error_with_advice(context: Context) -> None:
    def read(_context: Context) -> Result:
        """Read."""
        raise PermissionError(13, "Permission denied", "/secret")

    with pytest.raises(StorageError, match="the system refused: Permission denied") as caught:
        replace(get_operation("status"), entry=read).run(context, {})
    assert caught.value.where == "/secret"


def test_places_outside_the_workspace_and_what_has_the_rights_of_the_user_are_for_people_only() -> None:
    hidden = {
        (operation.verb, option.name)
        for operation in OPERATIONS
        for option in operation.list_options()
        if not option.is_for_agents
    }
    assert hidden == {
        ("apply", "out"),
        ("bench", "address"),
        ("clone", "urls"),
        *(("onboard", name) for name in (*CollectOptions.model_fields, *SubmitOptions.model_fields)),
        ("onboard", "discover"),
        ("onboard", "limit"),
        ("report", "html"),
        ("submit", "document"),
        ("submit", "flashinfer_repo"),
        ("submit", "github_api"),
        ("submit", "github_repo"),
        ("submit", "hf_repo"),
        ("submit", "sglang_repo"),
        ("validate", "report"),
        ("view", "out"),
    }
