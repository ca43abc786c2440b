from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fib_tools.errors import OfflineError, RequestError
from fib_tools.phases.context import Context
from fib_tools.phases.trace_block import trace_block
from fib_tools.phases.trace_model import trace_model
from hosted_weights import HostedWeights
from loopback import serve
from tiny_checkpoints import make_llama, write_safetensors

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
