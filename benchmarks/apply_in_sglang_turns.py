"""Two engines of apply_in_sglang.py that take turns, the requests that they are sent, and how far their answers are apart."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from apply_in_sglang_engine import COUNTS, TICK  # noqa: E402  # the path must be there first

from fib_tools.capture.engine_process import EngineProcess  # noqa: E402
from fib_tools.capture.failures import find_engine_error  # noqa: E402

ENGINE = Path(__file__).with_name("apply_in_sglang_engine.py")
BATCH, PROMPT, NEW = 32, 64, 128
ALONE, ALONE_NEW = 16, 32
CACHED, PREFIX = 8, 200
LOG_BYTES = 1 << 20
COUNT_SECONDS = 5.0
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}

Pieces = list[list[int]]
"""Seed and length of each piece of a prompt."""


class EngineFailed(Exception):  # noqa: N818  # a sentence says it
    """An engine ended, or did not answer in time."""


class Engine:
    """One engine in a process of its own, which does what it is told line by line."""

    def __init__(
        self, name: str, request: dict[str, Any], environment: dict[str, str], descriptors: Sequence[int]
    ) -> None:
        folder = Path(request["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.folder = name, folder
        self.entries: list[dict[str, Any]] = []
        self._counts, self._orders, self._answers = folder / "counts.json", folder / "orders.jsonl", folder / "answers"
        progress = folder / "progress.jsonl"
        for path in (self._counts, self._orders, progress):
            path.unlink(missing_ok=True)
        paths = {"progress": str(progress), "orders": str(self._orders), "answers": str(self._answers)}
        (folder / "request.json").write_text(json.dumps({**request, **paths}, indent=1), encoding="utf-8")
        self.process = EngineProcess(
            [sys.executable, "-B", str(ENGINE.resolve()), str(folder / "request.json")],
            folder=folder,
            environment={**environment, COUNTS: str(self._counts)},
            descriptors=descriptors,
        )

    def wait(self, event: str, name: str | None, deadline: float) -> dict[str, Any]:
        """Wait until the engine tells of an event."""
        while True:
            ended = self.process.poll()
            self.entries += self.process.read_progress()
            for entry in self.entries:
                if entry.get("event") == event and (name is None or entry.get("name") == name):
                    return entry
            if ended is not None:
                raise EngineFailed(
                    f"{self.name} ended with {ended}: {find_engine_error(self.process.read_log(LOG_BYTES))}"
                )
            if time.perf_counter() > deadline:
                raise EngineFailed(f"{self.name}: the time was over before {event} {name or ''}")
            time.sleep(0.01)

    def send(self, name: str, order: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Send an order and wait for its answer."""
        with self._orders.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"name": name, **order}) + "\n")
        return self.wait("answer", name, deadline)

    def read_answers(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self._answers / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def count(self) -> dict[str, Any]:
        """Read FlashInfer's counters as they are now; of an engine that has ended, as they were last."""
        asked = time.time()
        found: dict[str, Any] = {}
        while time.time() < asked + COUNT_SECONDS and found.get("at", 0.0) <= asked:
            if self._counts.exists():
                found = json.loads(self._counts.read_text(encoding="utf-8"))
            if self.process.poll() is not None:
                break
            time.sleep(TICK / 4)
        if not found:
            raise EngineFailed(f"{self.name}: its scheduler wrote no counters")
        return found


def make_order(
    prompts: list[Pieces], new: int, *, together: bool, logprobs: str = "", flush: bool = True
) -> dict[str, Any]:
    """Say what to send; `logprobs` is empty, `answer`, or `prompt` for the prompts' tokens as well."""
    sampling = {**GREEDY, "max_new_tokens": new}
    return {"prompts": prompts, "sampling": sampling, "together": together, "logprobs": logprobs, "flush": flush}


def list_orders() -> dict[str, list[dict[str, Any]]]:
    """List the requests whose answers are compared, each with what must come before it."""
    alone: list[Pieces] = [[[100 + place, PROMPT + place]] for place in range(ALONE)]
    batch: list[Pieces] = [[[200 + place, PROMPT]] for place in range(BATCH)]
    cached: list[Pieces] = [[[300, PREFIX], [301 + place, 20 + place]] for place in range(CACHED)]
    return {
        "one at a time": [make_order(alone, ALONE_NEW, together=False, logprobs="prompt")],
        "cached prefix": [
            make_order([[[300, PREFIX]]], 1, together=False),
            make_order(cached, ALONE_NEW, together=False, logprobs="answer", flush=False),
        ],
        "batch": [make_order(batch, NEW, together=True, logprobs="answer")],
    }


def make_round(number: int) -> dict[str, Any]:
    """Make up one timed batch: prompts that no other round has, so that none is cached."""
    first = 1000 + number * BATCH
    return make_order([[[first + place, PROMPT]] for place in range(BATCH)], NEW, together=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far the answers to the same prompts are apart."""

    prompts: int
    identical: int
    """Prompts of which every token is the same."""
    tokens: int
    """Up to where answers part, of all prompts."""
    all_tokens: int
    largest: float
    """The largest absolute difference of a log-probability, in nats, of tokens after the same tokens."""
    cached: int
    """Prompt tokens that came from the cache, in the second."""

    def __str__(self) -> str:
        return (
            f"{self.identical} of {self.prompts} prompts identical, {self.tokens} of {self.all_tokens} tokens before "
            f"the first difference, largest |difference| of logprobs {self.largest:.3g}"
        )


def compare(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> Difference:
    """Compare answers; what comes after the first other token has another context, and is left out."""
    same, largest, identical, total = 0, 0.0, 0, 0
    for one, other in zip(first, second, strict=True):
        pairs = list(zip(one["ids"], other["ids"], strict=True))
        shared = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        values = [*zip(one["prompt"], other["prompt"], strict=True)]
        values += list(zip(one["logprobs"][:shared], other["logprobs"][:shared], strict=True))
        largest = max([largest, *(abs(a - b) for a, b in values)])
        same, total, identical = same + shared, total + len(pairs), identical + (shared == len(pairs))
    cached = sum(answer["cached"] for answer in second)
    return Difference(
        prompts=len(first), identical=identical, tokens=same, all_tokens=total, largest=largest, cached=cached
    )
