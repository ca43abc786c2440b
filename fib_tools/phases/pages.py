"""Model pages: what a model is made of, as documents and as its entry on FlashInfer-Bench's web page."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fib_tools.errors import FibError, FormatError, RequestError
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.git import head_sha
from fib_tools.host.paths import check_component
from fib_tools.model.base import Model
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.definition import Definition
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import find_manifest
from fib_tools.phases.request import ModelOptions
from fib_tools.publish.models_ts import EMPTY_MODELS, EntryOutcome, update_models
from fib_tools.publish.models_ts_reading import read_models

if TYPE_CHECKING:
    from fib_tools.phases.page_documents import ModelDocuments

__all__ = ["PageFailure", "PagesResult", "WrittenPage", "write_model_pages"]

_FOLDER = "pages"
_LIST = "models.ts"
_LIST_BYTES = 4 << 20
_DOCUMENT_BYTES = 64 << 20
_NAMES_SHOWN = 10


class WrittenFile(Model):
    """A file of a model's pages."""

    path: str
    status: Literal["new", "changed", "unchanged"]


class WrittenPage(Model):
    """What was made for a model."""

    model: str
    title: str
    """Its repository, or the slug."""
    modules: int
    kernels: int
    linked: int
    """Kernels whose Definition the dataset has."""
    unmapped: int
    """What of the model no Definition describes."""
    entry: EntryOutcome
    """What became of its entry in models.ts; kept: somebody wrote or edited it by hand."""
    files: tuple[WrittenFile, ...]


class PageFailure(Model):
    """A model that could not be read."""

    model: str
    reason: str


class PagesResult(Result):
    """The pages of models, and what changed in models.ts."""

    rows = "pages"

    pages: tuple[WrittenPage, ...]
    models_ts: str
    changed: bool
    diff: str
    """Of models.ts."""
    unknown: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By hand-written entry: names that no Definition of this dataset has."""
    failures: tuple[PageFailure, ...] = ()
    dry_run: bool = False

    @property
    def has_errors(self) -> bool:
        """A model that could not be read is an error."""
        return bool(self.failures)

    def summary(self) -> Summary:
        """Show the models, then the difference, if nothing was written."""
        columns = ("model", "modules", "kernels", "with a Definition", "unmapped", "entry")
        rows = tuple(
            (page.title, *map(str, (page.modules, page.kernels, page.linked, page.unmapped)), page.entry)
            for page in self.pages
        )
        return Summary(
            tables=(Table(title="model pages", columns=columns, rows=rows),), lines=tuple(self._list_lines())
        )

    def _list_lines(self) -> Iterator[str]:
        if self.dry_run:
            yield from self.diff.splitlines()
        for page in self.pages:
            counts = Counter(file.status for file in page.files)
            said = ", ".join(f"{count} {status}" for status, count in counts.items())
            yield f"{Path(page.files[0].path).parent}: {said}"
            if page.entry == "kept":
                yield f"{page.model}: its entry was written or edited by hand, and stays as it is"
            if page.kernels and not page.linked:
                yield f"{page.model}: the dataset has none of its kernels; next: fib onboard {page.model}"
        for name, unknown in self.unknown.items():
            more = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
            yield f"{name}, by hand: no Definition in this dataset is called {', '.join(unknown[:_NAMES_SHOWN])}{more}"
        yield from (f"failed: {failure.model}: {failure.reason}" for failure in self.failures)
        written = "would be written" if self.dry_run else "written"
        yield f"{self.models_ts}: {written if self.changed else 'unchanged'}"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the files go."""

    folder: Path
    models_ts: Path
    dry_run: bool


def write_model_pages(
    context: Context,
    models: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="Names, Hugging Face repositories (org/name) or folders with config.json."),
    ],
    *,
    models_ts: Annotated[
        Path | None,
        Field(description="The web page's list to bring up to date; pages/models.ts in the workspace if left out."),
    ] = None,
    out: Annotated[
        Path | None,
        Field(description="Folder of the documents, one folder a model; pages/ in the workspace if left out."),
    ] = None,
    hf_repo_id: Annotated[str | None, Field(description="Hugging Face repository to read config.json from.")] = None,
    config: Annotated[Path | None, Field(description="A config.json to use instead of any other source.")] = None,
    sglang_path: Annotated[
        Path | None, Field(description="SGLang's source: a clone, an installed package or an unpacked wheel.")
    ] = None,
    hardware: Annotated[
        str | None, Field(description="Only the cookbook's configurations of this GPU, such as H200.")
    ] = None,
    dry_run: Annotated[bool, Field(description="Show what would change in models.ts; nothing is written.")] = False,
) -> PagesResult:
    """Write a model's pages: config, architecture, SGLang's implementation, its modules' Definitions, its models.ts entry.

    Only Definitions that the dataset has are linked. In models.ts entries that others wrote stay to the byte, and so does
    one of ours that somebody edited. Exit status 1: a model could not be read.
    """
    if len(models) > 1 and (hf_repo_id or config):
        raise RequestError("a config is one model's", todo="name one model with --hf-repo-id or --config")
    options = ModelOptions(hf_repo_id=hf_repo_id, config=config, sglang_path=sglang_path, hardware=hardware)
    place = _find_place(context, models_ts, out, dry_run=dry_run)
    text = _read_list(place)
    standing = context.dataset.load_definitions()[0] if context.dataset.root.is_dir() else {}
    documents, failures = _survey_all(context, models, options, standing)
    updated = update_models(text, [item.entry for item in documents.values()], where=str(place.models_ts))
    is_new = not place.models_ts.exists()
    if not dry_run:
        context.workspace.create()
    pages = tuple(_write_page(item, place, updated.outcomes[name]) for name, item in documents.items())
    changed = (updated.text != text or is_new) and bool(documents)
    if changed and not dry_run:
        _write(place.models_ts, updated.text.encode())
    unknown = {
        entry.id: tuple(dict.fromkeys(name for name in entry.definitions if name not in standing))
        for entry in updated.hand_written
    }
    return PagesResult(
        pages=pages,
        models_ts=str(place.models_ts),
        changed=changed,
        diff=_compare("" if is_new else text, updated.text if documents else text),
        unknown={name: names for name, names in unknown.items() if names},
        failures=failures,
        dry_run=dry_run,
    )


