"""The coverage document of many models: `fib coverage` over a folder of configs, and every name in it held against them.

    python benchmarks/coverage.py CONFIGS --out FILE

CONFIGS holds files such as `Qwen__Qwen3-8B.json`. The command runs with empty caches, with full ones, and once more on the
document it wrote. Then each name is checked at each of its TP sizes by `coverage_names.py`, which shares no code with the
product; and to show what that sees, every number of every name is planted off by one or doubled.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from coverage_names import Config, check_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("fib-tools", "flashinfer-python", "transformers", "torch")
SECTION = re.compile(r"<!-- coverage:(?P<slug>\S+) -->\n(?P<body>.*?)<!-- /coverage:(?P=slug) -->", re.DOTALL)
ROW = re.compile(r"\| `(?P<name>\w+)` \| \w+ \| (?P<tp>[\d, ]*) \| (?P<ep>[\d, ]*) \| (?P<ps>[\d, ]*) \|")
WAY = re.compile(r"^- tp(?P<tp>\d+)(?: dp(?P<dp>\d+)-attention)?(?: ep(?P<ep>\d+))?", re.MULTILINE)
UNMAPPED = re.compile(r"\| Unmapped \| why \|\n[^\n]+\n((?:\|[^\n]+\n)*)")


class Row(NamedTuple):
    """A kernel of the document."""

    name: str
    tp: tuple[int, ...]
    ep: tuple[int, ...]
    page_sizes: tuple[int, ...]


class Part(NamedTuple):
    """A model's part of it."""

    slug: str
    rows: list[Row]
    ways: set[tuple[int, int]]
    """TP and EP, those of attention with DP among them."""
    unmapped: int


def cover(names: list[str], workspace: Path, cache: Path) -> tuple[float, str]:
    """Run the command as a person does, and return its seconds and its last line."""
    command = [sys.executable, "-m", "fib_tools", "coverage", *names, "--workspace", str(workspace), "--offline"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - began, done.stdout.strip().splitlines()[-1]


def read_document(text: str) -> Iterator[Part]:
    for section in SECTION.finditer(text):
        if section["slug"] == "overview":
            continue
        body = section["body"]
        rows = [Row(row["name"], *(_numbers(row[key]) for key in ("tp", "ep", "ps"))) for row in ROW.finditer(body)]
        ways = set()
        for way in WAY.finditer(body):
            tp, ep = int(way["tp"]), int(way["ep"] or 1)
            ways |= {(tp, ep), (tp // int(way["dp"] or 1), ep)}
        unmapped = UNMAPPED.search(body)
        yield Part(section["slug"], rows, ways, unmapped[1].count("\n") if unmapped else 0)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def check_row(config: Config, row: Row, ways: set[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    """Check a name at each TP size of its row: with one of the row's EP sizes it has to follow from the config."""
    for tp in row.tp:
        if tp not in {way for way, _ in ways}:
            yield tp, f"no way of serving has TP {tp}"
            continue
        said = [check_name(config, row.name, tp, ep, row.page_sizes) for ep in row.ep]
        yield tp, "" if "" in said else said[0]
    for ep in row.ep:
        if ep not in {way for _, way in ways}:
            yield ep, f"no way of serving has EP {ep}"


def plant(row: Row) -> Iterator[Row]:
    """Change each number of a name that is a size: by one, and to its double."""
    for number in re.finditer(r"(?<=[a-z])\d+(?=_|$)", row.name):
        if re.search(r"(?:fp|bf|nvfp|mxfp|relu|llama|w4a|conv|x)$", row.name[: number.start()]):
            continue  # an element type, or a kernel's own name
        for value in (int(number[0]) + 1, int(number[0]) * 2):
            yield row._replace(name=f"{row.name[: number.start()]}{value}{row.name[number.end() :]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    configs = {path.stem.replace("__", "/"): Config(path) for path in sorted(options.configs.glob("*.json"))}
    lines = list(describe(options.configs.name, options.out))
    with tempfile.TemporaryDirectory() as folder:
        workspace, cache = Path(folder) / "workspace", Path(folder) / "cache"
        for what in ("empty caches, every structure traced", "full caches", "the document there already"):
            if what == "full caches":
                (workspace / "model_coverage.md").unlink()
            seconds, last = cover(list(configs), workspace, cache)
            lines.append(f"{what}: {seconds:.1f} s for {len(configs)} models; {last.rpartition(': ')[2]}")
        text = (workspace / "model_coverage.md").read_text(encoding="utf-8")
    lines += report(configs, text)
    print("\n".join(lines))
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe(folder: str, out: Path) -> Iterator[str]:
    yield f"$ python benchmarks/coverage.py {folder.upper()} --out {out.name}"
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    yield f"# {date.today()}, commit {commit.stdout.strip()}, Python {platform.python_version()}, {packages}, {machine}"  # noqa: DTZ011 - the day here


def report(configs: dict[str, Config], text: str) -> Iterator[str]:
    """Check everything, and say what came of it, model by model."""
    titles = dict(re.findall(r"\| \[(?P<title>[^\]]+)\]\(#(?P<slug>[^)]+)\)", text))
    by_slug = {slug: title.replace("\\", "") for title, slug in titles.items()}
    totals: Counter[str] = Counter()
    wrong: list[str] = []
    missed: Counter[str] = Counter()
    yield f"{'model':48s} {'kernels':>8} {'checks':>8} {'wrong':>6} {'unmapped':>9}"
    for part in read_document(text):
        config = configs[by_slug[part.slug]]
        found = [(row, tp, fault) for row in part.rows for tp, fault in check_row(config, row, part.ways)]
        faults = [f"{part.slug}, TP {tp}: {row.name}: {fault}" for row, tp, fault in found if fault]
        yield f"{by_slug[part.slug]:48s} {len(part.rows):>8} {len(found):>8} {len(faults):>6} {part.unmapped:>9}"
        totals += Counter(models=1, kernels=len(part.rows), checks=len(found), unmapped=part.unmapped)
        wrong += faults
        own = {row.name for row in part.rows}
        for row in part.rows:
            for planted in plant(row):
                if planted.name not in own:
                    is_seen = any(fault for _, fault in check_row(config, planted, part.ways))
                    totals["seen" if is_seen else "missed"] += 1
                    missed[re.sub(r"\d+", "N", row.name)] += not is_seen
    distinct = {row.name for part in read_document(text) for row in part.rows}
    yield (
        f"{totals['models']} models, {totals['kernels']} kernels, {len(distinct)} distinct names; "
        f"{totals['checks']} checks (a name at a TP size): {totals['checks'] - len(wrong)} explained by the config, "
        f"{len(wrong)} contradict it; {totals['unmapped']} unmapped"
    )
    yield from wrong
    planted = totals["seen"] + totals["missed"]
    yield f"numbers planted off by one or doubled: {totals['seen']} of {planted} are seen to contradict the config"
    yield from (f"  not seen: {count} in {name}" for name, count in missed.most_common() if count)


if __name__ == "__main__":
    main()
