"""`fib collect MODEL`: the engine is started, its calls are taken in as they come, and become Workloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import MissingDependencyError, RequestError
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases import collect_serving, serving
from fib_tools.phases.collect_result import CollectResult
from fib_tools.phases.context import Context

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 8, "eps": 1e-5})
DECODE = get_kernel_type("gqa_paged_decode").build(
    {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 8, "page_size": 1}
)


@pytest.fixture
def ready(context: Context) -> Context:
    for definition in (NORM, DECODE):
        context.dataset.write_definition(definition)
    return context


def collect(context: Context, **options: Any) -> CollectResult:
    values = {"model": "tiny", "tp_list": (1,), "batch_sizes": (1, 3), "isl": 12, "osl": 2, **options}
    result = get_operation("collect").run(context, values)
    assert isinstance(result, CollectResult)
    return result


def test_a_model_is_served_and_its_calls_become_workloads(
    ready: Context, made: list[Any], write_config: Callable[..., Path]
) -> None:
    result = collect(ready, config=write_config(), random_range_ratio=1.0)
    assert not result.has_errors
    assert [(run.name, run.status) for run in result.runs] == [("tp1", "done"), ("tp1-paged", "done")]
    assert [[len(batch.sequences) for batch in run.batches] for run in made] == [[1, 3]] * 2
    by_name = {entry.definition: entry for entry in result.entries}
    assert by_name[DECODE.name].calls == 2 * 4
    assert {(axes.axis, str(axes.calls)) for axes in by_name[NORM.name].spreads} == {("batch_size", "7 / 12 / 36 / 36")}
    workloads = (ready.dataset.root / "workloads/gqa_paged" / f"{DECODE.name}.jsonl").read_text().splitlines()
    assert {json.loads(line)["workload"]["origin"] for line in workloads} == {"dummy"}
    assert sorted(json.loads(line)["workload"]["count"] for line in workloads) == [2, 2, 2, 2]
    assert result.most_bytes
    assert not list((ready.workspace.root / "collected").rglob("*-calls"))


def test_the_engine_is_given_room_for_the_requests(
    ready: Context, made: list[Any], write_config: Callable[..., Path]
) -> None:
    collect(ready, config=write_config(), isl=6000, osl=3, batch_sizes=(2,), random_range_ratio=1.0)
    (arguments, *_) = [run.arguments for run in made]
    assert arguments["max_total_tokens"] == 2 * 6003 + 1024
    assert arguments["context_length"] == 6003 + 16
    assert arguments["load_format"] == "dummy"


def test_real_prompts_and_weights_are_served_as_they_are(
    ready: Context, made: list[Any], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    weights = ready.workspace.root / "weights"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text(write_config().read_text())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"input_ids": list(range(5 + n)), "output_tokens": 1}) + "\n" for n in range(4))
    )
    result = collect(ready, config=write_config(), prompts=prompts, weights=str(weights))
    assert result.origin == "real"
    assert made[0].overrides == {}
    assert made[0].config["num_hidden_layers"] == json.loads(write_config().read_text())["num_hidden_layers"]
    assert [each.tokens for each in made[0].batches[1].sequences] == [tuple(range(5 + n)) for n in (1, 2, 3)]
    assert {each.max_new_tokens for batch in made[0].batches for each in batch.sequences} == {1}
    assert "load_format" not in made[0].arguments


def test_made_up_prompts_make_no_real_workloads(
    ready: Context, made: list[Any], write_config: Callable[..., Path]
) -> None:
    weights = ready.workspace.root / "weights"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text(write_config().read_text())
    assert collect(ready, config=write_config(), weights=str(weights)).origin == "synthetic"
    assert made


def test_an_engine_that_fails_is_an_error_and_what_it_did_before_is_kept(
    ready: Context, made: list[Any], write_config: Callable[..., Path]
) -> None:
    result = collect(ready, config=write_config(behaviour="fail"))
    assert result.has_errors
    assert {run.status for run in result.runs} == {"failed"}
    assert any("heads do not divide" in line for line in result.summary().lines)
    assert {entry.status for entry in result.entries} == {"written"}
    assert made


def test_an_interrupt_ends_the_engine_and_keeps_what_was_read(
    ready: Context, made: list[Any], write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    del made
    follow = collect_serving.Follower.step

    def step(follower: Any) -> bool:
        if follow(follower):
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(collect_serving.Follower, "step", step)
    result = collect(ready, config=write_config())
    assert [run.status for run in result.runs] == ["interrupted", "interrupted"]
    assert result.has_errors
    assert {entry.status for entry in result.entries} == {"written"}


def test_calls_that_a_killed_run_has_left_are_not_taken_for_this_ones(
    ready: Context, made: list[Any], write_config: Callable[..., Path]
) -> None:
    stale = ready.workspace.root / "collected" / "tiny" / "tp1-calls" / "20260101_000000_000_pid1_rmsnorm_call0001"
    stale.mkdir(parents=True)
    result = collect(ready, config=write_config())
    assert not result.refused
    assert made


def test_a_dry_run_shows_the_runs_and_starts_nothing(
    ready: Context, made: list[Any], write_config: Callable[..., Path]
) -> None:
    result = collect(ready, config=write_config(), dry_run=True)
    assert {run.status for run in result.runs} == {"would run"}
    assert not result.has_errors
    assert any("4 prompts of " in line and "batch of 1, batch of 3" in line for line in result.summary().lines)
    assert not made
    assert not (ready.workspace.root / "collected").exists()


@pytest.mark.usefixtures("untraced")
def test_without_a_gpu_it_is_said_what_to_do(
    ready: Context, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_has_sglang", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MissingDependencyError, match="--from-dir"):
        collect(ready, config=write_config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "nothing to collect from"),
        ({"origin": "dummy"}, "is known of a model that is served here"),
        ({"from_dir": Path()}, "is known of a model that is served here"),
        ({"consume": True}, "belong to --from-dir"),
        ({"follow": 3.0}, "belong to --from-dir"),
        ({"prompts": Path("text.jsonl")}, "there is no tokenizer"),
        ({"prompts": Path("few.jsonl")}, "1 prompts of 4 tokens or more, and 4 are asked for"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(  # fixtures
    ready: Context,
    made: list[Any],
    write_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    root = ready.workspace.root
    monkeypatch.chdir(root)
    (root / "text.jsonl").write_text('{"prompt": "How do you do?"}\n')
    (root / "few.jsonl").write_text('{"input_ids": [1, 2, 3, 4]}\n{"input_ids": [1]}\n')
    with pytest.raises(RequestError, match=message):
        collect(ready, config=write_config(), **options)
    assert not made
