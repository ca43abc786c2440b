from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.watch import Tally
from fib_tools.errors import RequestError, UnknownModelError
from fib_tools.phases.context import Context
from fib_tools.phases.trace_block import trace_block
from fib_tools.phases.trace_model import TraceModelResult, count_padded, trace_model
from fib_tools.phases.validate import validate_dataset
from tiny_checkpoints import make_llama, write_safetensors
from tiny_forward import make_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_safetensors(make_llama(), tmp_path_factory.mktemp("llama") / "hf"))


def test_a_model_that_runs_gives_workloads_of_all_that_it_calls(context: Context, llama: str) -> None:
    result = trace_model(context, llama, max_new_tokens=3, lengths=(9, 5), create_missing=True)
    assert (result.missing, result.unmapped, result.has_errors) == ((), (), False)
    assert set(result.created) == {entry.definition for entry in result.entries}
    kinds = {entry.op_type for entry in result.entries}
    assert kinds >= {"embedding", "rmsnorm", "gemm", "rope", "gqa_ragged", "gqa_paged", "activation", "sampling"}
    assert validate_dataset(context).has_errors is False
    dataset = context.dataset
    (decode,) = [entry for entry in result.entries if entry.op_type == "gqa_paged"]
    found = dataset.load_workloads("gqa_paged", decode.definition)
    # two tokens after the first, each at another length, in each of three layers
    assert sorted((each.axes["num_kv_indices"], each.count) for each in found) == [(16, 3), (18, 3)]
    assert {each.origin for each in found} == {"synthetic"}
    again = trace_model(context, llama, max_new_tokens=3, lengths=(9, 5))
    added = dataset.load_workloads("gqa_paged", decode.definition)
    assert tuple(each.model_copy(update={"count": 3}) for each in added) == found
    assert [each.count for each in added] == [6, 6], "calls of a later run are other calls"
    assert [(entry.definition, entry.calls) for entry in again.entries] == [
        (entry.definition, entry.calls) for entry in result.entries
    ]


def test_what_the_dataset_has_not_got_is_listed_with_the_option_that_creates_it(context: Context, llama: str) -> None:
    trace_model(context, llama, max_new_tokens=1, lengths=(4,), create_missing=True)
    for path in (context.dataset.root / "definitions").glob("rope/*.json"):
        path.unlink()
    result = trace_model(context, llama, max_new_tokens=1, lengths=(4,), dry_run=True)
    (missing,) = result.missing
    assert (missing.kernel, missing.calls, missing.reason) == ("rope", 3, "")
    assert {entry.status for entry in result.entries} == {"would write"}
    assert result.summary().lines[-1] == "to create what is missing, run it again with --create-missing"


def test_a_definition_that_is_called_differently_is_no_missing_one(context: Context, llama: str) -> None:
    trace_model(context, llama, max_new_tokens=1, lengths=(4,), create_missing=True)
    result = trace_model(context, llama, max_new_tokens=1, lengths=(4,), dtype="float32", create_missing=True)
    (rope,) = [each for each in result.missing if each.kernel == "rope"]
    assert "the dataset's is called differently: q has the dtypes float32 and bfloat16" in rope.reason
    assert "--create-missing" not in result.summary().lines[-1]


def test_a_model_of_state_spaces_alone_is_watched(context: Context, tmp_path: Path) -> None:
    make_model("mamba").save_pretrained(tmp_path / "mamba")
    result = trace_model(context, str(tmp_path / "mamba"), max_new_tokens=2, lengths=(9, 5), create_missing=True)
    assert result.matched
    assert "mamba_selective_scan" in {each.what for each in result.unmapped}


def test_what_is_no_model_may_be_a_folder_of_weights(context: Context) -> None:
    for is_dummy in (False, True):
        with pytest.raises(UnknownModelError, match=r"pass a known name.* or a folder or file of weights$"):
            trace_model(context, "./no-such-folder", dummy_weights=is_dummy, create_missing=True)


def test_a_dry_run_says_what_would_be_created(context: Context, llama: str) -> None:
    result = trace_model(context, llama, max_new_tokens=1, lengths=(4,), create_missing=True, dry_run=True)
    assert (result.created, result.missing, result.entries, result.matched) == ((), (), (), 0)
    assert sum(each.calls for each in result.would_create) == result.calls
    assert "rope" in {each.kernel for each in result.would_create}
    summary = result.summary()
    assert summary.tables[-1].title == "would be created"
    assert "--create-missing" not in summary.lines[-1]
    assert not context.dataset.root.exists()


