"""Kernels drafted by hand against the baselines that people run: every size cold and warm, in a graph and eager.

python benchmarks/kernel_drafts.py DEFINITIONS --out FOLDER [--only NAME ...] [--total SECONDS]

DEFINITIONS is a dataset folder with the Definitions of `PLAN`, as `fib onboard` writes them for kimi-k2, deepseek-v3,
qwen3-30b-a3b and llama-3.1-8b. The drafts lie in `drafts/`. Writes to the folder `kernel_drafts.txt` and the dataset with
its Traces. FlashInfer's best kernels need nvidia-cutlass-dsl: the table says whether it was there.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_STARTED = time.perf_counter()
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from baselines import fib  # noqa: E402  # the path must be there first
from machine import describe_machine  # noqa: E402

from fib_tools.dataset.store import Dataset  # noqa: E402
from fib_tools.errors import FormatError  # noqa: E402
from fib_tools.evaluate.judge.statistics import ratio_interval  # noqa: E402
from fib_tools.host.hardware import find_hardware  # noqa: E402
from fib_tools.model.definition import Definition  # noqa: E402
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile  # noqa: E402
from fib_tools.model.trace import Trace  # noqa: E402
from fib_tools.model.workload import Workload, workload_uuid  # noqa: E402
from fib_tools.op_types.axes import choose_axes  # noqa: E402
from fib_tools.op_types.size_workloads import describe_inputs  # noqa: E402

DRAFTS = Path(__file__).parent / "drafts"
ROWS = (1, 64, 1024, 8192)
MANY_ROWS = (*ROWS, 65536)
"""Where 8,192 rows are no more than the L2 cache holds, and are over before a kernel is at its full speed."""
BATCHES = (1, 16, 64, 128)
MANY_SEQUENCES = (*BATCHES, 256)
"""An engine with a tensor-parallel share of the heads has as many at a time over a cache of 1,152 bytes a token."""
PAGES_EACH = 64
_EPSILON = re.compile(r"^EPS = \S+$", re.MULTILINE)
VERSIONS = ("torch", "triton", "flashinfer-python", "sglang", "nvidia-cutlass-dsl")


def rows(axis: str, factor: int = 1, counts: tuple[int, ...] = ROWS) -> list[dict[str, int]]:
    """Give the sizes of a kernel over tokens."""
    return [{axis: count * factor} for count in counts]


def turns(q: int, k: int, counts: tuple[int, ...] = ROWS) -> list[dict[str, int]]:
    """Give the sizes of a rotary embedding of so wide queries and keys."""
    table = {"num_q_heads_x_head_size": q, "num_k_heads_x_head_size": k, "max_seq_len": 40960}
    return [{"nnz": count, **table} for count in counts]


def pages(batches: tuple[int, ...] = BATCHES) -> list[dict[str, int]]:
    """Give the sizes of a decode over 4,096 tokens a sequence in the mean, in pages of 64: their lengths are drawn."""
    return [
        {"batch_size": b, "num_pages": b * PAGES_EACH + 8, "len_indptr": b + 1, "num_kv_indices": b * PAGES_EACH}
        for b in batches
    ]


PLAN: dict[str, tuple[str, list[dict[str, int]]]] = {
    "fused_add_rmsnorm_h7168": ("fused_add_rmsnorm", rows("batch_size")),
    "fused_add_rmsnorm_h4096": ("fused_add_rmsnorm", rows("batch_size")),
    "fused_add_rmsnorm_h2048": ("fused_add_rmsnorm", rows("batch_size")),
    "rmsnorm_h7168": ("rmsnorm_wide", rows("batch_size")),
    "rmsnorm_h128": ("rmsnorm_narrow", rows("batch_size", 32)),
    "silu_and_mul_i14336": ("silu_and_mul", rows("num_tokens")),
    "silu_and_mul_i2304": ("silu_and_mul", rows("num_tokens")),
    "rope_with_cos_sin_cache_neox_style_d128_rd128": ("rope_neox", turns(4096, 512)),
    "rope_with_cos_sin_cache_gptj_style_d64_rd64": ("rope_gptj", turns(1024, 64, MANY_ROWS)),
    "merge_state_h32_d128": ("merge_state", rows("seq_len")),
    "moe_routing_ds_topk8_ng1_kg1_e384": ("moe_routing_ds", rows("num_tokens")),
    "fp8_quantize_1x128_k2048": ("fp8_quantize", rows("M", counts=MANY_ROWS)),
    "gqa_paged_decode_h32_kv4_d128_ps64": ("gqa_paged_decode", pages()),
    "gqa_paged_decode_h32_kv8_d128_ps64": ("gqa_paged_decode", pages()),
    "mla_paged_decode_h16_ckv512_kpe64_ps64": ("mla_paged_decode", pages(MANY_SEQUENCES)),
    "mla_paged_decode_h128_ckv512_kpe64_ps64": ("mla_paged_decode", pages(BATCHES[:3])),
}
"""By Definition: the drafts, of which the table has the fastest, and their sizes."""


def write_dataset(source: Path, root: Path, names: list[str]) -> None:
    """Copy the Definitions, and write their Workloads and drafts."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "definitions").mkdir(parents=True)
    dataset = Dataset(root)
    loaded = Dataset.open(source).load_definitions()[0]
    for name in names:
        definition, (drafts, sizes) = loaded[name], PLAN[name]
        dataset.write_definition(definition)
        dataset.write_workloads(definition.op_type, [make_workload(definition, size) for size in sizes])
        for draft in drafts.split():
            dataset.write_solution(definition.op_type, make_solution(definition, draft))


