"""`fib trace model` on transformers models with random weights: operators seen, matched, created and missed.

python benchmarks/trace_models.py --out DIR [--tiny llama mixtral ...] [--full llama-3.2-3b qwen3-30b-a3b] [--layers 2] [--watched-layers 16]

`--tiny` are architectures of a few thousand weights, run on the CPU; `--full` are known models with few of their layers, in
their own sizes, run on the GPU. Those are also run with and without watching, in turn, with more of their layers, and one of
their blocks is traced with torch's profiler. Exit status 1 where a command fails or a call was seen that nothing accounts for.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402  # the path must be there first
from collect_workloads import fib  # noqa: E402
from forward_overhead import measure  # noqa: E402
from machine import describe_machine  # noqa: E402

from fib_tools.capture.checkpoints.configs import make_config  # noqa: E402
from fib_tools.capture.checkpoints.dummy import make_dummy  # noqa: E402
from fib_tools.sources.huggingface import load_config  # noqa: E402
from tiny_forward import ARCHITECTURES, OTHERS, make_model, make_prompt  # noqa: E402

_LENGTHS = (48, 21, 33, 8)
_TOKENS = 16
_MANY_TOKENS = 64
"""Of a generation in which the first passes, which are watched whole, are few."""


def make_full(name: str, layers: int) -> torch.nn.Module:
    """Make a known model as `fib trace model --dummy-weights` does."""
    config = make_config(load_config(name, offline=True).config, where=name)
    options = {"where": name, "layers": layers, "dtype": torch.bfloat16, "device": "cuda", "attention": "sdpa"}
    model: torch.nn.Module = make_dummy(config, **options)
    model.generation_config.eos_token_id = None  # so that every run is as long
    return model


def trace(name: str, folder: Path, *how: str) -> tuple[bool, str]:
    """Trace a checkpoint, or a known model without one; give whether that went well, and a line on it."""
    model = name if "--dummy-weights" in how else str(folder)
    words = (*how, "--max-new-tokens", str(_TOKENS), "--create-missing", "--workspace", f"{folder}-work")
    status, found = fib("trace", "model", model, *words, log=folder / "log.txt")
    if "calls" not in found:
        return False, f"{name}: exit {status}: {(folder / 'log.txt').read_text(errors='replace')[-600:]}"
    (folder / "trace.json").write_text(json.dumps(found, indent=1))
    without, missed = (sum(each["calls"] for each in found.get(key, ())) for key in ("missing", "unmapped"))
    workloads = sum(entry["workloads"] for entry in found["entries"])
    line = (
        f"{name:16}{found['calls']:>8}{found['matched']:>9}{without:>9}{missed:>8}{len(found.get('created', ())):>9}"
        f"{len(found['entries']):>13}{workloads:>11}  " + "; ".join(describe_missed(found))
    )
    return status == 0 and found["calls"] == found["matched"] + without + missed, line


def describe_missed(found: dict[str, Any]) -> list[str]:
    """Name what was seen and is of no Definition."""
    named = [f"{each['name']} {each['calls']}" for each in found.get("missing", ())]
    return named + [f"{each['what']} {each['calls']}" for each in found.get("unmapped", ())]


def measure_watching(model: torch.nn.Module, tokens: int, repeats: int) -> str:
    """Say what it costs to watch a model that makes so many tokens."""
    prompt = {name: value.to("cuda") for name, value in make_prompt(_LENGTHS).items()}
    cost = measure(model, prompt, tokens=tokens, repeats=repeats)
    return (
        f"  watched, {tokens} tokens: {cost.seconds:.3f} s without, {cost.more / cost.seconds:+.1%},"
        f" {cost.more / cost.calls * 1e6:.1f} us for each of {cost.calls} calls"
    )


def trace_block(name: str, folder: Path) -> tuple[bool, str]:
    """Draw the first block on the GPU, with the kernels that ran."""
    words = ("--dummy-weights", "--device", "cuda", "--profiler", "torch", "--tokens", "512")
    out = folder / "block.pftrace"
    places = ("--workspace", f"{folder}-work", "--out", str(out))
    status, found = fib("trace", "block", name, *words, *places, log=folder / "block.txt")
    if "slices" not in found:
        return False, f"  block: exit {status}: {(folder / 'block.txt').read_text(errors='replace')[-600:]}"
    matched = sum(bool(each["definition"]) for each in found["operators"])
    return status == 0 and found["kernels"] > 0, (
        f"  block: {found['slices']} slices, {found['kernels']} of them kernels of the GPU; {len(found['operators'])} operators,"
        f" {matched} of a Definition; {found['bytes'] / 1e3:.0f} KB, loaded in {found['load_seconds']:.1f} s, run in"
        f" {found['forward_seconds']:.2f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", nargs="*", choices=[*ARCHITECTURES, *OTHERS], default=[])
    parser.add_argument("--full", nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument(
        "--watched-layers", type=int, default=16, help="where the time with and without watching is taken"
    )
    parser.add_argument("--repeats", type=int, default=15, help="for 16 tokens; fewer for more")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    head = f"{'model':16}{'calls':>8}{'matched':>9}{'without':>9}{'missed':>8}{'created':>9}{'Definitions':>13}{'Workloads':>11}"
    lines = [describe_machine(("torch", "transformers")), f"{head}  without a Definition, or of no kernel type"]
    good = True
    for name in (*options.tiny, *options.full):
        is_full = name in options.full
        folder = options.out / name
        folder.mkdir(exist_ok=True)
        if is_full:
            how = ("--dummy-weights", "--layers", str(options.layers), "--device", "cuda")
        else:
            make_model(name).save_pretrained(folder)
            how = ("--device", "cpu")
        went_well, line = trace(name, folder, *how)
        lines.append(line)
        if is_full:
            drawn, block = trace_block(name, folder)
            model = make_full(name, options.watched_layers)
            for tokens in (_TOKENS, _MANY_TOKENS):
                watched = measure_watching(model, tokens, options.repeats * _TOKENS // tokens)
                print(name, watched, file=sys.stderr, flush=True)
                lines.append(watched)
            lines.append(block)
            went_well &= drawn
        good &= went_well
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    (options.out / "trace_models.txt").write_text(text + "\n")
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
