"""Requests for an engine: of given lengths, or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.traffic import make_batches, make_prompts, read_prompts
from fib_tools.errors import FormatError, RequestError, StorageError


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_made_up_prompts_have_lengths_between_the_share_and_the_whole() -> None:
    prompts = make_prompts(200, isl=100, osl=10, range_ratio=0.5, seed=0)
    assert {prompt.length for prompt in prompts} == set(range(50, 101))
    assert {prompt.max_new_tokens for prompt in prompts} == set(range(5, 11))
    assert len({prompt.pieces[0][0] for prompt in prompts}) == 200
    assert prompts == make_prompts(200, isl=100, osl=10, range_ratio=0.5, seed=0)
    assert {prompt.length for prompt in make_prompts(9, isl=7, osl=1, range_ratio=1.0, seed=0)} == {7}


def test_every_form_of_a_line_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "prompts.jsonl",
        {"conversations": [{"from": "human", "value": "a b c d e"}, {"from": "gpt", "value": "one two three"}]},
        {"prompt": "a b c d", "output": "one two"},
        {"prompt": "too short"},
        {"prompt": "a b c d e f g h i j"},
        {"input_ids": [9, 8, 7, 6, 5], "output_tokens": 64},
    )
    found = read_prompts(path, 4, encode=encode, isl=6, osl=5)
    assert [prompt.length for prompt in found] == [5, 4, 6, 5]
    assert [prompt.max_new_tokens for prompt in found] == [3, 2, 5, 5]
    assert found[3].tokens == (9, 8, 7, 6, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a b c d"}\n[1]\n', "holds no object"),
        ("[\n", "not JSON"),
        ('{"text": "a"}\n', 'no "conversations", "prompt" or "input_ids"'),
        ('{"input_ids": [1, -2, 3, 4]}\n', 'no "conversations"'),
        ('{"prompt": "' + "x" * (4 << 20) + '"}\n', "a line of over"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as raised:
        read_prompts(path, 2, encode=encode, isl=8, osl=1)
    assert str(path) in str(raised.value)


def test_a_missing_file_and_missing_prompts_are_errors_and_never_made_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"prompts\.jsonl"):
        read_prompts(tmp_path / "prompts.jsonl", 1, encode=encode, isl=8, osl=1)
    path = write(tmp_path / "prompts.jsonl", {"prompt": "a b c d"})
    with pytest.raises(RequestError, match="1 prompts of 4 tokens or more, and 2 are asked for"):
        read_prompts(path, 2, encode=encode, isl=8, osl=1)
    with pytest.raises(RequestError, match="there is no tokenizer"):
        read_prompts(path, 1, encode=None, isl=8, osl=1)


def test_prompts_are_sent_in_batches_with_names_of_their_own() -> None:
    prompts = make_prompts(7, isl=4, osl=1, range_ratio=1.0, seed=0)
    batches = make_batches(prompts, [2, 1, 2, 2])
    assert [batch.name for batch in batches] == ["batch of 2 (1)", "batch of 1", "batch of 2 (3)", "batch of 2 (4)"]
    assert [each for batch in batches for each in batch.sequences] == prompts
    assert [batch.sampling["temperature"] > 0 for batch in batches] == [False, True, False, True]
