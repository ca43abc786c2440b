"""What it costs to watch a transformers model: traced against untraced wall time, and microseconds for each call seen.

python benchmarks/forward_overhead.py [--kinds llama qwen3_moe ...] [--layers 4] [--hidden 1024] [--tokens 16] [--repeats 7]

Models have random weights. Runs with and without are taken in turn; what watching costs is the median of the differences.
On a CPU the time is that of this process on one thread, so that others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402  # the path must be there first
from machine import describe_machine  # noqa: E402

from fib_tools.capture.forward.observe import observe  # noqa: E402
from fib_tools.capture.forward.passes import find_witness  # noqa: E402
from tiny_forward import ARCHITECTURES, make_model, make_prompt  # noqa: E402


def run(model: torch.nn.Module, prompt: dict[str, torch.Tensor], tokens: int) -> float:
    """Generate, and give the seconds."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begun = clock()
    with torch.no_grad():
        model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begun


class Cost(NamedTuple):
    """What a run takes without being watched, what watching adds to it, and what is seen."""

    seconds: float
    more: float
    calls: int
    kinds: int


def measure(model: torch.nn.Module, prompt: dict[str, torch.Tensor], *, tokens: int, repeats: int) -> Cost:
    """Run with and without watching in turn, after a first run that warms up."""
    run(model, prompt, tokens)
    witness = find_witness(model)
    plain, seen, calls, kinds = [], [], 0, 0
    for _ in range(repeats):
        plain.append(run(model, prompt, tokens))
        with observe(model, witness=witness) as watch:
            seen.append(run(model, prompt, tokens))
        calls, kinds = sum(tally.count for tally in watch.tallies), len(watch.tallies)
    more = statistics.median(after - before for before, after in zip(plain, seen, strict=True))
    return Cost(statistics.median(plain), more, calls, kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    print(describe_machine(("torch", "transformers")), device)
    print(f"{'model':14}{'calls':>8}{'kinds':>7}{'plain s':>10}{'seen s':>10}{'more':>9}{'us a call':>11}")
    for kind in options.kinds:
        sizes = {"num_hidden_layers": options.layers, "hidden_size": options.hidden}
        model = make_model(kind, **sizes, intermediate_size=3 * options.hidden).to(device)
        prompt = {name: value.to(device) for name, value in make_prompt((64, 48)).items()}
        cost = measure(model, prompt, tokens=options.tokens, repeats=options.repeats)
        print(
            f"{kind:14}{cost.calls:>8}{cost.kinds:>7}{cost.seconds:>10.3f}{cost.seconds + cost.more:>10.3f}"
            f"{cost.more / cost.seconds:>9.1%}{cost.more / cost.calls * 1e6:>11.1f}"
        )


if __name__ == "__main__":
    main()
