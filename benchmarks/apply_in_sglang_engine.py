"""An engine of apply_in_sglang.py: starts SGLang, then does what a file of orders says.

python benchmarks/apply_in_sglang_engine.py REQUEST.json

SGLang's scheduler is a process of its own, and FlashInfer counts there what it dispatches. So the scheduler is started
through `Engine.run_scheduler_process_func`, which SGLang has for such purposes, with a thread that writes the counters
to a file. Nothing else of the engine is changed, and it is so with and without apply.

orders.jsonl     {"name": "round 1", "prompts": [[[seed, length], ...], ...], "sampling": {...}, ...} or {"end": true}
progress.jsonl   what was done, in answer; token ids and log-probabilities go to answers/<name>.json
counts.json      {"at": 12.5, "enabled": true, "stats": {"flashinfer.norm.rmsnorm": {"hit": 130}}}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fib_tools.capture._engine_child import Progress, choose_arguments, list_versions, make_tokens

COUNTS = "FIB_APPLY_COUNTS"
"""The variable that names the file of counters."""
TICK = 0.2
POLL = 0.005
FLUSH_SECONDS = 5.0


def write_counts(path: Path) -> None:
    """Write FlashInfer's counters of this process again and again: it is killed in the end, and cannot write then."""
    beside = path.with_suffix(f".{os.getpid()}")
    while True:
        module = sys.modules.get("flashinfer.trace_apply")  # FlashInfer imports it only where it is wanted
        is_enabled, stats = getattr(module, "is_enabled", bool), getattr(module, "stats", dict)
        text = json.dumps({"at": time.time(), "enabled": is_enabled(), "stats": stats()})
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
        time.sleep(TICK)


def run_scheduler(*arguments: Any, **named: Any) -> None:
    """Run SGLang's scheduler beside the thread that writes the counters."""
    from sglang.srt.managers.scheduler import run_scheduler_process

    threading.Thread(target=write_counts, args=(Path(os.environ[COUNTS]),), daemon=True).start()
    run_scheduler_process(*arguments, **named)


def read_orders(path: Path) -> Iterator[dict[str, Any]]:
    """Yield orders as they come, up to the one to end."""
    done = 0
    while True:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        for line in lines[done:]:
            order = json.loads(line)
            if order.get("end"):
                return
            yield order
        done = len(lines)
        time.sleep(POLL)


def flush(engine: Any) -> bool:
    """Empty the cache of prefixes; the scheduler refuses until it has put away the last batch."""
    deadline = time.monotonic() + FLUSH_SECONDS
    while not engine.flush_cache().success:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def generate(engine: Any, order: dict[str, Any], vocab_size: int) -> list[dict[str, Any]]:
    """Send the prompts of an order, together or one at a time."""
    prompts = [make_tokens(pieces, vocab_size) for pieces in order["prompts"]]
    groups = [prompts] if order["together"] else [[prompt] for prompt in prompts]
    logprobs: dict[str, Any] = {}
    if order["logprobs"]:
        logprobs = {"return_logprob": True, "logprob_start_len": 0 if order["logprobs"] == "prompt" else -1}
    answers: list[dict[str, Any]] = []
    for group in groups:
        answers += engine.generate(input_ids=group, sampling_params=order["sampling"], **logprobs)
    return answers


def summarise(answer: dict[str, Any]) -> dict[str, Any]:
    """Keep token ids and their log-probabilities; those of a prompt's tokens begin with its second."""
    about = answer["meta_info"]
    return {
        "ids": list(answer["output_ids"]),
        "cached": about.get("cached_tokens", 0),
        "prompt": [item[0] for item in about.get("input_token_logprobs") or () if item[0] is not None],
        "logprobs": [item[0] for item in about.get("output_token_logprobs") or ()],
    }


def serve(engine: Any, request: dict[str, Any], progress: Progress) -> None:
    """Do what the orders say."""
    answers = Path(request["answers"])
    answers.mkdir(parents=True, exist_ok=True)
    for order in read_orders(Path(request["orders"])):
        is_flushed = not order["flush"] or flush(engine)
        start = time.perf_counter()
        found = generate(engine, order, request["vocab_size"])
        seconds = time.perf_counter() - start
        tokens = sum(len(answer["output_ids"]) for answer in found)
        text = json.dumps([summarise(answer) for answer in found])
        (answers / f"{order['name']}.json").write_text(text, encoding="utf-8")
        progress.tell(event="answer", name=order["name"], seconds=seconds, tokens=tokens, flushed=is_flushed)


def run(request: dict[str, Any], progress: Progress) -> None:
    """Start the engine, serve, and end."""
    with progress.stage("import"):
        from sglang.srt.entrypoints.engine import Engine

        class CountedEngine(Engine):  # type: ignore[misc]  # SGLang is not there where types are checked
            run_scheduler_process_func = staticmethod(run_scheduler)

    progress.tell(event="versions", versions=list_versions(), python=sys.version.split()[0])
    with progress.stage("start"):
        arguments = choose_arguments(request, progress)
        progress.tell(event="arguments", arguments={name: str(value) for name, value in arguments.items()})
        engine = CountedEngine(**arguments)
    progress.tell(event="ready")
    serve(engine, request, progress)
    progress.tell(event="done")
    engine.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path)
    options = parser.parse_args()
    # Python puts the script's folder first, where modules of ours would hide others of their names
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != own]
    request = json.loads(options.request.read_text(encoding="utf-8"))
    progress = Progress(Path(request["progress"]))
    progress.tell(event="started", pid=os.getpid())
    try:
        run(request, progress)
    except Exception as error:
        traceback.print_exc()
        progress.tell(event="crashed", error=f"{type(error).__name__}: {error}"[:4000])
        return 1
    return 0


if __name__ == "__main__":  # the engine's processes import this file again
    sys.exit(main())