def _survey_all(
    context: Context, models: tuple[str, ...], options: ModelOptions, standing: Mapping[str, Definition]
) -> tuple[dict[str, ModelDocuments], tuple[PageFailure, ...]]:
    """Draw up the documents of each model, by its short name; what cannot be read does not stop the others."""
    documents: dict[str, ModelDocuments] = {}
    failures: list[PageFailure] = []
    for done, name in enumerate(models):
        context.progress(f"reading {name}", done, len(models))
        try:
            found = _survey(context, name, options, standing)
        except FibError as error:
            if len(models) == 1:
                raise
            failures.append(PageFailure(model=name, reason=str(error)))
            continue
        own = documents.setdefault(found.entry.id, found)
        if own.analysis.config.sha256 != found.analysis.config.sha256:
            reason = f"another model here is called {found.entry.id} as well; write them with an --out and list each"
            failures.append(PageFailure(model=name, reason=reason))
    return documents, tuple(failures)


def _find_place(context: Context, models_ts: Path | None, out: Path | None, *, dry_run: bool) -> _Place:
    folder = out or context.workspace.root / _FOLDER
    if models_ts is not None and not models_ts.is_file():
        what = "this is a folder" if models_ts.is_dir() else "no such file"
        raise RequestError(
            what, where=str(models_ts), todo="name the web page's models.ts, or leave it out: one is made"
        )
    return _Place(folder=folder, models_ts=models_ts or folder / _LIST, dry_run=dry_run)


def _read_list(place: _Place) -> str:
    """Read what stands there, and refuse what no entry can be added to before any model is read."""
    path = place.models_ts
    if not path.exists():
        return EMPTY_MODELS
    try:
        text = read_limited(path, _LIST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", where=str(path), todo="pass the web page's own models.ts") from error
    try:
        read_models(text, where=str(path))
    except FormatError as error:
        own = place.folder / _LIST
        other = "move the file away, and a new one is made"
        if path != own:
            other = f"leave --models-ts out, and the entries are written to {own}, from where they can be copied"
        raise FormatError(error.what, where=error.where, todo=f"{error.todo}; or {other}") from error
    return text


def _survey(context: Context, name: str, options: ModelOptions, standing: Mapping[str, Definition]) -> ModelDocuments:
    # it loads a hundred classes, which `fib --help` can do without
    from fib_tools.phases.page_documents import build_documents
    from fib_tools.phases.survey import survey_model

    survey = survey_model(context, name, options)
    clone = options.sglang_path or context.workspace.find_clone("sglang")
    onboarded = find_manifest(context.workspace, survey.config.slug)
    return build_documents(
        survey,
        standing,
        onboarded=onboarded[1] if onboarded else None,
        commit=head_sha(clone) if clone is not None and (clone / ".git").exists() else None,
    )


def _write_page(documents: ModelDocuments, place: _Place, outcome: EntryOutcome) -> WrittenPage:
    analysis = documents.analysis
    folder = place.folder / check_component(analysis.model)
    contents = {
        "model_config.json": canonical_bytes(documents.config),
        "model_architecture.json": canonical_bytes(documents.architecture),
        "sglang_implementation.json": canonical_bytes(documents.implementation),
        f"model_analysis_{analysis.model}.json": canonical_bytes(analysis),
    }
    kernels = {kernel.name: kernel.definition for module in analysis.modules for kernel in module.kernels}
    return WrittenPage(
        model=analysis.model,
        title=analysis.config.repo_id or analysis.model,
        modules=len(analysis.modules),
        kernels=len(kernels),
        linked=sum(definition is not None for definition in kernels.values()),
        unmapped=len(analysis.unmapped),
        entry=outcome,
        files=tuple(_update(folder / name, data, dry_run=place.dry_run) for name, data in contents.items()),
    )


def _update(path: Path, data: bytes, *, dry_run: bool) -> WrittenFile:
    is_new = not path.exists()
    if not is_new and read_limited(path, _DOCUMENT_BYTES) == data:
        return WrittenFile(path=str(path), status="unchanged")
    if not dry_run:
        _write(path, data)
    return WrittenFile(path=str(path), status="new" if is_new else "changed")


def _write(path: Path, data: bytes) -> None:
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def _compare(before: str, after: str) -> str:
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(difflib.unified_diff(old, new, fromfile=_LIST, tofile=_LIST))
