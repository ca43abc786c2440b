"""Winning Solutions inside SGLang's engine, through FlashInfer's trace_apply: dispatched or not, same answers, how fast.

python benchmarks/apply_in_sglang.py all --out FOLDER [--total 400] [--cuda-graph off|on|both] [--weights made|sure|dummy]

`prepare` drafts Definitions of llama-3.1-8b from `drafts/`, measures them and writes the folder with our own commands: fib
baselines, fib bench, fib apply. `serve` starts two engines at once, one without apply and one with that folder, and sends
both the same requests in turns. `all` does both. What is known goes to FOLDER/apply_in_sglang.txt as it comes.

What SGLang 0.5.17 calls, with sglang-kernel 0.4.5 and attention_backend="flashinfer", for a Llama in bfloat16:
- norms: sgl_kernel's rmsnorm and fused_add_rmsnorm (sgl_kernel/elementwise.py), which call flashinfer.norm's functions of
  these names, looked up at each call, save inside torch.compile. So they are dispatched with no switch.
- prefill with a cached prefix: flashinfer.cascade.merge_state, imported after FlashInfer has patched it.
- decode: BatchDecodeWithPagedKVCacheWrapper with a flat pool [tokens, heads, dim], from which FlashInfer's template reads
  the wrong axes (h32_kv128_d128_ps8): the draft of gqa_paged_decode cannot be routed to, and is left out.
- rope, SiLU and sampling of the most likely token are no calls of FlashInfer.

Each forward pass calls rmsnorm once and fused_add_rmsnorm twice a layer. Hits are calls of Python: a CUDA graph counts
once when it is captured, and not when it is replayed. SGLang's own dummy weights are within 0.001: what comes before the
last norm is nearly nothing, and all tokens are about as likely. So weights are made here: normal, and 0.5 to 1.5 in norms;
with `sure` the head leans to one token, so that roundings do not decide between near ties.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from apply_in_sglang_prepare import prepare, write_weights  # noqa: E402  # the path must be there first
from apply_in_sglang_turns import (  # noqa: E402
    BATCH,
    NEW,
    PROMPT,
    Engine,
    EngineFailed,
    compare,
    list_orders,
    make_round,
)
from machine import describe_machine  # noqa: E402

from fib_tools.capture.overrides import apply_overrides  # noqa: E402
from fib_tools.capture.runs import make_run  # noqa: E402
from fib_tools.errors import FibError  # noqa: E402
from fib_tools.host.env import engine_environment  # noqa: E402
from fib_tools.host.gpu_lock import Lease, acquire  # noqa: E402
from fib_tools.sources.huggingface import load_config  # noqa: E402

MODEL = "llama-3.1-8b"
VERSIONS = ("torch", "triton", "sglang", "sglang-kernel", "flashinfer-python", "nvidia-cutlass-dsl")
TRACED = ("FLASHINFER_TRACE_DUMP", "SGLANG_KERNEL_API_LOGLEVEL")
"""What a capture asks of the engine, and a measurement does not."""
ROUND_SECONDS = 8.0
"""What is kept free for both engines' next round."""
SECOND_SECONDS = 70.0
"""With less time left two more engines are not started."""


class Report:
    """The table so far; on the disk after each line, so that a visit that is cut off still tells something."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun = path, time.perf_counter()
        self._lines: list[str] = []

    def add(self, *lines: str) -> None:
        """Add lines to the table."""
        if not lines:
            return
        self._lines += lines
        self._path.write_text(f"{self}\n", encoding="utf-8")
        self.note("\n".join(lines))

    def note(self, text: str) -> None:
        """Say how far it is, outside of the table."""
        print(f"[{time.perf_counter() - self._begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return "\n".join(self._lines)


def read_model(layers: int) -> dict[str, Any]:
    """Read the model's config, with few layers."""
    return apply_overrides(load_config(MODEL, offline=True).config, {"num_hidden_layers": layers})


def make_request(options: argparse.Namespace, config: dict[str, Any], *, has_graphs: bool) -> dict[str, Any]:
    """Say how an engine is started: as for a capture, but with nothing traced or logged."""
    run = {"name": "apply", "tp": 1, "attention_tp": 1, "gpus": 1, "overrides": {}, "config": config}
    plain = make_run({**run, "vocab_size": config["vocab_size"]}, is_mla=False, is_fp8_block=False, is_plain_moe=False)
    arguments = dict(plain.arguments)
    if has_graphs:
        graphs = {"disable_prefill_cuda_graph": True, "cuda_graph_bs_decode": [1, BATCH]}
        arguments = {**arguments, "disable_cuda_graph": False, **graphs}
    weights = None
    if options.weights != "dummy":
        del arguments["load_format"]
        weights = str((options.out / "weights").resolve())
    return {
        "arguments": arguments,
        "environment": {name: value for name, value in plain.environment.items() if name not in TRACED},
        "weights": weights,
        "overrides": {},
        "config": config,
        "vocab_size": config["vocab_size"],
    }


