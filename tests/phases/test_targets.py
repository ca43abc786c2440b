from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from bench_dataset import Case, write_cases
from fib_tools.errors import RequestError
from fib_tools.model.manifest import Manifest
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import manifest_name, save_manifest
from fib_tools.phases.targets import list_targets
from manifest_kernels import make_kernel


@pytest.fixture
def context(tmp_path: Path) -> Context:
    workspace = Workspace(root=tmp_path)
    kernels = (
        make_kernel("often", 60, (4, 8)),
        make_kernel("once", 1, (8,)),
        make_kernel("never", 1, (8,)),
        make_kernel("small", 60, (4,)),
    )
    save_manifest(workspace, manifest_name("tiny", date(2026, 11, 21)), Manifest(model="tiny", kernels=kernels))
    dataset = workspace.dataset_root
    (dataset / "definitions").mkdir(parents=True)
    own = {"op_type": "rmsnorm", "author": "baseline", "solution": "s", "axes": {"n": 1}}
    write_cases(dataset, [Case(definition=name, percent=40.0, **own) for name in ("often", "once", "small")])
    return Context(workspace=workspace, offline=True)


def test_a_models_kernels_are_ranked_by_what_could_be_saved(context: Context) -> None:
    result = list_targets(context, "tiny")
    assert (result.tp, result.device) == (8, "NVIDIA H200")
    assert [row.definition for row in result.targets] == ["often", "once"]
    assert result.targets[0].share == pytest.approx(60 / 61, rel=1e-3)
    assert result.unmeasured == ("never",)
    assert "begin with: fib optimize often" in result.summary().lines


def test_another_size_has_other_kernels_and_another_gpu_no_times(context: Context) -> None:
    assert {row.definition for row in list_targets(context, "tiny", tp=4).targets} == {"often", "small"}
    elsewhere = list_targets(context, "tiny", gpu="B200")
    assert (elsewhere.device, elsewhere.targets) == ("B200", ())


def test_a_model_that_was_not_onboarded_is_refused(context: Context) -> None:
    with pytest.raises(RequestError, match="huge was not onboarded here"):
        list_targets(context, "huge")
