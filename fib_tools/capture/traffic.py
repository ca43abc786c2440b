"""Requests for an engine whose calls are to become Workloads: made-up prompts of given lengths, or real ones from a file.

A file has a JSON object on each line, in any of these forms:

{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}     as ShareGPT has them
{"prompt": "...", "output": "..."}                          the output tells how many tokens are asked for
{"input_ids": [1, 2, 3], "output_tokens": 64}               no tokenizer is needed
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from fib_tools.capture.runs import Batch
from fib_tools.capture.runs import Sequence as Prompt
from fib_tools.errors import FormatError, RequestError
from fib_tools.host.files import storage_errors
from fib_tools.model.canonical import load_json

__all__ = ["Encode", "make_batches", "make_prompts", "read_prompts"]

Encode = Callable[[str], Sequence[int]]
"""Turns text into tokens."""

_LEAST_TOKENS = 4
"""Of a prompt from a file, as in SGLang's own benchmarks: shorter ones are greetings."""
_LINE_BYTES = 4 << 20
_ONE_EACH = "write one object on each line: jq -c '.[]' FILE.json > FILE.jsonl"
_GREEDY: dict[str, float | int] = {"temperature": 0.0}
_DRAWN: dict[str, float | int] = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}


def make_prompts(number: int, *, isl: int, osl: int, range_ratio: float, seed: int) -> list[Prompt]:
    """Make up prompts of `isl * range_ratio` to `isl` tokens, with so many answers: uniform, as SGLang's benchmarks do it."""
    draw = random.Random(seed)  # noqa: S311  # lengths, no secret

    def length(most: int) -> int:
        return draw.randint(max(1, int(most * range_ratio)), most)

    return [Prompt(pieces=((1000 + place, length(isl)),), max_new_tokens=length(osl)) for place in range(number)]


def read_prompts(path: Path, number: int, *, encode: Encode | None, isl: int, osl: int) -> list[Prompt]:
    """Read so many prompts, each cut to `isl` tokens, with as many answers as the file shows, at most `osl`.

    Raises:
        RequestError: the file has fewer, or text and there is no tokenizer.
        FormatError: a line is none of the forms.
        StorageError: it cannot be read.
    """
    found = list(islice(_read(path, encode=encode, isl=isl, osl=osl), number))
    if len(found) < number:
        raise RequestError(
            f"{len(found)} prompts of {_LEAST_TOKENS} tokens or more, and {number} are asked for",
            where=str(path),
            todo="ask for smaller --batch-sizes",
        )
    return found


def _read(path: Path, *, encode: Encode | None, isl: int, osl: int) -> Iterator[Prompt]:
    with storage_errors(path), path.open("rb") as stream:
        for number in count(1):
            line, where = stream.readline(_LINE_BYTES + 1), f"{path}:{number}"
            if not line:
                return
            if len(line) > _LINE_BYTES:
                raise FormatError(f"a line of over {_LINE_BYTES} bytes", where=where, todo=_ONE_EACH)
            if not line.strip():
                continue
            document = load_json(line, where=str(path), first_line=number)
            if not isinstance(document, Mapping):
                raise FormatError("the line holds no object", where=where, todo=_ONE_EACH)
            tokens, wanted = _read_line(document, encode, where=where)
            if len(tokens) >= _LEAST_TOKENS:
                yield Prompt(tokens=tuple(tokens[:isl]), max_new_tokens=max(1, min(osl, wanted or osl)))


def _read_line(document: Mapping[str, Any], encode: Encode | None, *, where: str) -> tuple[Sequence[int], int | None]:
    """Read the tokens of a prompt, and how many answers the file shows."""
    match document:
        case {"input_ids": [int(), *_] as tokens} if all(type(token) is int and token >= 0 for token in tokens):
            wanted = document.get("output_tokens")
            return tokens, wanted if isinstance(wanted, int) and wanted > 0 else None
        case {"conversations": [{"value": str() as prompt}, *rest]}:
            answer = next((turn["value"] for turn in rest if isinstance(turn, Mapping) and "value" in turn), "")
        case {"prompt": str() as prompt}:
            answer = next((document[name] for name in ("output", "completion") if name in document), "")
        case _:
            raise FormatError('it has no "conversations", "prompt" or "input_ids"', where=where)
    if encode is None:
        raise RequestError(
            "its prompts are text, and there is no tokenizer",
            where=where,
            todo="pass --weights, the folder that has the model's tokenizer, or a file with input_ids",
        )
    return encode(prompt), len(encode(str(answer))) or None


def make_batches(prompts: Sequence[Prompt], sizes: Sequence[int]) -> tuple[Batch, ...]:
    """Send the prompts in batches of these sizes, one after the other; every second one asks for tokens that are drawn."""
    left = iter(prompts)
    return tuple(
        Batch(
            name=f"batch of {size}" + (f" ({place})" if sizes.count(size) > 1 else ""),
            sequences=taken,
            sampling=_GREEDY if place % 2 else _DRAWN,
        )
        for place, size in enumerate(sizes, start=1)
        if (taken := tuple(islice(left, size)))
    )
