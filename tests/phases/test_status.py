from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import example_dataset
from fib_tools.errors import RequestError
from fib_tools.phases import context as context_module
from fib_tools.phases.context import Context, Workspace, be_silent
from fib_tools.phases.inventory import take_inventory
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.status import _onboarding, show_status


def test_an_empty_workspace_says_what_to_run(context: Context) -> None:
    result = show_status(context)
    assert result.summary().lines[-1] == "no onboarding yet; run: fib onboard MODEL"
    assert result.summary().tables == ()
    assert not result.has_errors
    assert not context.workspace.root.exists()


@pytest.mark.usefixtures("untraced")
def test_an_onboarding_shows_its_kernels_by_status(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    manifest = take_inventory(context, "tiny", ModelOptions(config=write_config(), op_types=("rmsnorm",))).manifest
    example_dataset.write(context.dataset.root, "definitions/copy/copy_n4.json", example_dataset.DEFINITION)
    example_dataset.write(context.dataset.root, "definitions/stray.json", {})
    result = show_status(context)
    assert result.onboardings[0].kernels == {"pending": len(manifest.kernels)}
    assert result.documents == {"definition": 1, "stray": 1}
    (table,) = result.summary().tables
    assert table.columns == (
        "model",
        "pending",
        "defined",
        "existing",
        "refused",
        "seconds by phase",
        "submitted",
        "manifest",
    )
    assert table.rows[0][:2] == ("tiny", "2")


def test_a_dataset_elsewhere_is_looked_at(tmp_path: Path) -> None:
    context = Context(workspace=Workspace(root=tmp_path / "work"), dataset_override=tmp_path / "data")
    assert show_status(context).dataset == str(tmp_path / "data")


def test_a_manifest_that_vanished_counts_nothing(context: Context) -> None:
    assert _onboarding(context, "gone").kernels == {}


def test_a_clone_is_found_by_a_name_that_is_one(context: Context) -> None:
    with pytest.raises(RequestError):
        context.workspace.find_clone("../elsewhere")
    assert context.workspace.find_clone("sglang") is None


def test_silence_reports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    be_silent("a step", 1, 2)
    assert capsys.readouterr() == ("", "")
    assert "be_silent" in context_module.__all__


def test_a_broken_manifest_is_named(context: Context) -> None:
    context.workspace.create()
    (context.workspace.root / "onboard_a_2026-11-21.json").write_text("{", encoding="utf-8")
    result = show_status(context)
    (broken,) = result.onboardings
    assert (broken.model, broken.manifest) == ("a", "onboard_a_2026-11-21.json")
    assert result.summary().lines[0].startswith("unreadable: onboard_a_2026-11-21.json: not JSON")
