"""`fib pages`: a model's documents, and its entry among those of others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import ConfigError, FormatError, RequestError
from fib_tools.model.kernel import Unexplained
from fib_tools.model.manifest import DefineStatus, ManualDefinition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases import survey
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest, save_manifest
from fib_tools.phases.pages import PagesResult

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 64, "eps": 1e-6})
RENAMED = NORM.model_copy(update={"name": "rmsnorm_h64_of_old"})
OTHERS = (
    'const models: Model[] = [\n  { id: "other", modules: { a: { definitions: ["rmsnorm_h64", "gone_h1"] } } },\n]\n'
)

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture
def model(context: Context, write_config: Callable[..., Path]) -> str:
    folder = context.workspace.root / "tiny-llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(write_config().read_text())
    return str(folder)


def write(context: Context, *models: str, **options: Any) -> PagesResult:
    result = get_operation("pages").run(context, {"models": models, **options})
    assert isinstance(result, PagesResult)
    return result


def read(context: Context, name: str) -> Any:
    return json.loads((context.workspace.root / "pages" / "tiny-llama" / name).read_text())


def git(clone: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout


def test_only_definitions_that_the_dataset_has_are_linked_whatever_their_names(context: Context, model: str) -> None:
    context.dataset.write_definition(RENAMED)
    (page,) = write(context, model).pages
    assert (page.linked, page.entry) == (1, "added")
    modules = read(context, "model_analysis_tiny-llama.json")["modules"]
    assert {module["key"]: module["definitions"] for module in modules if module["definitions"]} == {
        "input_layernorm": [RENAMED.name]
    }
    kernels = [kernel for module in modules for kernel in module["kernels"]]
    assert {kernel["reason"] for kernel in kernels if not kernel["definition"]} == {"not in the dataset"}
    text = (context.workspace.root / "pages" / "models.ts").read_text()
    assert text.count("rmsnorm") == 1
    assert f'definitions: ["{RENAMED.name}"]' in text


def test_the_documents_say_where_each_fact_was_read(context: Context, model: str) -> None:
    write(context, model)
    config = json.loads((Path(model) / "config.json").read_text())
    assert read(context, "model_config.json") == config
    architecture = read(context, "model_architecture.json")
    assert architecture["config"]["location"] == str(Path(model) / "config.json")
    assert architecture["facts"]["hidden_size"] == config["hidden_size"]
    assert architecture["traced_by"] == "nobody: left out by the test"
    implementation = read(context, "sglang_implementation.json")
    assert implementation["file"] == "sglang/srt/models/llama.py"
    assert implementation["sglang"]["origin"] == "bundled"
    built = {(item["key"], item["class_name"], item["linear"]) for item in implementation["modules"]}
    assert ("qkv_proj", "LlamaAttention", "QKVParallelLinear") in built


def test_the_commit_of_the_source_that_was_read_is_said(context: Context, model: str) -> None:
    clone = context.workspace.root / "mine"
    package = clone / "python" / "sglang" / "srt" / "models"
    package.mkdir(parents=True)
    (package / "tiny.py").write_text("class LlamaForCausalLM:\n    pass\n\nEntryClass = LlamaForCausalLM\n")
    (clone / "python" / "sglang" / "__init__.py").write_text("")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(clone, *command)
    sha = git(clone, "rev-parse", "HEAD")
    write(context, model, sglang_path=clone)
    implementation = read(context, "sglang_implementation.json")
    assert (implementation["commit"], implementation["line"]) == (sha.strip(), 1)
    assert sha.strip() in (context.workspace.root / "pages" / "models.ts").read_text()


def test_a_second_run_changes_nothing_and_a_dry_run_writes_nothing(context: Context, model: str) -> None:
    dry = write(context, model, dry_run=True)
    assert dry.changed
    assert '+    id: "tiny-llama",\n' in dry.diff
    assert any('+    id: "tiny-llama",' in line for line in dry.summary().lines)
    assert not (context.workspace.root / "pages").exists()
    assert {file.status for file in write(context, model).pages[0].files} == {"new"}
    again = write(context, model)
    assert (again.changed, again.diff, again.pages[0].entry) == (False, "", "unchanged")
    assert {file.status for file in again.pages[0].files} == {"unchanged"}


def test_entries_of_others_stay_and_what_they_link_to_in_vain_is_said(context: Context, model: str) -> None:
    context.dataset.write_definition(NORM)
    path = context.workspace.root / "models.ts"
    path.write_text(OTHERS)
    result = write(context, model, models_ts=path)
    assert path.read_text().startswith(OTHERS.rstrip("]\n"))
    assert result.unknown == {"other": ("gone_h1",)}
    assert not result.has_errors
    path.write_text(OTHERS.replace("other", "tiny-llama"))
    kept = write(context, model, models_ts=path)
    assert (kept.changed, kept.pages[0].entry) == (False, "kept")
    assert path.read_text() == OTHERS.replace("other", "tiny-llama")


def test_a_list_that_cannot_be_read_with_certainty_can_be_left_alone(context: Context, model: str) -> None:
    own = context.workspace.root / "pages" / "models.ts"
    own.parent.mkdir(parents=True)
    for path, todo in (
        (context.workspace.root / "models.ts", f"leave --models-ts out, and the entries are written to {own}"),
        (own, "move the file away, and a new one is made"),
    ):
        path.write_text("const models = [\n  ...others,\n]")
        with pytest.raises(FormatError) as refused:
            write(context, model, models_ts=path)
        assert refused.value.where == f"{path}, line 2"
        assert f"entries that it spreads; or {todo}" in (refused.value.todo or "")


def test_a_list_that_is_not_there_or_cannot_be_read_is_refused_before_anything_is_written(
    context: Context, model: str
) -> None:
    path = context.workspace.root / "models.ts"
    with pytest.raises(RequestError, match="no such file"):
        write(context, model, models_ts=path)
    for data in (b"const models = [\xff]", b"const models = load()"):
        path.write_bytes(data)
        with pytest.raises(FormatError):
            write(context, model, models_ts=path)
        assert path.read_bytes() == data
    assert not (context.workspace.root / "pages").exists()


def test_gaps_are_said_until_a_definition_fills_them(
    context: Context, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gap = Unexplained(operation="warp", module="model.layers.*.mlp.warp", detail="warp has no kernel type")
    build = survey.build_inventory
    monkeypatch.setattr(
        survey, "build_inventory", lambda *args, **kw: build(*args, **kw).model_copy(update={"unexplained": (gap,)})
    )
    get_operation("inventory").run(context, {"model": model})
    write(context, model)
    (unmapped,) = read(context, "model_analysis_tiny-llama.json")["unmapped"]
    assert (unmapped["subject"], unmapped["module"], unmapped["reason"]) == (
        "warp in model.layers.*.mlp.warp",
        "warp",
        "warp has no kernel type",
    )
    context.dataset.write_definition(NORM.model_copy(update={"name": "warp_h64", "op_type": "warp"}))
    name, manifest = find_manifest(context.workspace, "tiny-llama") or pytest.fail("no manifest")
    filling = ManualDefinition(name="warp_h64", op_type="warp", fills=unmapped["subject"], executed=True)
    kernels = tuple(
        kernel.model_copy(update={"define_status": DefineStatus.REFUSED, "define_reason": "too wide"})
        for kernel in manifest.kernels
    )
    save_manifest(context.workspace, name, manifest.model_copy(update={"manual": (filling,), "kernels": kernels}))
    write(context, model)
    analysis = read(context, "model_analysis_tiny-llama.json")
    assert analysis["unmapped"] == []
    modules = {module["key"]: module for module in analysis["modules"]}
    assert modules["warp"]["definitions"] == ["warp_h64"]
    assert modules["act_fn"]["kernels"][0]["reason"] == "refused by the gate: too wide"


def test_a_model_that_cannot_be_read_does_not_stop_the_others(context: Context, model: str) -> None:
    broken = context.workspace.root / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    result = write(context, str(broken), model)
    assert [failure.model for failure in result.failures] == [str(broken)]
    assert [page.model for page in result.pages] == ["tiny-llama"]
    assert result.has_errors
    with pytest.raises(ConfigError, match="hidden_size"):
        write(context, str(broken))


def test_two_models_of_one_short_name_are_not_written_over_each_other(context: Context, model: str) -> None:
    other = context.workspace.root / "mine" / "tiny-llama"
    other.mkdir(parents=True)
    config = json.loads((Path(model) / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    result = write(context, model, model, str(other))
    assert [failure.model for failure in result.failures] == [str(other)]
    assert read(context, "model_config.json")["hidden_size"] == 64


def test_one_config_is_not_used_for_two_models(context: Context, model: str) -> None:
    with pytest.raises(RequestError, match="a config is one model's"):
        write(context, model, "llama-3.1-8b", config=Path(model) / "config.json")