def make_workload(definition: Definition, size: dict[str, int]) -> Trace:
    """Make one size a Workload with random inputs."""
    axes = {name: choose_axes(definition, size)[name] for name in definition.var_axes}
    if any(axes[name] != length for name, length in size.items()):
        raise FormatError(f"{definition.name} does not take {size}: {axes}")
    inputs = describe_inputs(definition)
    workload = Workload(axes=axes, inputs=inputs, uuid=workload_uuid(definition.name, axes, inputs))
    return Trace(definition=definition.name, workload=workload)


def make_solution(definition: Definition, draft: str) -> Solution:
    """Make a file a Solution, with the epsilon of the Definition's reference where a draft has one."""
    content = (DRAFTS / f"{draft}.py").read_text()
    epsilon = _EPSILON.search(definition.reference)
    if epsilon:
        content = _EPSILON.sub(epsilon[0], content)
    source = SourceFile(path="main.py", content=content)
    spec = BuildSpec(
        language=Language.TRITON,
        target_hardware=(f"sm{find_hardware('cuda')[1]}",),  # where it is measured: that is all that is shown
        entry_point="main.py::run",
        destination_passing_style=True,
    )
    return Solution(
        name=f"{draft}_{definition.name}", definition=definition.name, author="fib-tools", spec=spec, sources=(source,)
    )


