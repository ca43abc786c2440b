"""What a search puts into a model's context: bytes of briefs and of each kind of feedback, and tokens of an attempt.

python benchmarks/draft_sizes.py [--only NAME ...] [--tokenizer FILE]

Briefs are those of an H200 with the sizes of `kernel_drafts.py`; what is measured there stands in them as a figure of the
usual length. Feedback is what the evaluator says on this machine's CPU, on small sizes, of five drafts in a row: one that
does not load, a wrong one, a cheat, a slow one and a good one, which a scripted server answers with. That server counts no
tokens: those in the table are of what was really sent and answered, counted by a tokenizer's file (the last one that
Anthropic published, of Claude 2, is in the package anthropic up to 0.38), else estimated, a token for four bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from kernel_drafts import PLAN, make_workload  # noqa: E402  # the path must be there first

from fib_tools.dataset.store import Dataset  # noqa: E402
from fib_tools.draft.attempt import Attempt  # noqa: E402
from fib_tools.draft.brief import BRIEF_BYTES, write_brief, write_contract  # noqa: E402
from fib_tools.draft.feedback import FEEDBACK_BYTES, write_feedback  # noqa: E402
from fib_tools.draft.run_folder import RunFolder  # noqa: E402
from fib_tools.draft.target import Shape, Target  # noqa: E402
from fib_tools.evaluate.calibration.calibration import find_tolerances  # noqa: E402
from fib_tools.evaluate.engines.items import Bound  # noqa: E402
from fib_tools.gate.recognise import find_kernel  # noqa: E402
from fib_tools.model.definition import Definition  # noqa: E402
from fib_tools.model.solution import Language  # noqa: E402
from fib_tools.model.trace import Trace  # noqa: E402
from fib_tools.model.workload import Workload, workload_uuid  # noqa: E402
from fib_tools.op_types.registry import get_kernel_type  # noqa: E402
from fib_tools.op_types.size_workloads import describe_inputs  # noqa: E402
from fib_tools.op_types.sizes import choose_test_axes  # noqa: E402
from fib_tools.phases.context import Context, Workspace  # noqa: E402
from fib_tools.phases.optimize import optimize_kernel  # noqa: E402
from fib_tools.phases.search_options import SearchOptions  # noqa: E402
from scripted_anthropic import ScriptedAnthropic, Text, Turn  # noqa: E402

BYTES_A_TOKEN = 4
KINDS = ("compile", "wrong", "cheat", "slow", "good")
KERNELS: dict[str, dict[str, Any]] = {
    "fused_add_rmsnorm": {"hidden_size": 7168},
    "rmsnorm:h128": {"hidden_size": 128},
    "rmsnorm:h7168": {"hidden_size": 7168},
    "silu_and_mul": {"intermediate_size": 14336},
    "rope_with_cos_sin_cache": {"head_dim": 128, "rotary_dim": 128},
    "merge_state": {"num_heads": 32, "head_dim": 128},
    "moe_routing": {"num_experts": 384, "top_k": 8, "routing": "ds", "n_group": 1, "topk_group": 1},
    "gqa_paged_decode": {"num_qo_heads": 32, "num_kv_heads": 4, "head_dim": 128, "page_size": 64},
    "mla_paged_decode": {
        "num_qo_heads": 16,
        "head_dim_ckv": 512,
        "head_dim_kpe": 64,
        "sm_scale": 0.1352,
        "page_size": 64,
    },
    "fp8_quantize_1x128": {"hidden_size": 2048},
}
"""By kernel type, and a word where one is twice."""

_HEAD = "{reference}\n\n_compute = run\n\n\ndef run({inputs}):\n"
SOURCES = {
    "compile": "dtype = float8_of_another_version\n" + _HEAD + "    return _compute({inputs})\n",
    "wrong": _HEAD
    + "    made = _compute({inputs})\n    many = made if isinstance(made, (tuple, list)) else (made,)\n"
    + "    return tuple(each.roll(1, 0) for each in many) if len(many) > 1 else many[0].roll(1, 0)\n",
    "cheat": "import sys\n"
    + _HEAD
    + "    caller = sys._getframe(1)\n    return caller.f_locals.get('want') or _compute({inputs})\n",
    "slow": _HEAD + "    for _ in range(8):\n        made = _compute({inputs})\n    return made\n",
    "good": "{reference}\n",
}


def make_definitions(names: list[str]) -> dict[str, Definition]:
    """Make the Definitions, by name."""
    made = [get_kernel_type(key.partition(":")[0]).build(values) for key, values in KERNELS.items()]
    return {each.name: each for each in made if not names or each.name in names}


def describe_h200(definition: Definition) -> Target:
    """Write down what there is to know on an H200: the Definition's sizes are real, times are stand-ins."""
    times = {"limit_ms": 0.01234, "bound": "memory", "baseline_ms": 0.02345, "reference_ms": 0.1234}
    workloads = [make_workload(definition, size).workload for size in PLAN[definition.name][1]]
    bounds = find_tolerances(definition, find_kernel(definition))
    return Target(
        definition=definition,
        language=Language.TRITON,
        hardware="NVIDIA H200",
        capability=90,
        bounds={name: Bound.of(bound) for name, bound in bounds.items()},
        shapes=tuple(
            Shape(workload=each.uuid, axes=each.axes, count=10, bytes=123_000_000, flops=10**9, **times)
            for each in workloads
        ),
        baseline="flashinfer_wrapper_0a1b2c",
        bandwidth=4.25e12,
        flops_per_second=7.88e14,
        versions={"torch": "2.13.0", "triton": "3.6.0", "cuda": "13.0"},
    )


