from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fib_tools.model.manifest import Manifest
from fib_tools.model.progress import Asked
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import refresh_manifest, take_inventory
from fib_tools.phases.kept_config import recall_options
from fib_tools.phases.request import DEFAULTS, ModelOptions

pytestmark = pytest.mark.usefixtures("untraced")


def test_a_config_of_a_file_is_kept_and_one_that_comes_with_the_package_is_not(
    context: Context, write_config: Callable[..., Path]
) -> None:
    context.workspace.create()
    refresh_manifest(context, "kimi-k2", ModelOptions(op_types=("rmsnorm",)))
    manifest = refresh_manifest(context, "tiny", ModelOptions(config=write_config(), op_types=("rmsnorm",))).whole
    assert [path.name for path in (context.workspace.root / "configs").iterdir()] == ["tiny.json"]
    recalled = recall_options(context, manifest, DEFAULTS)
    assert recalled == ModelOptions(config=context.workspace.root / "configs" / "tiny.json", op_types=("rmsnorm",))
    again = take_inventory(context, "tiny", recalled).manifest
    assert [kernel.name for kernel in again.kernels] == [kernel.name for kernel in manifest.kernels]
    looked = take_inventory(context, "tiny", ModelOptions(config=write_config(), op_types=("embedding",))).manifest
    assert looked.asked == manifest.asked, "what is looked at is not what is gone on with"


def test_what_is_asked_for_now_counts_more_than_what_was_asked_for_before(
    context: Context, write_config: Callable[..., Path]
) -> None:
    manifest = Manifest(model="tiny", asked=Asked(tp_list=(2,), ep_list=(4,), op_types=("gemm",)))
    assert recall_options(context, manifest, ModelOptions(tp_list=(1,))) == ModelOptions(tp_list=(1,))
    assert recall_options(context, manifest, ModelOptions(op_types=("moe",))) == ModelOptions(
        tp_list=(2,), ep_list=(4,), op_types=("moe",)
    )
    take_inventory(context, "tiny", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    other = write_config()
    assert recall_options(context, manifest, ModelOptions(config=other)).config == other


def test_a_manifest_without_a_request_recalls_nothing(context: Context) -> None:
    assert recall_options(context, Manifest(model="kimi-k2"), DEFAULTS) == DEFAULTS
