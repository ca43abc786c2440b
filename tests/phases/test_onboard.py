from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fib_tools.cli.app import main
from fib_tools.errors import LockedError, RequestError
from fib_tools.gate.gate import admit
from fib_tools.host.cpu import read_cpu_name
from fib_tools.host.locks import hold
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import DefineStatus, Manifest
from fib_tools.model.tags import find_tag_values
from fib_tools.operations import get_operation
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.define import define_model
from fib_tools.phases.inventory import take_inventory, workspace_lock
from fib_tools.phases.onboard import OnboardResult, onboard_model
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.status import show_status
from fib_tools.phases.validate import validate_dataset
from tiny_model import CONFIG, snapshot, timeless


def read_manifest(context: Context) -> dict[str, Any]:
    (path,) = context.workspace.root.glob("onboard_*.json")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_manifest(context: Context, document: dict[str, Any]) -> None:
    (path,) = context.workspace.root.glob("onboard_*.json")
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module")
def onboarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, OnboardResult, Path]:
    """The tiny model, onboarded for real: traced, templates instantiated, references executed."""
    folder = tmp_path_factory.mktemp("onboarded")
    config = folder / "config.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    steps: list[tuple[str, int, int]] = []
    context = Context(
        workspace=Workspace(root=folder / "work"),
        offline=True,
        progress=lambda step, done, total: steps.append((step, done, total)),
    )
    result = onboard_model(context, "tiny", ModelOptions(config=config))
    total = len(result.manifest.kernels)
    assert steps[0] == ("reading the model's config", 0, 0)
    assert steps[-1][1:] == (total, total)
    return context, result, config


@pytest.fixture
def copied(onboarded: tuple[Context, OnboardResult, Path], tmp_path: Path) -> tuple[Context, Path]:
    """The onboarded workspace, to be changed."""
    context, _, config = onboarded
    shutil.copytree(context.workspace.root, tmp_path / "work")
    return Context(workspace=Workspace(root=tmp_path / "work"), offline=True), config


def test_every_kernel_of_a_model_is_defined_and_executed(onboarded: tuple[Context, OnboardResult, Path]) -> None:
    context, result, _ = onboarded
    assert result.defined is not None
    assert not result.has_errors
    assert {entry.status for entry in result.defined.entries} == {"defined"}
    assert {kernel.define_status for kernel in result.manifest.kernels} == {DefineStatus.DEFINED}
    assert all(entry.executed for entry in result.defined.entries)
    assert len(result.defined.entries) == len(list(context.dataset.definition_files())) > 20
    norm = context.dataset.find_definition("rmsnorm_h64")
    assert norm is not None
    assert {"model:tiny", "tp:1", "fi_api:flashinfer.norm.rmsnorm", "status:unverified"} <= set(norm.tags)
    assert find_tag_values(norm.tags, "fi_name")


def test_the_witnesses_of_a_norm_are_config_trace_and_flashinfer(
    onboarded: tuple[Context, OnboardResult, Path],
) -> None:
    norm = next(kernel for kernel in onboarded[1].manifest.kernels if kernel.name == "rmsnorm_h64")
    assert {"config", "trace", "flashinfer"} <= {witness.source.value for witness in norm.witnesses}


def test_the_summary_ends_with_the_dataset(onboarded: tuple[Context, OnboardResult, Path]) -> None:
    context, result, _ = onboarded
    summary = result.summary()
    assert [table.title for table in summary.tables][:2] == ["sources", "kernels of tiny"]
    assert summary.lines[-1] == str(context.dataset.root)
    assert "executed" in summary.lines[-2]