@contextmanager
def start_engines(
    options: argparse.Namespace, request: dict[str, Any], label: str, lease: Lease | None
) -> Iterator[tuple[Engine, Engine]]:
    """Start both engines side by side, so that they can take turns and share what is compiled."""
    common = {**engine_environment(), **request["environment"]}
    common["PYTHONPATH"] = os.pathsep.join(path for path in (str(ROOT), common.get("PYTHONPATH")) if path)
    common |= dict(lease.environment) if lease else {}
    applied = {"FLASHINFER_TRACE_APPLY": "1", "FLASHINFER_TRACE_APPLY_PATH": str(find_folder(options.out))}
    started: list[Engine] = []
    try:
        for name, own in (("plain", {"FLASHINFER_TRACE_APPLY": "0"}), ("applied", applied)):
            folder = (options.out / f"{label}-{name}").resolve()
            each = {**request, "folder": str(folder), "model_folder": str(folder / "model")}
            started.append(Engine(f"{label} {name}", each, {**common, **own}, lease.descriptors if lease else ()))
        for engine in started:
            engine.wait("ready", None, options.deadline)
        yield started[0], started[1]
    finally:
        for engine in started:
            engine.process.end()


@contextmanager
def hold_gpu(report: Report) -> Iterator[Lease | None]:
    """Hold a GPU for both engines."""
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(acquire(1, timeout=60, command="benchmarks/apply_in_sglang.py"))
        except FibError as error:
            report.add(f"WITHOUT THE GPU LOCK: {error}")
            lease = None
        yield lease


def find_folder(out: Path) -> Path:
    """Find what fib apply wrote."""
    folder = out / "work" / "trace-apply"
    if not folder.is_dir():
        raise SystemExit(f"fib apply wrote no folder: {out}/prepared.json and the logs beside it say why")
    return folder.resolve()


def describe_applied(out: Path) -> list[str]:
    """Say what fib apply chose, and why not the rest; the ratio is to the fastest baseline that fib bench measured."""
    lines = []
    for each in json.loads((out / "prepared.json").read_text(encoding="utf-8")):
        answer = each["answer"]
        lines.append(f"fib apply {' '.join(each['words'])}: {answer.get('what') or 'by Definition, times as fast'}")
        for entry in answer.get("entries", ()):
            ratio = "-" if entry.get("ratio") is None else f"{entry['ratio']:.3f}"
            why = entry.get("reason") or f"{1e3 * entry['milliseconds']:.4g} us, called {entry['routed_as']}"
            lines.append(f"  {entry['definition']:24}{entry['status']:10}{ratio:>8}  {why}")
    return lines


def describe_hits(out: Path, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say by Definition what FlashInfer counted; it counts by API, and here each has one Definition."""
    lines = []
    for path in sorted(find_folder(out).glob("definitions/*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        api = next(tag.partition(":")[2] for tag in document["tags"] if tag.startswith("fi_api:"))
        started, ended = (sum_counts(each["stats"], api) for each in (before, after))
        hits = ended.pop("hit", 0)
        others = ", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "nothing else"
        lines.append(f"  {document['name']:24}{hits:>8} hits, {started.get('hit', 0)} of them at the start; {others}")
    return lines or ["  the folder has no Definition"]


def sum_counts(stats: dict[str, dict[str, int]], api: str) -> dict[str, int]:
    """Sum an API's counts by status, under whichever module it is counted."""
    found: dict[str, int] = {}
    for name, counts in stats.items():
        if name.rpartition(".")[2] == api.rpartition(".")[2]:
            for status, count in counts.items():
                found[status] = found.get(status, 0) + count
    return found


def compare_answers(plain: Engine, applied: Engine, report: Report, deadline: float) -> None:
    """Send each request twice to the engine without apply and once to the other."""
    for title, orders in list_orders().items():
        found = []
        for engine, turn in ((plain, 1), (plain, 2), (applied, 1)):
            for step, order in enumerate(orders):
                name = f"{title} {turn} {step}"
                entry = engine.send(name, order, deadline)
                if not entry["flushed"]:
                    report.add(f"  {engine.name}: the cache was not emptied before {name}")
            found.append(engine.read_answers(name))
        again, difference = compare(found[0], found[1]), compare(found[0], found[2])
        report.add(
            f"answers, {title}, {difference.cached} prompt tokens cached:",
            f"  with apply:          {difference}",
            f"  without, once more:  {again}",
        )


def time_rounds(plain: Engine, applied: Engine, report: Report, options: argparse.Namespace) -> None:
    """Let the engines take turns at the same batches; who begins changes each time."""
    speeds: dict[str, list[float]] = {plain.name: [], applied.name: []}
    for number in range(options.rounds + 1):
        if time.perf_counter() > options.deadline - ROUND_SECONDS:
            report.note("no time for more rounds")
            break
        for engine in (plain, applied) if number % 2 else (applied, plain):
            entry = engine.send(f"round {number}", make_round(number), options.deadline)
            if number:  # the first warms up
                speeds[engine.name].append(entry["tokens"] / entry["seconds"])
                report.note(f"round {number}, {engine.name}: {speeds[engine.name][-1]:.0f} tokens/s")
    before, after = speeds.values()
    if not after:
        report.add("tokens/s: no round was timed")
        return
    ratios = [new / old for old, new in zip(before, after, strict=True)]
    report.add(
        f"tokens/s, {BATCH} prompts of {PROMPT} tokens, {NEW} new ones each, {len(after)} rounds in turns, median (range):",
        f"  without apply {say_range(before, '.0f')}",
        f"  with apply    {say_range(after, '.0f')}",
        f"  with / without, by round {say_range(ratios, '.3f')}",
    )


def say_range(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}..{max(values):{form}})"


