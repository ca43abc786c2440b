"""`models.ts` as the web page builds it: the real compiler, the published type, models of every kind."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fib_tools.architecture.structure_schema import NotTraceable
from fib_tools.model.manifest import Manifest
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.operations import get_operation
from fib_tools.phases import survey
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.pages import PagesResult
from fib_tools.publish.models_ts_reading import read_models

PUBLISHED = Path(__file__).parent / "published" / "schemas.ts"
MODELS = ("llama-3.1-8b", "kimi-k2", "qwen3-next-80b-a3b", "deepseek-v3.2", "gpt-oss-20b", "deepseek-v4-flash")
"""Dense, MLA with experts, hybrid linear, sparse attention, sinks with MXFP4 experts, hyper-connections."""
HAND_WRITTEN = """\
import type { Model } from '@/lib/schemas';

/* kept by hand: [ ] { } */
const shared = { count: 1, type: 'layer' as const };

const models: Model[] = [
\t{ id: 'mine', name: `mine`, modules: { "root": { count: 1, type: 'block' }, leaf: shared } }, // the first
  { "id": 'other', name: "it's mine", modules: {} }
] satisfies Model[]

export const byId = new Map(models.map(model => [model.id, model]));
export default models
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A workspace whose dataset has every second kernel of the models."""
    root = tmp_path_factory.mktemp("workspace")
    context = Context(workspace=Workspace(root=root), offline=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(survey, "_trace", lambda _config: NotTraceable(model_type="x", reason="left out by the test"))
        written: set[str] = set()
        for model in MODELS:
            manifest = get_operation("inventory").run(context, {"model": model}).manifest  # type: ignore[attr-defined]
            assert isinstance(manifest, Manifest)
            for kernel in manifest.kernels[::2]:
                definition = get_kernel_type(kernel.kernel).build(kernel.parameters)
                if definition.name not in written:
                    context.dataset.write_definition(definition)
                written.add(definition.name)
        yield context


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder laid out as the web page's."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "data").mkdir()
    shutil.copy(PUBLISHED, tmp_path / "lib" / "schemas.ts")
    options = {
        "strict": True,
        "noEmit": True,
        "target": "es2017",
        "module": "esnext",
        "moduleResolution": "bundler",
        "isolatedModules": True,
        "exactOptionalPropertyTypes": True,
        "types": [],
        "paths": {"@/*": ["./*"]},
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["**/*.ts"]}))
    return tmp_path


def compile_site(site: Path, binaries: Path, path: str) -> tuple[int, str]:
    command = [str(binaries / "tsc"), "--project", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": path})
    return done.returncode, done.stdout


def write(context: Context, path: Path, models: tuple[str, ...] = MODELS) -> PagesResult:
    result = get_operation("pages").run(context, {"models": models, "models_ts": path})
    assert isinstance(result, PagesResult)
    assert not result.failures
    return result


def test_a_list_of_models_of_every_kind_compiles_and_links_to_nothing_that_is_not_there(
    context: Context, site: Path, client_binaries: Path, node_path: str
) -> None:
    made = get_operation("pages").run(context, {"models": MODELS, "out": site / "pages"})
    assert isinstance(made, PagesResult)
    text = (site / "pages" / "models.ts").read_text()
    (site / "data" / "models.ts").write_text(text)
    assert compile_site(site, client_binaries, node_path) == (0, "")
    linked = [name for entry in read_models(text, where="models.ts").entries for name in entry.definitions]
    assert len(linked) > 100
    assert set(linked) <= context.dataset.load_definitions()[0].keys()
    assert [page.entry for page in made.pages] == ["added"] * len(MODELS)
    assert all(0 < page.linked < page.kernels for page in made.pages)


def test_a_hand_written_list_compiles_with_our_entries_and_keeps_its_own(
    context: Context, site: Path, client_binaries: Path, node_path: str
) -> None:
    path = site / "data" / "models.ts"
    path.write_text(HAND_WRITTEN)
    write(context, path, MODELS[:3])
    write(context, path, MODELS[1:])
    assert compile_site(site, client_binaries, node_path) == (0, "")
    text = path.read_text()
    first, second = HAND_WRITTEN.index("modules: {}") + len("modules: {} }"), HAND_WRITTEN.index("\n] satisfies")
    assert text.startswith(f"{HAND_WRITTEN[:first]},\n  {{\n    // fib pages: ")
    assert text.endswith(f"\n  }},{HAND_WRITTEN[second:]}")
    assert [entry.id for entry in read_models(text, where="models.ts").entries] == ["mine", "other", *MODELS]


def test_the_compiler_sees_an_entry_that_is_not_of_the_published_type(
    context: Context, site: Path, client_binaries: Path, node_path: str
) -> None:
    path = site / "data" / "models.ts"
    path.write_text(HAND_WRITTEN)
    write(context, path, MODELS[:1])
    path.write_text(path.read_text().replace('type: "layer",', 'type: "leaf",', 1))
    status, said = compile_site(site, client_binaries, node_path)
    assert status != 0
    assert '"leaf"' in said
