"""The house is built in floors: a module imports from floors below its own only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"model", "host"}),
    frozenset({"op_types", "dataset", "sources", "llm"}),
    frozenset({"architecture", "checks", "capture", "evaluate"}),
    frozenset({"gate", "publish"}),
    frozenset({"draft"}),
    frozenset({"phases"}),
    frozenset({"operation"}),
    frozenset({"operations"}),
    frozenset({"tools", "skills", "render"}),
    frozenset({"agent", "docs", "mcp_server"}),
    frozenset({"cli"}),
)
TOP = frozenset({"__init__", "__main__"})
MODULES = sorted([*ROOT.glob("fib_tools/**/*.py"), *ROOT.glob("mcp_server/**/*.py")])
HEAVY = (
    *("torch", "transformers", "flashinfer", "sglang", "numpy", "triton", "perfetto"),
    *("huggingface_hub", "github", "requests"),
)


def _part(module: str) -> str:
    names = module.split(".")
    return "mcp_server" if names[0] == "mcp_server" else names[1] if len(names) > 1 else "__init__"


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _floor(part: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if part in floor)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"fib_tools", "mcp_server"}}


@pytest.mark.parametrize("path", MODULES, ids=_dotted)
def test_a_module_imports_only_from_floors_below_its_own(path: Path) -> None:
    own = _part(_dotted(path))
    if own in TOP:
        return
    for imported in _imports(path):
        other = _part(imported)
        if other not in TOP | {own, "__version__"}:
            assert _floor(other) < _floor(own), f"{_dotted(path)} imports {imported}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=_dotted)
def test_every_module_exports_names_that_it_has(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            and isinstance(target := node.targets[0] if isinstance(node, ast.Assign) else node.target, ast.Name)
            and target.id == "__all__"
            and node.value is not None
        ),
        None,
    )
    if exported is None:
        assert path.name in {"__init__.py", "__main__.py"} or path.name.startswith("_"), (
            "a public module says what it exports"
        )
        return
    defined = {name.id for node in ast.walk(tree) for name in ast.walk(node) if isinstance(name, ast.Name)}
    defined |= {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
    }
    assert set(exported) <= defined


def test_importing_everything_loads_no_heavy_package() -> None:
    names = [_dotted(path).removesuffix(".__init__") for path in MODULES if path.stem != "__main__"]
    names = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
