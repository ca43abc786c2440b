from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints import placement
from fib_tools.capture.perfetto_reading import read_trace
from fib_tools.errors import OfflineError, RequestError
from fib_tools.phases.context import Context
from fib_tools.phases.trace_block import trace_block
from fib_tools.phases.trace_model import trace_model
from hosted_weights import HostedWeights
from loopback import serve
from tiny_checkpoints import LLAMA, make_llama, write_safetensors
from tiny_forward import make_model

REPO = "acme/Tiny-1B"


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedWeights]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hosted = HostedWeights()
    hosted.host(REPO, write_safetensors(make_llama(), tmp_path / "hf", shard="100KB"))
    with serve(hosted):
        monkeypatch.setenv("HF_ENDPOINT", hosted.url)
        yield hosted


def test_a_model_is_traced_by_its_name_at_the_hub(context: Context, hosted: HostedWeights) -> None:
    said: list[str] = []
    online = replace(context, offline=False, progress=lambda step, *_: said.append(step))
    result = trace_model(online, REPO, max_new_tokens=1, lengths=(4,), create_missing=True)
    assert (result.missing, result.has_errors) == ((), False)
    assert result.calls > 0
    assert any(step.startswith("downloading") and REPO in step for step in said)
    hosted.asked.clear()
    again = trace_model(context, REPO, max_new_tokens=1, lengths=(4,))
    block = trace_block(online, REPO, tokens=3)
    assert hosted.asked == [], "all of it is in the cache"
    assert again.calls == result.calls
    assert Path(block.path).name == "Tiny-1B_layer0.pftrace"


def test_offline_a_model_that_is_not_in_the_cache_is_refused(context: Context, hosted: HostedWeights) -> None:
    with pytest.raises(OfflineError, match=rf"leave out --offline, run: hf download {REPO} .*--dummy-weights"):
        trace_block(context, REPO)
    assert hosted.asked == []


def test_a_file_that_is_not_there_is_no_name_of_a_model(context: Context, hosted: HostedWeights) -> None:
    with pytest.raises(RequestError, match="is not there"):
        trace_block(replace(context, offline=False), "acme/tiny.gguf")
    assert hosted.asked == []


def test_prompts_are_read_by_the_tokenizer_that_was_fetched(
    context: Context, hosted: HostedWeights, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"other": 0, "hello": 5, "world": 6}, "other"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hosted.repositories[REPO] |= {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "other"}',
    }
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello world\nhello\n", encoding="utf-8")
    online = replace(context, offline=False)
    result = trace_model(online, REPO, prompts=prompts, max_new_tokens=1, create_missing=True)
    assert result.origin == "real"
    (embedding,) = [each for each in result.entries if each.op_type == "embedding"]
    found = context.dataset.load_workloads("embedding", embedding.definition)
    assert [each.axes["num_tokens"] for each in found] == [3], "padding is no token"


def test_a_known_model_is_traced_without_its_weights(context: Context, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    result = trace_model(
        context, str(tmp_path), dummy_weights=True, layers=1, max_new_tokens=1, lengths=(4,), create_missing=True
    )
    assert (result.origin, result.missing, result.unmapped) == ("dummy", (), ())
    found = [
        workload
        for entry in result.entries
        for workload in context.dataset.load_workloads(entry.op_type, entry.definition)
    ]
    assert {each.origin for each in found} == {"dummy"}
    block = trace_block(context, str(tmp_path), dummy_weights=True, layer=1, tokens=3)
    assert read_trace(Path(block.path)).details["weights"] == "dummy"
    with pytest.raises(RequestError, match="the model has no layer 3; take --layer 0 to 2"):
        trace_block(context, str(tmp_path), dummy_weights=True, layer=3)


def test_without_weights_a_known_name_needs_no_network(context: Context) -> None:
    with pytest.raises(RequestError, match=r"the weights take \d+ GB.*--layers"):
        trace_model(context, "kimi-k2", dummy_weights=True, create_missing=True)
    with pytest.raises(RequestError, match=r"the weights take \d+ GB.*take fewer layers"):
        trace_model(context, "kimi-k2", dummy_weights=True, layers=60, create_missing=True)
    with pytest.raises(OfflineError, match="config of 'acme/Tiny-1B'"):
        trace_model(context, REPO, dummy_weights=True, create_missing=True)


def test_a_large_model_is_spread_over_what_there_is(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = str(write_safetensors(make_llama(), tmp_path / "hf"))
    plain = trace_model(context, weights, max_new_tokens=2, lengths=(9, 5), create_missing=True)
    monkeypatch.setattr(placement, "_measure_room", lambda _model, _whole: {"cpu": 100_000})
    spread = trace_model(context, weights, max_new_tokens=2, lengths=(9, 5), device_map="auto")
    assert [(each.definition, each.calls) for each in spread.entries] == [
        (each.definition, each.calls) for each in plain.entries
    ]
    assert {each.status for each in spread.entries} == {"written"}, "the same Workloads, which were called once more"
    with pytest.raises(RequestError, match="made-up weights are made on one device"):
        trace_model(context, weights, dummy_weights=True, device_map="auto")


def test_layers_of_linear_attention_alone_cannot_generate(context: Context, tmp_path: Path) -> None:
    model: Any = make_model("qwen3_next")
    model.save_pretrained(tmp_path / "next")
    with pytest.raises(RequestError, match=r"all of linear attention.*more --layers"):
        trace_model(context, str(tmp_path / "next"), layers=1, create_missing=True)