def serve_once(
    options: argparse.Namespace, config: dict[str, Any], report: Report, lease: Lease | None, label: str
) -> None:
    """Measure with CUDA graphs, or without."""
    request = make_request(options, config, has_graphs=label == "graphs")
    report.add("", f"CUDA graphs of decode {'on' if label == 'graphs' else 'off'}")
    report.add(f"arguments: {json.dumps(request['arguments'])}")
    report.note("starting two engines")
    with start_engines(options, request, label, lease) as (plain, applied):
        before = applied.count()
        report.add(*(str(entry["text"]) for entry in applied.entries if entry.get("event") == "note"))
        report.add(f"apply is {say_enabled(plain.count())} in the engine without, {say_enabled(before)} in the other")
        try:
            compare_answers(plain, applied, report, options.deadline)
            time_rounds(plain, applied, report, options)
        finally:
            report.add("what FlashInfer dispatched in the engine with apply:")
            report.add(*describe_hits(options.out, before, applied.count()))


def say_enabled(counts: dict[str, Any]) -> str:
    return "on" if counts["enabled"] else "off"


def serve(options: argparse.Namespace, config: dict[str, Any], report: Report) -> None:
    """Make the weights, and measure as often as there is time for."""
    report.add(*describe_applied(options.out))
    find_folder(options.out)
    if options.weights != "dummy":
        report.note("making weights")
        how = ("--out", str(options.out), "--layers", str(options.layers), "--weights", options.weights)
        command = [sys.executable, __file__, "weights", *how]
        subprocess.run(command, check=True, timeout=max(1.0, options.deadline - time.perf_counter()))
    labels = {"off": ["eager"], "on": ["graphs"], "both": ["eager", "graphs"]}[options.cuda_graph]
    with hold_gpu(report) as lease:
        for label in labels:
            left = options.deadline - time.perf_counter()
            if label != labels[0] and left < SECOND_SECONDS:
                report.add("", f"CUDA graphs: not tried, {left:.0f} s were left")
                break
            try:
                serve_once(options, config, report, lease, label)
            except EngineFailed as error:
                report.add(f"FAILED: {error}")


def describe_run(options: argparse.Namespace, config: dict[str, Any]) -> list[str]:
    """Say on what, and with what changed, the engines ran."""
    normal = "normal, scale 0.02, norms 0.5 to 1.5"
    weights = {
        "made": normal,
        "sure": f"{normal}; the head leans to one token after each",
        "dummy": "SGLang's dummies, within 0.001",
    }[options.weights]
    return [
        describe_machine(VERSIONS),
        f"{MODEL}, {config['num_hidden_layers']} of its layers, made-up weights: {weights}",
        "two engines on one GPU take turns; the one that waits computes nothing",
        "done to SGLang, in both engines: a thread in the scheduler's process writes trace_apply.stats() 5 times a second",
        f"done to the drafts of norms: EPS = {config['rms_norm_eps']!r}, the model's, in place of 1e-06",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("all", "prepare", "serve", "weights"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--total", type=float, default=400.0, help="seconds after which what was found counts")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds of each engine")
    parser.add_argument("--cuda-graph", choices=("off", "on", "both"), default="both")
    parser.add_argument("--weights", choices=("made", "sure", "dummy"), default="made")
    parser.add_argument("--least-ratio", type=float, default=1.0, help="of fib apply")
    options = parser.parse_args()
    options.deadline = time.perf_counter() + options.total
    config = read_model(options.layers)
    if options.phase == "weights":
        write_weights(options.out / "weights", config, is_sure=options.weights == "sure")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out / "apply_in_sglang.txt")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines are ended and the table is printed
    try:
        report.add(*describe_run(options, config))
        if options.phase != "serve":
            report.note("measuring the drafts and writing the folder: fib baselines, fib bench, fib apply")
            prepare(options, config)
        if options.phase != "prepare":
            serve(options, config, report)
    finally:
        print(report, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
