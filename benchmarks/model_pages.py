"""Model pages of every bundled model, in the web page's own list, compiled against its own types.

    python benchmarks/model_pages.py WEB --out FILE

WEB is `web/apps/web` of FlashInfer-Bench (in the sdist of flashinfer-bench on PyPI); npm has to reach its registry.
The dataset has every kernel of every model, as kernel types build them. What the compiled list links to is read by node.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases.context import Context, Workspace
from fib_tools.sources.registry import list_models

ROOT = Path(__file__).parents[1]
NPM = ("typescript@5.9.3", "zod@3.25.76")
PACKAGES = ("fib-tools", "flashinfer-python", "transformers")
READ = "console.log(JSON.stringify(require('./out/data/models.js').default))"
STRICT = ("--strict", "--module", "commonjs", "--target", "es2022", "--skipLibCheck")


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def prepare_site(web: Path, site: Path) -> None:
    """Lay out the list and its types as the web page has them."""
    shutil.copytree(web / "lib" / "schemas", site / "lib" / "schemas")
    (site / "data").mkdir()
    shutil.copy(web / "data" / "models.ts", site / "data")
    (site / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *NPM, cwd=site)
    options = {"paths": {"@/*": ["./*"]}, "outDir": "out", "esModuleInterop": True}
    (site / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["data", "lib"]}))


def fill_dataset(context: Context, models: list[str]) -> None:
    """Write every kernel of the models."""
    written: set[str] = set()
    for model in models:
        manifest = get_operation("inventory").run(context, {"model": model}).manifest  # type: ignore[attr-defined]
        for kernel in manifest.kernels:
            definition = get_kernel_type(kernel.kernel).build(kernel.parameters)
            if definition.name not in written:
                context.dataset.write_definition(definition)
            written.add(definition.name)


def read_list(site: Path) -> list[dict[str, Any]]:
    """Compile the list with the page's own types, and let node read it."""
    run("node_modules/.bin/tsc", "--project", ".", *STRICT, cwd=site)
    models: list[dict[str, Any]] = json.loads(run("node", "-e", READ, cwd=site))
    return models


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("web", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = list(measure(options.web, Path(folder)))
    head = [f"$ python benchmarks/model_pages.py WEB --out {options.out.name}", describe()]
    print("\n".join([*head, *lines]))
    options.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


def describe() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    return f"# {date.today()}, commit {commit}, Python {platform.python_version()}, {packages}, {', '.join(NPM)}, {machine}"  # noqa: DTZ011 - the day here


def measure(web: Path, folder: Path) -> Iterator[str]:
    site = folder / "site"
    site.mkdir()
    prepare_site(web, site)
    before = read_list(site)
    context = Context(workspace=Workspace(root=folder / "workspace"), offline=True)
    models = [entry.slug for entry in list_models() if entry.config_file]
    fill_dataset(context, models)
    path = site / "data" / "models.ts"
    old = path.read_bytes()
    began = time.perf_counter()
    result = get_operation("pages").run(context, {"models": models, "models_ts": path, "out": folder / "pages"})
    seconds = time.perf_counter() - began
    after = read_list(site)
    names = context.dataset.load_definitions()[0].keys()
    own = [entry for entry in after if entry["id"] not in {old_entry["id"] for old_entry in before}]
    yield f"{'model':34s} {'modules':>8} {'links':>7} {'kernels':>8} {'unmapped':>9} entry"
    entries = {entry["id"]: entry for entry in own}
    for page in result.pages:  # type: ignore[attr-defined]
        links = [
            name for module in entries.get(page.model, {}).get("modules", {}).values() for name in module["definitions"]
        ]
        yield f"{page.model:34s} {page.modules:>8} {len(links):>7} {page.kernels:>8} {page.unmapped:>9} {page.entry}"
    modules = [(entry, module) for entry in own for module in entry["modules"].values()]
    linked = [name for _, module in modules for name in module["definitions"]]
    orphans = [module for entry, module in modules if "parent" in module and module["parent"] not in entry["modules"]]
    yield f"{len(models)} models in {seconds:.1f} s with traced structures at hand; {len(own)} entries added, {len(before)} there before"
    yield f"tsc --strict against the published types: no error; entries of others changed: {sum(a != b for a, b in zip(before, after, strict=False))}"
    yield f"bytes of the old list that are gone: {sum(line not in path.read_bytes().splitlines() for line in old.splitlines())} lines"
    yield f"{len(modules)} modules, {len(linked)} links to {len(set(linked))} Definitions: {sum(name not in names for name in linked)} dangling; {len(orphans)} parents that are no module"
    by_hand = [
        name for entry in before for module in entry["modules"].values() for name in module.get("definitions", ())
    ]
    yield f"entries that were there: {len(by_hand)} links, {sum(name not in names for name in by_hand)} to names that no kernel of the {len(models)} models has"


if __name__ == "__main__":
    main()
