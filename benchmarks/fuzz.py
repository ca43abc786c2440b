"""Mutate Definitions, model configs and serving YAMLs, and see that nothing but our own errors comes out.

    python benchmarks/fuzz.py [--count 100000] [--seed 0]

A mutation changes values, keys or bytes of a good document. An outcome is `accepted` or the class of our own error;
anything else is a crash, printed with its seed, and the exit status is 1. Files written outside the scratch folder
would show as a changed listing of the parent folder.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fib_tools.architecture.facts import read_facts
from fib_tools.checks.dataset import check_dataset
from fib_tools.checks.view import open_view
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FibError
from fib_tools.gate.normalise import normalise
from fib_tools.model.base import read_lenient, to_document
from fib_tools.model.canonical import canonical_bytes, load_json
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.sources.cookbook import load_cookbook
from fib_tools.sources.registry import list_models

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e308, float("inf"), float("nan"), "", "a", "../../x", "/etc/passwd",
    "\x00", "é" * 50, "1e9", "x" * 5000, [], {}, [[]], {"": {}}, ["full_attention"], {"type": "const"}, {"rope_type": "yarn"},
)  # fmt: skip
YAML = """vendor: x
families:
  - name: f
    models:
      - name: m
        model_path: org/m
        attributes: {llm: {}}
        hardware:
          H200:
            configurations:
              - name: default
                attributes: {nodes: single, optimization: balanced, quantization: fp8}
                engine: {env_vars: {}, tp: 8, dp: null, ep: 4, enable_dp_attention: true, extra_args: [--page-size, "64"]}
"""


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutate(document: Any, rng: random.Random) -> Any:
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        spots = places(changed)
        if not spots:
            return changed
        *way, last = rng.choice(spots)
        holder = changed
        for key in way:
            holder = holder[key]
        action = rng.random()
        if action < 0.2:
            del holder[last]
        elif action < 0.4 and isinstance(holder[last], int) and not isinstance(holder[last], bool):
            holder[last] = rng.choice((0, -1, 1, 3, holder[last] * 2, holder[last] + 1, 2**40))
        elif action < 0.5 and isinstance(holder, dict):
            holder[rng.choice(("extra", "", "type", "shape", str(last) + "_"))] = holder.pop(last)
        elif action < 0.6 and isinstance(holder[last], str):
            text = holder[last]
            cut = rng.randrange(len(text) + 1)
            holder[last] = (
                text[:cut] + rng.choice(("", "\n", "(", "'''", "\t", ":", "x" * 9)) + text[cut + rng.randrange(3) :]
            )
        else:
            holder[last] = copy.deepcopy(rng.choice(ODD))
    return changed


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(changed) or 1)
        changed[at : at + rng.randrange(4)] = bytes(
            rng.choice(b'{}[]":,0a \n-\xff&*!|>\t') for _ in range(rng.randrange(4))
        )
    return bytes(changed)


class Subjects:
    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.definitions = [
            to_document(get_kernel_type(kernel).build(parameters))
            for kernel, parameters in (
                ("rmsnorm", {"hidden_size": 64}),
                ("gqa_paged_decode", {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 16}),
                ("gemm", {"n": 64, "k": 32}),
            )
        ]
        self.configs = [(entry.repo_id, entry.config) for entry in list_models() if entry.config is not None]
        self.names = scratch / "clone/data/models/generated/v0"
        self.names.mkdir(parents=True)

    def definition(self, rng: random.Random) -> None:
        data = canonical_bytes(mutate(rng.choice(self.definitions), rng))
        if rng.random() < 0.2:
            data = mutate_bytes(data, rng)
        definition = read_lenient(Definition, load_json(data, where="fuzz"), where="fuzz")
        load_json(canonical_bytes(definition), where="again")
        Dataset(self.scratch / "set").write_definition(definition)

    def dump(self, rng: random.Random) -> None:
        normalise(mutate(rng.choice(self.definitions), rng))

    def config(self, rng: random.Random) -> None:
        name, config = rng.choice(self.configs)
        read_facts(mutate(config, rng), name=name)

    def yaml(self, rng: random.Random) -> None:
        (self.names / "f.yaml").write_bytes(mutate_bytes(YAML.encode(), rng))
        load_cookbook(self.scratch / "clone")

    def dataset(self, rng: random.Random) -> None:
        folder = self.scratch / "checked/definitions/rmsnorm"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(mutate(rng.choice(self.definitions), rng))
        (folder / "rmsnorm_h64.json").write_bytes(
            mutate_bytes(text.encode(), rng) if rng.random() < 0.3 else text.encode()
        )
        list(check_dataset(open_view(Dataset(self.scratch / "checked"))))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    crashes = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "inside"
        scratch.mkdir()
        subjects = Subjects(scratch)
        runs: list[tuple[Callable[[random.Random], None], float]] = [
            (subjects.definition, 0.35), (subjects.config, 0.35), (subjects.yaml, 0.15), (subjects.dump, 0.1), (subjects.dataset, 0.05),
        ]  # fmt: skip
        for index in range(options.count):
            rng = random.Random(options.seed * 10**9 + index)
            run = rng.choices([entry for entry, _ in runs], [weight for _, weight in runs])[0]
            try:
                run(rng)
                outcome = "accepted"
            except FibError as error:
                outcome = type(error).__name__
            except Exception:
                crashes += 1
                outcome = "CRASH"
                if crashes <= 20:
                    print(
                        f"crash at seed {options.seed} index {index} in {run.__name__}\n{traceback.format_exc(limit=-4)}",
                        flush=True,
                    )
            outcomes[run.__name__][outcome] += 1
            if index % 10_000 == 0:
                print(f"{index} {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        outside = sorted(path.name for path in Path(folder).iterdir())
    for name, counter in outcomes.items():
        print(
            f"{name:12s} {sum(counter.values()):7d}  "
            + ", ".join(f"{kind} {count}" for kind, count in counter.most_common())
        )
    print(
        f"{options.count} mutations, {crashes} crashes, written outside: {[name for name in outside if name != 'inside']}, {time.monotonic() - began:.0f} s"
    )
    return 1 if crashes or outside != ["inside"] else 0


if __name__ == "__main__":
    sys.exit(main())
