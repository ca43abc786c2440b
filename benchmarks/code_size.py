"""Sizes of modules and functions of the product, and lines of test per line of source.

python benchmarks/code_size.py
"""

from __future__ import annotations

import argparse
import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lines(path: Path) -> int:
    return sum(1 for _ in path.open(encoding="utf-8"))


def functions(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    source = sorted([*ROOT.glob("fib_tools/**/*.py"), *ROOT.glob("mcp_server/**/*.py")])
    tests = sorted(ROOT.glob("tests/**/*.py"))
    modules = sorted((lines(path), str(path.relative_to(ROOT))) for path in source)
    sizes = sorted(entry for path in source for entry in functions(path))
    total, tested = sum(size for size, _ in modules), sum(lines(path) for path in tests)
    print(
        f"{len(modules)} modules, {total} lines; median {statistics.median([s for s, _ in modules])}, largest {modules[-1]}"
    )
    lengths = [size for size, _ in sizes]
    short = sum(size <= 50 for size in lengths) / len(lengths)
    print(f"{len(sizes)} functions; median {statistics.median(lengths)} lines; {short:.1%} at 50 lines or less")
    print(f"longest: {sizes[-5:]}")
    print(f"{len(tests)} test files, {tested} lines: {tested / total:.2f} lines of test per line of source")


if __name__ == "__main__":
    main()
