from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.cli.app import main
from fib_tools.errors import RequestError
from fib_tools.operations import get_operation
from fib_tools.phases import onboard_all
from fib_tools.phases.context import Context
from fib_tools.phases.discover import DiscoverResult, Discovery
from fib_tools.phases.manifests import list_manifests
from fib_tools.phases.onboard import OnboardResult
from fib_tools.phases.onboard_all import OnboardAllResult

pytestmark = pytest.mark.usefixtures("quick_gate")
NORMS = {"op_types": ("rmsnorm",), "tp_list": (1,)}


def found(name: str, *, source: Any = "cookbook", onboarded: bool = False) -> Discovery:
    return Discovery(model=name, source=source, evidence="v1", config_bundled=True, onboarded=onboarded)


@pytest.fixture
def discover(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which models are new."""

    def say(*discoveries: Discovery) -> None:
        result = DiscoverResult(discoveries=discoveries, basis=("cookbook: as the test says",))
        monkeypatch.setattr(onboard_all, "discover_models", lambda *_, **__: result)

    return say


def run(context: Context, **options: Any) -> OnboardAllResult:
    result = get_operation("onboard").run(context, {"discover": True, **NORMS, **options})
    assert isinstance(result, OnboardAllResult)
    return result


def test_each_new_model_is_onboarded_and_one_that_fails_stops_no_other(
    context: Context, discover: Callable[..., None]
) -> None:
    discover(
        found("Qwen/Qwen3-30B-A3B-Instruct-2507"),
        found("nobody/has-this-model"),
        found("meta-llama/Llama-3.2-3B-Instruct"),
        found("deepseek-ai/DeepSeek-V3", onboarded=True),
        found("python/sglang/srt/models/new.py", source="sglang"),
    )
    result = run(context)
    assert [(line.model.partition("/")[0], line.status) for line in result.models] == [
        ("Qwen", "done"),
        ("nobody", "failed"),
        ("meta-llama", "done"),
    ]
    assert "nobody/has-this-model" in result.models[1].detail
    assert all(line.defined == line.kernels > 0 for line in result.models if line.status == "done")
    assert len(list_manifests(context.workspace)) == 2
    assert result.has_errors
    summary = result.summary()
    assert len(summary.tables[0].rows) == 3
    assert summary.lines == (
        "cookbook: as the test says",
        "1 new files of SGLang name no repository: fib discover lists them",
        "2 of 3 new models onboarded",
    )


def test_no_more_models_are_onboarded_than_the_limit(context: Context, discover: Callable[..., None]) -> None:
    known = (found("meta-llama/Llama-3.2-3B-Instruct"), found("Qwen/Qwen3-30B-A3B-Instruct-2507"))
    discover(found("nobody/has-this-model"), *known)
    result = run(context, limit=1)
    assert [line.status for line in result.models] == ["failed", "done", "left"], "what fails takes nobody's place"
    assert len(list_manifests(context.workspace)) == 1


def test_without_a_new_model_nothing_is_done(context: Context, discover: Callable[..., None]) -> None:
    discover(found("deepseek-ai/DeepSeek-V3", onboarded=True))
    result = run(context)
    assert result.models == ()
    assert result.summary().tables == ()
    assert not context.workspace.root.exists()


def test_one_model_is_onboarded_as_before(context: Context, write_config: Callable[..., Path]) -> None:
    values = {"model": "tiny", "config": write_config(), **NORMS}
    result = get_operation("onboard").run(context, values)
    assert isinstance(result, OnboardResult)
    assert get_operation("onboard").result is OnboardResult


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "no model given"), ({"model": "kimi-k2", "discover": True}, "MODEL and --discover exclude each other")],
)
def test_either_a_model_or_discovery_is_asked_for(context: Context, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_operation("onboard").run(context, values)


def test_the_bundled_cookbook_is_discovered_from_the_command_line(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["onboard", "--discover", "--limit", "1", "--op-types", "embedding", "--tp-list", "1", "--offline"]
    main([*words, "--json", "--workspace", str(context.workspace.root)])
    document = json.loads(capsys.readouterr().out)
    assert [line["status"] for line in document["models"]][1:] == ["left"] * (len(document["models"]) - 1)
    assert document["models"][0]["status"] in {"done", "failed"}
    assert document["basis"]
