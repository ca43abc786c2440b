"""Phase 4 of an onboarding: that of `fib submit`, whose own tests are in test_submit.py, with its time and its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fib_tools.errors import RequestError
from fib_tools.model.manifest import Submission
from fib_tools.phases import onboard_submit
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest, save_manifest
from fib_tools.phases.onboard import OnboardResult, onboard_model
from fib_tools.phases.onboard_submit import SubmitOptions
from fib_tools.phases.request import ModelOptions
from fib_tools.phases.submit_result import SubmitEntry, SubmitResult
from fib_tools.publish.checklist import Failure
from fib_tools.publish.outward import Request
from tiny_model import snapshot

LINK = "https://github.com/flashinfer-ai/flashinfer-bench/pull/7"


@pytest.fixture
def defined(context: Context, write_config: Callable[..., Path], quick_gate: None) -> Context:
    del quick_gate
    onboard_model(context, "tiny", ModelOptions(config=write_config(), op_types=("rmsnorm",)))
    return context


def submit(context: Context, how: SubmitOptions = onboard_submit.SHOWN, **options: Any) -> OnboardResult:
    return onboard_model(context, "tiny", submitting=how, phases=(4,), **options)


def list_times(context: Context) -> list[float]:
    found = find_manifest(context.workspace, "tiny")
    assert found is not None
    return [time.seconds for time in found[1].times if time.phase == 4]


def test_what_is_held_back_is_shown_and_is_an_error(defined: Context) -> None:
    result = submit(defined)
    assert result.submitted is not None
    assert not result.submitted.sent
    assert result.has_errors
    assert {entry.status for entry in result.submitted.entries} == {"blocked"}
    assert "Held back by the checklist" in Path(result.page).read_text(encoding="utf-8")
    assert [table.title for table in result.summary().tables][2:] == ["held back", "pull requests and issues"]


def test_looking_again_takes_no_time_and_changes_no_byte(defined: Context) -> None:
    submit(defined)
    before = snapshot(defined.workspace.root)
    assert len(list_times(defined)) == 1
    submit(defined)
    assert snapshot(defined.workspace.root) == before


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for a submission that opens a pull request."""
    asked: list[dict[str, Any]] = []

    def submit_prs(context: Context, model: str, **options: Any) -> SubmitResult:
        asked.append(options)
        found = find_manifest(context.workspace, model)
        assert found is not None
        entry = SubmitEntry(
            kind="coverage", subject="model", status="opened", repo="flashinfer-ai/flashinfer-bench", url=LINK
        )
        done = Submission(kind="coverage", subject="model", repo=entry.repo, number=7, url=LINK)
        if options["yes"]:
            save_manifest(context.workspace, found[0], found[1].model_copy(update={"submissions": (done,)}))
        return SubmitResult(
            model=model,
            manifest_path="",
            sent=options["yes"],
            entries=(entry,),
            failures=(Failure(group="model", check="tags", found="<none>", todo="x"),) if not options["yes"] else (),
            requests=(Request(service="github", method="POST", target="/pulls"),),
        )

    monkeypatch.setattr(onboard_submit, "submit_prs", submit_prs)
    return asked


def test_what_was_sent_takes_time_and_its_link_is_on_the_page(defined: Context, sent: list[dict[str, Any]]) -> None:
    first = submit(defined, SubmitOptions(yes=True, group="definition", dummy_weights=True))
    assert sent == [{"yes": True, "group": "definition", "dummy_weights": True}]
    (spent,) = list_times(defined)
    submit(defined, SubmitOptions(yes=True))
    assert list_times(defined) > [spent]
    page = Path(first.page).read_text(encoding="utf-8")
    assert page.count(f'<a href="{LINK}"') == 1


def test_a_dry_run_sends_nothing(defined: Context, sent: list[dict[str, Any]]) -> None:
    submit(defined, SubmitOptions(yes=True), dry_run=True)
    assert [options["yes"] for options in sent] == [False]


def test_a_workspace_goes_through_phases_3_and_4_in_one_call(defined: Context, sent: list[dict[str, Any]]) -> None:
    from fib_tools.phases.collect_options import CollectOptions

    how = CollectOptions(device="cpu", skip_steps=("test", "calibrate"))
    result = onboard_model(defined, "tiny", collecting=how, phases=(3, 4))
    assert result.collected is not None
    assert result.submitted is not None
    assert len(sent) == 1


def test_phase_4_waits_for_a_phase_3_that_could_not_run(
    context: Context, write_config: Callable[..., Path], quick_gate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del quick_gate
    monkeypatch.setattr(
        "fib_tools.phases.onboard_collect.discover_gpus", lambda _: SimpleNamespace(visible=(), notes=())
    )
    options = ModelOptions(config=write_config(), op_types=("rmsnorm",))
    result = onboard_model(context, "tiny", options, phases=(0, 1, 2, 3, 4))
    assert result.problem.startswith("phase 3: phase 3 needs a GPU")
    assert result.submitted is None


def test_an_agent_has_a_tool_for_it(defined: Context) -> None:
    with pytest.raises(RequestError, match="a tool of its own") as caught:
        submit(replace(defined, is_confined=True))
    assert caught.value.todo == "call fib_submit_prs"