def test_a_second_run_changes_no_byte(copied: tuple[Context, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    context, config = copied
    before = snapshot(context.workspace.root)
    monkeypatch.setattr("fib_tools.phases.staging.open_sandbox", lambda: pytest.fail("there is nothing to execute"))
    again = onboard_model(context, "tiny", ModelOptions(config=config))
    assert snapshot(context.workspace.root) == before
    assert again.defined is not None
    assert {entry.status for entry in again.defined.entries} == {"defined before"}
    assert again.summary().lines[-2].endswith("defined before, 0 executed")


def test_what_was_made_passes_every_check_and_runs(onboarded: tuple[Context, OnboardResult, Path]) -> None:
    context, result, _ = onboarded
    found = validate_dataset(context, execute=True)
    assert not found.has_errors, found.findings
    assert found.counts["executed"] == found.counts["definition"] == len(result.manifest.kernels)


def test_flashinfer_bench_loads_what_was_made(onboarded: tuple[Context, OnboardResult, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flashinfer_bench.data import TraceSet

        loaded = TraceSet.from_path(str(onboarded[0].dataset.root))
    assert set(loaded.definitions) == {kernel.name for kernel in onboarded[1].manifest.kernels}


def test_nothing_is_written_beside_the_workspace(onboarded: tuple[Context, OnboardResult, Path]) -> None:
    root = onboarded[0].workspace.root
    assert {path.name for path in root.parent.iterdir()} == {"config.json", "work"}
    assert not [path for path in root.rglob("*") if path.name.startswith(".fib-tmp")]


@pytest.mark.usefixtures("quick_gate")
def test_a_lost_definition_is_defined_again(
    copied: tuple[Context, Path],
) -> None:
    context, config = copied
    before = context.dataset.find_definition("rmsnorm_h64")
    assert before is not None
    (context.dataset.root / "definitions" / "rmsnorm" / "rmsnorm_h64.json").unlink()
    result = onboard_model(context, "tiny", ModelOptions(config=config))
    after = context.dataset.find_definition("rmsnorm_h64")
    assert after is not None
    # without children FlashInfer's own name for it is not known
    assert after.model_dump(exclude={"tags"}) == before.model_dump(exclude={"tags"})
    assert set(before.tags) - set(after.tags) == {f"fi_name:{find_tag_values(before.tags, 'fi_name')[0]}"}
    assert result.defined is not None
    assert [entry.name for entry in result.defined.entries if entry.status == "defined"] == ["rmsnorm_h64"]


def test_a_killed_run_is_resumed_to_the_same_bytes(copied: tuple[Context, Path]) -> None:
    context, config = copied
    before = snapshot(context.workspace.root)
    document = read_manifest(context)
    for kernel in document["kernels"]:
        kernel |= {"define_status": "pending"}
        for field in ("executed", "fi_name"):
            kernel.pop(field, None)
    write_manifest(context, document)
    for name in ("activation/silu_and_mul_i128", "rmsnorm/rmsnorm_h64", "gemm/gemm_n64_k64"):
        (context.dataset.root / "definitions" / f"{name}.json").unlink()
    for folder in (context.workspace.root, context.dataset.root / "definitions" / "rmsnorm"):
        (folder / f".fib-tmp-{2**22 + 1}-00ff").write_bytes(b"half")
    onboard_model(context, "tiny", ModelOptions(config=config))
    assert timeless(snapshot(context.workspace.root)) == timeless(before)


def test_a_definition_that_was_changed_is_reported_and_left_as_it_is(copied: tuple[Context, Path]) -> None:
    context, config = copied
    path = context.dataset.root / "definitions/rmsnorm/rmsnorm_h64.json"
    text = path.read_text(encoding="utf-8").replace('"value": 64', '"value": 65')
    path.write_text(text, encoding="utf-8")
    result = onboard_model(context, "tiny", ModelOptions(config=config))
    assert result.defined is not None
    assert [entry.name for entry in result.defined.entries if entry.status == "changed"] == ["rmsnorm_h64"]
    assert result.has_errors
    assert path.read_text(encoding="utf-8") == text


def test_statuses_survive_a_new_inventory(copied: tuple[Context, Path]) -> None:
    context, config = copied
    before = [(kernel["name"], kernel["define_status"], kernel["fi_name"]) for kernel in _with_names(context)]
    take_inventory(context, "tiny", ModelOptions(config=config))
    assert [(kernel["name"], kernel["define_status"], kernel["fi_name"]) for kernel in _with_names(context)] == before


def _with_names(context: Context) -> list[dict[str, Any]]:
    return [{"fi_name": None, **kernel} for kernel in read_manifest(context)["kernels"]]


@pytest.mark.usefixtures("quick_gate")
def test_another_tp_adds_its_kernels_and_its_tags(
    copied: tuple[Context, Path],
) -> None:
    context, config = copied
    result = onboard_model(context, "tiny", ModelOptions(config=config, tp_list=(2,)))
    asked = {kernel.name for kernel in result.manifest.kernels}
    assert "gqa_paged_decode_h1_kv1_d32_ps64" in asked
    assert "gqa_paged_decode_h2_kv2_d32_ps64" not in asked, "what was not asked for is not shown"
    kept = {kernel["name"] for kernel in read_manifest(context)["kernels"]}
    assert {"gqa_paged_decode_h2_kv2_d32_ps64", "gqa_paged_decode_h1_kv1_d32_ps64"} <= kept
    norm = context.dataset.find_definition("rmsnorm_h64")
    assert norm is not None
    assert find_tag_values(norm.tags, "tp") == ("1", "2")
    before = snapshot(context.workspace.root)
    onboard_model(context, "tiny", ModelOptions(config=config, tp_list=(2,)))
    assert snapshot(context.workspace.root) == before


@pytest.mark.usefixtures("quick_gate")
def test_a_dry_run_leaves_the_dataset_alone(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    result = onboard_model(context, "tiny", ModelOptions(config=write_config()), dry_run=True)
    assert not context.dataset.root.exists()
    assert result.defined is not None
    assert {entry.status for entry in result.defined.entries} == {"would define"}
    assert all(kernel.define_status is DefineStatus.PENDING for kernel in result.manifest.kernels)
    assert not result.has_errors
    define_model(context, "tiny", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    before = snapshot(context.dataset.root)
    again = onboard_model(
        context, "tiny", ModelOptions(config=write_config(tie_word_embeddings=True), tp_list=(2,)), dry_run=True
    )
    assert snapshot(context.dataset.root) == before
    assert again.defined is not None
    assert ("rmsnorm_h64", "defined before") in {(entry.name, entry.status) for entry in again.defined.entries}


@pytest.mark.usefixtures("quick_gate")
def test_two_models_share_a_norm(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    second = onboard_model(context, "two", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    norm = context.dataset.find_definition("rmsnorm_h64")
    assert norm is not None
    assert find_tag_values(norm.tags, "model") == ("one", "two")
    assert second.defined is not None
    assert second.defined.shared["rmsnorm_h64"] == ("one", "two")
    assert {entry.status for entry in second.defined.entries} == {"existing"}
    assert "shared with other models" in "\n".join(second.summary().lines)


@pytest.mark.usefixtures("quick_gate")
def test_a_norm_with_another_epsilon_gets_a_name_of_its_own(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    other = write_config(rms_norm_eps=1e-5)
    second = onboard_model(context, "two", ModelOptions(config=other, op_types=("rmsnorm",)))
    assert second.defined is not None
    assert {entry.name: entry.status for entry in second.defined.entries} == {
        "fused_add_rmsnorm_h64_eps1e-05": "conflict",
        "rmsnorm_h64_eps1e-05": "conflict",
    }
    assert "belongs to another kernel" in second.defined.entries[0].reason
    assert second.defined.summary().lines[0].startswith("conflict: fused_add_rmsnorm_h64_eps1e-05: the name ")
    before = snapshot(context.workspace.root)
    onboard_model(context, "two", ModelOptions(config=other, op_types=("rmsnorm",)))
    assert snapshot(context.workspace.root) == before
    third = onboard_model(context, "three", ModelOptions(config=other, op_types=("rmsnorm",)))
    assert third.defined is not None
    assert third.defined.shared["rmsnorm_h64_eps1e-05"] == ("three", "two")


@pytest.mark.usefixtures("quick_gate")
def test_a_killed_run_with_conflicts_is_resumed_to_the_same_dataset(
    context: Context, write_config: Callable[..., Path]
) -> None:
    onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    other = write_config(rms_norm_eps=1e-5)
    onboard_model(context, "two", ModelOptions(config=other, op_types=("rmsnorm",)))
    before = snapshot(context.dataset.root)
    (context.dataset.root / "definitions" / "rmsnorm" / "rmsnorm_h64_eps1e-05.json").unlink()
    for path in context.workspace.root.glob("onboard_two_*.json"):
        path.unlink()
    onboard_model(context, "two", ModelOptions(config=other, op_types=("rmsnorm",)))
    assert snapshot(context.dataset.root) == before


@pytest.mark.usefixtures("quick_gate")
def test_the_same_kernel_of_others_under_another_name_is_left_as_it_is(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    folder = context.dataset.root / "definitions" / "rmsnorm"
    document = json.loads((folder / "rmsnorm_h64.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    folder.mkdir()
    foreign = folder / "norm_of_others.json"
    text = json.dumps(
        {**document, "name": "norm_of_others", "tags": ["fi_api:flashinfer.norm.rmsnorm", "status:verified"]}
    )
    foreign.write_text(text, encoding="utf-8")
    second = onboard_model(context, "two", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    assert second.defined is not None
    entry = next(entry for entry in second.defined.entries if entry.name == "norm_of_others")
    assert entry.status == "existing"
    assert foreign.read_text(encoding="utf-8") == text
    assert not (folder / "rmsnorm_h64.json").exists()
    kernel = next(kernel for kernel in second.manifest.kernels if kernel.name == "rmsnorm_h64")
    assert (kernel.phase1_status.value, kernel.definition) == ("existing", "norm_of_others")
    again = onboard_model(context, "two", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    assert again.defined is not None
    assert ("norm_of_others", "existing") in [(entry.name, entry.status) for entry in again.defined.entries]
    assert foreign.read_text(encoding="utf-8") == text


@pytest.mark.usefixtures("quick_gate")
def test_the_name_of_a_kernel_of_others_that_computes_the_same_is_left_as_it_is(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    path = context.dataset.root / "definitions" / "rmsnorm" / "rmsnorm_h64.json"
    text = json.dumps({**json.loads(path.read_text(encoding="utf-8")), "description": "In words of others."})
    path.write_text(text, encoding="utf-8")
    second = onboard_model(context, "two", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    assert second.defined is not None
    assert {entry.status for entry in second.defined.entries} == {"existing"}
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.usefixtures("quick_gate")
def test_a_kernel_is_defined_anew_when_asked(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    config = write_config()
    onboard_model(context, "one", ModelOptions(config=config, op_types=("rmsnorm",)))
    before = snapshot(context.dataset.root)
    again = onboard_model(context, "one", ModelOptions(config=config, op_types=("rmsnorm",)), skip_existing=False)
    assert again.defined is not None
    assert {entry.reason for entry in again.defined.entries} == {""}
    assert snapshot(context.dataset.root) == before


@pytest.mark.usefixtures("quick_gate")
def test_kernels_of_an_older_manifest_are_kept_when_they_are_done(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    onboard_model(context, "one", ModelOptions(config=write_config(hidden_size=128), op_types=("rmsnorm",)))
    names = [kernel["name"] for kernel in read_manifest(context)["kernels"]]
    assert names == ["fused_add_rmsnorm_h128", "rmsnorm_h128", "fused_add_rmsnorm_h64", "rmsnorm_h64"]


@pytest.mark.usefixtures("untraced")
def test_a_reference_that_does_not_run_is_refused(
    context: Context, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Definition.model_copy

    def break_reference(self: Definition, **options: Any) -> Definition:
        copy = build(self, **options)
        broken = "def run(*tensors):\n    raise ValueError('broken on purpose')\n"
        return build(copy, update={"reference": broken}) if copy.name == "embedding_v128_d64" else copy

    with monkeypatch.context() as patch:
        patch.setattr(Definition, "model_copy", break_reference)
        result = onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("embedding",)))
    assert result.has_errors
    assert result.defined is not None
    (entry,) = result.defined.entries
    assert entry.status == "refused"
    assert "broken on purpose" in entry.reason
    (kernel,) = read_manifest(context)["kernels"]
    assert kernel["define_status"] == "refused"
    assert not list(context.dataset.definition_files())
    monkeypatch.setattr("fib_tools.phases.staging.open_sandbox", nullcontext)
    monkeypatch.setattr("fib_tools.phases.staging.admit", partial(admit, execute=False))
    again = onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("embedding",)))
    assert not again.has_errors, "a refused kernel is tried again"


@pytest.mark.parametrize(
    ("phases", "message"),
    [((9, 1), "phases cannot be 9"), ((), "phases cannot be")],
)
def test_phases_that_there_are_not_are_refused_before_anything_is_written(
    context: Context, phases: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        get_operation("onboard").run(context, {"model": "kimi-k2", "phases": phases})
    assert not context.workspace.root.exists()


@pytest.mark.parametrize("phase", [3, 4])
def test_a_later_phase_without_the_earlier_ones_says_what_to_run(context: Context, phase: int) -> None:
    with pytest.raises(RequestError, match="'kimi-k2' is not onboarded here") as caught:
        onboard_model(context, "kimi-k2", phases=(phase,))
    assert "fib onboard kimi-k2 --phases 0,1,2" in str(caught.value)


@pytest.mark.usefixtures("quick_gate")
def test_the_time_of_each_phase_is_in_the_manifest_and_grows_only_when_something_was_done(
    context: Context, write_config: Callable[..., Path]
) -> None:
    options = ModelOptions(config=write_config(), op_types=("rmsnorm",))
    first = onboard_model(context, "one", options).manifest.times
    assert [(time.phase, time.step, time.machine) for time in first] == [
        (1, None, read_cpu_name()),
        (2, None, read_cpu_name()),
    ]
    assert all(time.seconds > 0 for time in first)
    assert onboard_model(context, "one", options).manifest.times == first
    more = ModelOptions(config=write_config(), op_types=("rmsnorm", "embedding"))
    second = onboard_model(context, "one", more).manifest.times
    assert all(now.seconds > before.seconds for now, before in zip(second, first, strict=True))
    assert list(show_status(context).onboardings[0].seconds.values()) == [time.seconds for time in second]


def test_a_page_is_written_beside_the_manifest(onboarded: tuple[Context, OnboardResult, Path]) -> None:
    context, result, _ = onboarded
    page = Path(result.page)
    assert page.parent == context.workspace.root
    assert f"{page.stem}.json" == Path(result.manifest_path).name
    text = page.read_text(encoding="utf-8")
    assert all(kernel.name in text.replace("<wbr>", "") for kernel in result.manifest.kernels)
    assert f"page: {page}" in result.summary().lines


@pytest.mark.usefixtures("quick_gate")
def test_a_dry_run_writes_no_page(context: Context, write_config: Callable[..., Path]) -> None:
    result = onboard_model(context, "one", ModelOptions(config=write_config(), op_types=("rmsnorm",)), dry_run=True)
    assert result.page == ""
    assert not list(context.workspace.root.glob("*.html"))


def test_a_second_run_at_once_is_told_who_holds_the_lock(context: Context, write_config: Callable[..., Path]) -> None:
    context.workspace.create()
    with hold(workspace_lock(context), purpose="the onboarding of kimi-k2"), pytest.raises(LockedError) as caught:
        onboard_model(context, "tiny", ModelOptions(config=write_config()))
    assert "holds the lock for 'the onboarding of kimi-k2'" in caught.value.what
    assert list(context.workspace.root.glob("onboard_*")) == []


@pytest.mark.usefixtures("untraced")
def test_a_refused_way_of_serving_is_listed(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    result = take_inventory(context, "kimi-k2", ModelOptions(config=write_config()))
    lines = result.summary().lines
    assert any(line.startswith("refused: tp") and "cannot be cut" in line for line in lines)
    assert any(line.startswith("note: not traced") for line in lines)
    assert result.manifest.refused


@pytest.mark.usefixtures("untraced")
def test_a_kernel_that_cannot_be_described_is_listed_as_refused(
    context: Context, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fib_tools.phases.classify.find_kernel_type", lambda _kernel: None)
    manifest: Manifest = take_inventory(context, "tiny", ModelOptions(config=write_config())).manifest
    assert not manifest.kernels
    assert any("no op_type describes the kernel 'rmsnorm'" in entry.reason for entry in manifest.refused)


@pytest.mark.usefixtures("quick_gate")
def test_the_command_prints_the_model_as_json(
    context: Context, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = context.workspace.root
    command = ["onboard", "tiny", "--config", str(write_config()), "--workspace", str(root), "--op-types", "rmsnorm"]
    assert main([*command, "--json", "--offline", "--phases", "0,1,2"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert OnboardResult.model_validate(document).manifest == Manifest.model_validate(read_manifest(context))
    assert [entry["status"] for entry in document["defined"]["entries"]] == ["defined", "defined"]
    assert "listing the kernels" in captured.err
    assert main([*command, "--json", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