def write_dataset(root: Path, definition: Definition) -> None:
    """Write the Definition with a size that a CPU can do."""
    (root / "definitions").mkdir(parents=True)
    dataset, inputs = Dataset(root), describe_inputs(definition)
    dataset.write_definition(definition)
    small = choose_test_axes(definition, "small")
    axes = {name: small[name] for name in definition.var_axes}
    workload = Workload(axes=axes, inputs=inputs, uuid=workload_uuid(definition.name, axes, inputs))
    dataset.write_workloads(definition.op_type, [Trace(definition=definition.name, workload=workload)])


def list_answers(definition: Definition) -> Iterator[Turn]:
    """Answer with one draft of each kind."""
    words = {"reference": definition.reference.strip(), "inputs": ", ".join(definition.inputs)}
    for kind in KINDS:
        source = SOURCES[kind].replace("{reference}", words["reference"]).replace("{inputs}", words["inputs"])
        yield Turn(Text(f"TECHNIQUE: {kind}\nWHY: to see what is said of it.\n```python\n{source}```\n"))


def search(definition: Definition, folder: Path) -> tuple[list[Attempt], list[dict[str, Any]], list[Turn]]:
    """Let the drafts be judged one after the other; give the attempts, the requests and the answers."""
    write_dataset(folder / "dataset", definition)
    context = Context(workspace=Workspace(root=folder / "work"), offline=True, dataset_override=folder / "dataset")
    answers = list(list_answers(definition))
    with ScriptedAnthropic(answers) as server:
        os.environ |= {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "sk-ant-scripted-0123456789"}
        options = SearchOptions(language="python", device="cpu")
        result = optimize_kernel(context, definition.name, options, max_evals=len(KINDS))
    return list(RunFolder(Path(result.folder)).attempts), server.requests, answers


def list_texts(request: dict[str, Any]) -> list[str]:
    """List what the model is given to read."""
    texts = [block["text"] for block in request["system"]]
    return texts + [block["text"] for message in request["messages"] for block in message["content"]]


def make_counter(file: Path | None) -> Callable[[str], float]:
    """Make what counts a text's tokens."""
    if file is None:
        return lambda text: len(text.encode()) / BYTES_A_TOKEN
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text).ids)


def measure(definition: Definition, count: Callable[[str], float]) -> tuple[list[str], int]:
    """Give the row of a Definition, and the bytes of its brief."""
    target = describe_h200(definition)
    brief, contract = (len(write(target).encode()) for write in (write_brief, write_contract))
    with tempfile.TemporaryDirectory() as folder:
        attempts, requests, answers = search(definition, Path(folder))
    said = [len(write_feedback(attempt).encode()) for attempt in attempts]
    verdicts = [attempt.first_wrong.verdict if attempt.first_wrong else "PASSED" for attempt in attempts]
    print(f"{definition.name}: {', '.join(verdicts)}", file=sys.stderr)
    read = [sum(map(count, list_texts(request))) for request in requests]
    wrote = [count(block.text) for turn in answers for block in turn.blocks]
    tokens = (read[0], sum(read[1:]) / len(read[1:]), sum(wrote) / len(wrote))
    row = [definition.name, str(len(target.shapes)), str(brief), str(contract), *map(str, said)]
    return [*row, *(f"{value:.0f}" for value in tokens)], brief


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    options = parser.parse_args()
    definitions, count = make_definitions(options.only), make_counter(options.tokenizer)
    print(f"{os.cpu_count()} cores; budget of a brief {BRIEF_BYTES} bytes, of feedback {FEEDBACK_BYTES}")
    how = f"counted by {options.tokenizer.name}" if options.tokenizer else "estimated, bytes sent / 4"
    print(f"bytes of briefs for an H200, of feedback from this CPU on one size; tokens {how}\n")
    head = ["definition", "sizes", "brief", "contract", *KINDS, "first in", "later in", "out"]
    widths = [46, 6, 7, 9, *[8] * len(KINDS), 9, 9, 7]
    print(
        "".join(
            f"{cell:{'<' if not place else '>'}{width}}"
            for place, (cell, width) in enumerate(zip(head, widths, strict=True))
        )
    )
    largest = 0
    for definition in definitions.values():
        row, brief = measure(definition, count)
        largest = max(largest, brief)
        print(
            "".join(
                f"{cell:{'<' if not place else '>'}{width}}"
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ),
            flush=True,
        )
    print(f"\nlargest brief {largest} bytes of {BRIEF_BYTES}")
    print("what a provider counts is in its usage, which a run keeps in its ledger.json")
    sys.exit(largest > BRIEF_BYTES)


if __name__ == "__main__":
    main()