def read_evidence(dataset: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Read what was measured, by Definition and Workload."""
    found = collections.defaultdict(list)
    for path in sorted(dataset.glob("evidence/*/*.json")):
        each = json.loads(path.read_text())
        found[each["subject"]["definition"], each["subject"]["workload"]].append(each)
    return found


def choose_drafts(found: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, str]:
    """Choose the draft of each Definition that is right at the most sizes, and of these the fastest."""
    scores: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for (name, _), each in found.items():
        for one in each:
            if one["subject"]["author"] == "fib-tools":
                mine = scores[name][one["subject"]["solution"]]
                mine += [math.log(one["series"][0]["milliseconds"])] if one["status"] == "PASSED" else []
    return {
        name: min(drafts, key=lambda draft: (-len(drafts[draft]), sum(drafts[draft])))
        for name, drafts in scores.items()
    }


def find_series(evidence: dict[str, Any], launch: str, l2: str) -> dict[str, Any] | None:
    """Take the figure of one kind."""
    kinds = [each for each in evidence.get("series", ()) if (each["launch"], each["l2"]) == (launch, l2)]
    return kinds[0] if kinds else None


def say(evidence: dict[str, Any], launch: str, l2: str) -> str:
    """Write a figure in microseconds."""
    found = find_series(evidence, launch, l2)
    return f"{1e3 * found['milliseconds']:.4g}" if found else "-"


def pair_series(*pair: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the figures that are of the same thing: the first ones, or of eager calls where only one has a graph's."""
    figures = [one["series"][0] for one in pair]
    if len({figure["launch"] for figure in figures}) == 1:
        return figures
    return [found for one in pair if (found := find_series(one, "eager", "cold"))]


def tabulate(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """Write a line for each size, then the median ratio of each Definition and of all."""
    head = (
        f"{'definition':46}{'size':>8}{'ours us':>10}{'base us':>10}{'ratio':>8}{'95%':>16}"
        f"{'limit %, ours, base':>22}{'warm graph us':>18}{'eager cold us':>18}  baseline"
    )
    lines, ratios, chosen = [head], collections.defaultdict(list), choose_drafts(found)
    copying = set()
    """Definitions whose baseline works in place, and gets copies of what it is to overwrite."""
    for (name, _), each in sorted(found.items(), key=lambda item: (item[0][0], max(item[1][0]["axes"].values()))):
        drafts = [one for one in each if one["subject"]["solution"] == chosen.get(name)]
        right = [one for one in each if one["subject"]["author"] == "baseline" and one["status"] == "PASSED"]
        axes = each[0]["axes"]
        size = max(length for axis, length in axes.items() if "heads" not in axis and "max" not in axis)
        if not drafts:
            lines.append(f"{name:46}{size:>8}  no draft was measured in time")
            continue
        ours = drafts[0]
        if ours["status"] != "PASSED" or not right:
            why = " ".join((ours.get("detail") or "no baseline is right").split())[:150]
            lines.append(f"{name:46}{size:>8}  {ours['status']} {ours.get('rule') or ''} {why}")
            continue
        base = min(right, key=lambda one: one["series"][0]["milliseconds"])
        pair = pair_series(base, ours)
        ratio = pair[0]["milliseconds"] / pair[1]["milliseconds"]
        interval = "-"
        if min(len(one["samples"]) for one in pair) >= 8:  # fewer have no interval
            sure = ratio_interval(*(one["samples"] for one in pair))
            interval = f"{sure.low:.3f}-{sure.high:.3f}"
        ratios[name].append(ratio)
        copies = base["kernels"].count("memcpy")
        if copies:
            copying.add(name)
        limits = ", ".join(f"{(one.get('roofline') or {}).get('percent', 0):.0f}" for one in (ours, base))
        warm = ", ".join(say(one, "graph", "warm") for one in (ours, base))
        eager = ", ".join(say(one, "eager", "cold") for one in (ours, base))
        lines.append(
            f"{name:46}{size:>8}{1e3 * pair[1]['milliseconds']:>10.4g}{1e3 * pair[0]['milliseconds']:>10.4g}{ratio:>8.3f}"
            f"{interval:>16}{limits:>22}{warm:>18}{eager:>18}  {base['subject']['solution']}"
            + (f" and {copies} copies" if copies else "")
            + ("" if pair == [base["series"][0], ours["series"][0]] else ", both eager")
        )
    lines.append("")
    for name, values in sorted(ratios.items()):
        few = f", {len(values)} of {len(PLAN[name][1])} sizes" if len(values) < len(PLAN[name][1]) else ""
        lines.append(f"{name:46} median {statistics.median(values):.3f}, least {min(values):.3f}, {chosen[name]}{few}")
    for title, left in (("", set()), (" without those whose baseline copies what it works on in place", copying)):
        medians = [statistics.median(values) for name, values in ratios.items() if name not in left]
        if medians:
            won = sum(value >= 1 for value in medians)
            lines.append(
                f"{won} of {len(medians)} Definitions at least as fast, median {statistics.median(medians):.3f}{title}"
            )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("definitions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PLAN, default=list(PLAN))
    parser.add_argument("--total", type=float, default=3600.0, help="seconds for all; what is measured by then counts")
    options = parser.parse_args()
    options.deadline = _STARTED + options.total
    options.out.mkdir(parents=True, exist_ok=True)
    write_dataset(options.definitions, options.out / "dataset", options.only)
    fib("baselines", "write", options=options, log="write.log")
    said = fib("bench", "--time-limit", "20", options=options, log="bench.log")
    found = read_evidence(options.out / "dataset")
    failures = [said["what"]] if "error" in said else [str(failure)[:300] for failure in said.get("failures", ())]
    text = "\n".join([describe_machine(VERSIONS), "", *tabulate(found), *failures])
    (options.out / "kernel_drafts.txt").write_text(text + "\n")
    print(text)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
