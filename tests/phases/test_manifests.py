from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from fib_tools.errors import FormatError, PathError, RequestError
from fib_tools.model.manifest import DefineStatus, FiStatus, Manifest, ManifestKernel, Phase1Status, SglStatus
from fib_tools.phases.context import Workspace
from fib_tools.phases.manifests import (
    find_manifest,
    kernel_key,
    list_manifests,
    manifest_model,
    manifest_name,
    merge_manifests,
    save_manifest,
)


def kernel(
    hidden_size: int = 64, *, status: DefineStatus = DefineStatus.PENDING, tp: tuple[int, ...] = (1,)
) -> ManifestKernel:
    return ManifestKernel(
        name=f"rmsnorm_h{hidden_size}",
        op_type="rmsnorm",
        kernel="rmsnorm",
        parameters={"hidden_size": hidden_size},
        tp=tp,
        phase1_status=Phase1Status.NEW,
        fi_status=FiStatus.SUPPORTED,
        fi_trace_template=True,
        sgl_status=SglStatus.MISSING,
        define_status=status,
        executed=True if status is DefineStatus.DEFINED else None,
    )


@pytest.mark.parametrize("model", ["kimi-k2", "a_b", "llama-3.1-8b", "onboard_x_2026-01-01"])
def test_a_manifests_name_gives_back_its_model(model: str) -> None:
    name = manifest_name(model, date(2026, 11, 21))
    assert name == f"onboard_{model}_2026-11-21.json"
    assert manifest_model(name) == model


def test_a_name_of_something_else_is_its_own_model() -> None:
    assert manifest_model("notes.json") == "notes.json"


def test_the_latest_manifest_of_a_model_is_found(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path)
    assert find_manifest(workspace, "b") is None
    for model, day in (("b", 2), ("b", 11), ("a", 12), ("b-2", 30)):
        save_manifest(workspace, manifest_name(model, date(2026, 11, day)), Manifest(model=model))
    (tmp_path / "onboard_notes.json").write_text("{}", encoding="utf-8")
    assert list_manifests(workspace) == (
        "onboard_b_2026-11-02.json",
        "onboard_b_2026-11-11.json",
        "onboard_a_2026-11-12.json",
        "onboard_b-2_2026-11-30.json",
    )
    assert find_manifest(workspace, "b") == ("onboard_b_2026-11-11.json", Manifest(model="b"))


def test_a_manifest_is_written_only_when_it_changed(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path)
    assert save_manifest(workspace, "onboard_a_2026-11-21.json", Manifest(model="a"))
    before = (tmp_path / "onboard_a_2026-11-21.json").stat()
    assert not save_manifest(workspace, "onboard_a_2026-11-21.json", Manifest(model="a"))
    assert (tmp_path / "onboard_a_2026-11-21.json").stat().st_ino == before.st_ino
    assert save_manifest(workspace, "onboard_a_2026-11-21.json", Manifest(model="a", notes=("new",)))


def test_a_manifest_is_written_inside_its_workspace_only(tmp_path: Path) -> None:
    with pytest.raises(PathError):
        save_manifest(Workspace(root=tmp_path / "work"), "../onboard_a_2026-11-21.json", Manifest(model="a"))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "onboard_a_2026-11-21.json").write_text('{"format": 2, "model": "a"}', encoding="utf-8")
    with pytest.raises(FormatError, match="move that file away to begin anew") as caught:
        find_manifest(Workspace(root=tmp_path), "a")
    assert caught.value.where == "onboard_a_2026-11-21.json"


def test_a_kernel_is_the_same_when_its_witnesses_change() -> None:
    assert kernel_key(kernel()) == kernel_key(kernel(status=DefineStatus.DEFINED, tp=(8,)))
    assert kernel_key(kernel()) != kernel_key(kernel(128))


def test_merging_keeps_progress_and_joins_sizes() -> None:
    standing = Manifest(model="a", kernels=(kernel(status=DefineStatus.DEFINED, tp=(4, 8)),), notes=("old",))
    merged = merge_manifests(standing, Manifest(model="a", kernels=(kernel(tp=(1, 8)),), notes=("new",)))
    assert merged.kernels == (kernel(status=DefineStatus.DEFINED, tp=(1, 4, 8)),)
    assert merged.notes == ("new",)


def test_merging_keeps_kernels_for_which_work_was_done() -> None:
    done, refused, pending = (
        kernel(1, status=DefineStatus.DEFINED),
        kernel(2, status=DefineStatus.REFUSED),
        kernel(3),
    )
    standing = Manifest(model="a", kernels=(done, refused, pending))
    assert merge_manifests(standing, Manifest(model="a", kernels=(kernel(),))).kernels == (kernel(), done, refused)


def test_two_repositories_of_one_short_name_are_not_mixed() -> None:
    ours, theirs = (Manifest(model="a", repo_id=f"{owner}/a") for owner in ("us", "them"))
    with pytest.raises(RequestError, match="us/a and them/a, which was onboarded here before, are both called a"):
        merge_manifests(theirs, ours)
    assert merge_manifests(Manifest(model="a"), ours) == ours


def test_merging_a_manifest_with_itself_changes_nothing() -> None:
    manifest = Manifest(model="a", kernels=(kernel(status=DefineStatus.DEFINED, tp=(1, 8)), kernel(2)))
    assert merge_manifests(manifest, manifest) == manifest