def test_without_a_dataset_the_remedy_names_the_option_that_makes_one(context: Context, llama: str) -> None:
    with pytest.raises(RequestError, match=r"there is no dataset.*fib define MODEL, or pass --create-missing"):
        trace_model(context, llama)


def test_experts_need_a_definition_that_says_how_they_are_chosen(context: Context, tmp_path: Path) -> None:
    model = make_model("qwen3_moe")
    model.save_pretrained(tmp_path / "moe")  # type: ignore[operator]  # a transformers model
    result = trace_model(context, str(tmp_path / "moe"), max_new_tokens=1, lengths=(6, 4), create_missing=True)
    (missing,) = result.missing
    assert missing.kernel == "moe_bf16"
    assert "fib define has it" in missing.reason
    assert "moe_routing_default_topk2_e8" in [entry.definition for entry in result.entries]


def test_prompts_need_a_file_and_a_tokenizer(
    context: Context, llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.dataset.root.mkdir(parents=True)
    (context.dataset.root / "definitions").mkdir()
    with pytest.raises(RequestError, match="is not there"):
        trace_model(context, llama, prompts=tmp_path / "none.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(RequestError, match="holds no prompt"):
        trace_model(context, llama, prompts=empty)
    empty.write_text("hello\n", encoding="utf-8")
    monkeypatch.setattr("fib_tools.phases.trace_model.load_weights", None)  # it comes later
    with pytest.raises(RequestError, match="there is no tokenizer"):
        trace_model(context, llama, prompts=empty)


def test_positions_are_needed_for_new_tokens_too(context: Context, llama: str) -> None:
    told = "8190 tokens and 3 new ones are too many .*; the model has 8192 positions"
    with pytest.raises(RequestError, match=told):
        trace_model(context, llama, lengths=(8190,), max_new_tokens=3, create_missing=True)


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_a_gpu_that_is_not_there_is_refused(
    context: Context, llama: str, device_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RequestError, match="torch sees no GPU"):
        trace_model(context, llama, device="cuda", device_map=device_map, create_missing=True)


def test_an_empty_name_is_not_this_folder(context: Context, llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama)
    with pytest.raises(RequestError, match="the model has no name"):
        trace_model(context, "", create_missing=True)
    with pytest.raises(RequestError, match="the model has no name"):
        trace_block(context, "")


def test_what_ran_and_is_no_call_of_a_kernel_type_is_counted_with_its_shapes(context: Context, tmp_path: Path) -> None:
    model = make_model("qwen3_next")
    model.save_pretrained(tmp_path / "next")  # type: ignore[operator]  # a transformers model
    result = trace_model(context, str(tmp_path / "next"), max_new_tokens=2, lengths=(6, 4), create_missing=True)
    assert result.calls == result.matched + sum(each.calls for each in (*result.missing, *result.unmapped))
    states = {entry.definition: entry.calls for entry in result.entries if entry.op_type in {"gdn", "causal_conv1d"}}
    assert states == {
        "causal_conv1d_prefill_c128_w4": 1,
        "causal_conv1d_decode_c128_w4": 1,
        "gdn_prefill_qk2_v4_d16_k_last": 1,
        "gdn_decode_qk2_v4_d16_k_last": 1,
    }
    assert result.has_errors is False
    gated = next(each for each in result.unmapped if each.kernel == "rmsnorm_gated")
    assert (gated.calls, gated.shapes) == (2, ("[48, 16] x [48, 16]", "[8, 16] x [8, 16]"))
    summary = result.summary()
    assert summary.tables[-1].columns == ("what", "would be", "calls", "shapes", "why")
    missing, missed = (sum(each.calls for each in items) for items in (result.missing, result.unmapped))
    wanted = f"calls seen: {result.calls}, matched: {result.matched}, without a Definition: {missing}, missed: {missed}"
    assert wanted in summary.lines


def test_calls_whose_rows_may_count_padding_are_told() -> None:
    padded = Call(kernel="gemm", parameters={}, axes={"M": 24}, rows=(2, 12))
    plain = Call(kernel="gemm", parameters={}, axes={"M": 20})
    missed = Unmapped(what="relu", reason="")
    calls = count_padded([Tally(padded, 3), Tally(plain, 5), Tally(missed, 7)])
    assert calls == 3
    result = TraceModelResult(
        model="m", dataset="d", origin="synthetic", seconds=1.0, calls=15, matched=8, entries=(), padded_calls=calls
    )
    assert "3 calls are of rows that may count padding" in result.summary().lines
