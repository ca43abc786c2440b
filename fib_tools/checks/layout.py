"""Layout: every file stands where its own content says it belongs."""

from __future__ import annotations

from collections.abc import Iterator

from fib_tools.checks.rules import Family, error, warning
from fib_tools.checks.view import DatasetView
from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import StoredFile
from fib_tools.errors import PathError
from fib_tools.host.paths import check_component, confine
from fib_tools.model.report import Finding

__all__ = ["LAYOUT"]

_MISPLACED = error("layout.misplaced", "a document where no document has its place", "move it to its folder")
_STRAY = warning("layout.stray", "a file that is no part of a dataset", "remove it")
_LINK = error("layout.link_out", "a link that leads out of the dataset", "replace the link by the file")
_NAME = error("layout.bad_name", "a name that cannot be a definition's, author's or file's name", "rename it")
_TWICE = error("layout.duplicate_definition", "two files hold a Definition of the same name", "keep one of them")
_FIELD = error("layout.name_differs", "a name in the document differs from its path", "rename the file or the field")
_FOLDER = error("layout.op_type_differs", "a file stands under another op_type than its Definition", "move it")
_ORPHAN = error("layout.orphan", "a file belongs to a Definition that is not there", "add the Definition or remove it")
_OLD = warning("layout.old_traces", "traces in the layout without authors", "move them to traces/<author>/<op_type>/")

_DOCUMENTS = (".json", ".jsonl", ".safetensors")


def _check(view: DatasetView) -> Iterator[Finding]:
    for file in view.files:
        yield from _check_place(view, file)
    for name, found in view.definitions.items():
        if len(found) > 1 and view.wants(name):
            others = ", ".join(path for path, _ in found[1:])
            yield _TWICE.at(found[0][0], f"{name} stands also in {others}", definition=name)
        for path, definition in found:
            yield from _check_fields(view, path, definition.op_type, name)
    for kind in (Kind.WORKLOADS, Kind.SOLUTION, Kind.TRACES, Kind.BLOB, Kind.TEST):
        for path, location in view.of_kind(kind):
            yield from _check_owner(view, path, location)


def _check_place(view: DatasetView, file: StoredFile) -> Iterator[Finding]:
    if file.path.is_symlink():
        try:
            confine(view.dataset.root, *file.relative.split("/"))
        except PathError as problem:
            yield _LINK.at(file.relative, problem.what)
    if file.location is None:
        is_document = file.path.suffix in _DOCUMENTS and not file.relative.startswith("tests/")
        if file.path.name.startswith(".") or not is_document:
            if not file.relative.startswith("tests/"):
                yield _STRAY.at(file.relative, "not a document of the dataset")
        else:
            yield _MISPLACED.at(file.relative, "the layout has no such place")
        return
    for part in (file.location.op_type, file.location.author, file.location.definition, file.location.file):
        if not part:
            continue
        try:
            check_component(part)
        except PathError as problem:
            yield _NAME.at(file.relative, problem.what)


def _check_fields(view: DatasetView, path: str, op_type: str, name: str) -> Iterator[Finding]:
    if not view.wants(name):
        return
    _, folder, file = path.split("/")
    if file.removesuffix(".json") != name:
        yield _FIELD.at(path, f"the Definition says its name is {name!r}", definition=name)
    if folder != op_type:
        yield _FOLDER.at(path, f"the Definition says its op_type is {op_type!r}", definition=name)


def _check_owner(view: DatasetView, path: str, location: Location) -> Iterator[Finding]:
    definition = view.find_definition(location.definition)
    if definition is None and location.definition in view.unreadable_names:
        return  # definition.unreadable says it
    if definition is None:
        yield _ORPHAN.at(path, f"there is no Definition {location.definition!r}", definition=location.definition)
    elif location.op_type and location.op_type != definition.op_type:
        message = f"its Definition has the op_type {definition.op_type!r}"
        yield _FOLDER.at(path, message, definition=location.definition)
    if location.kind is Kind.TRACES and not location.author:
        yield _OLD.at(path, "it has no author folder", definition=location.definition)


LAYOUT = Family(
    name="layout", rules=(_MISPLACED, _STRAY, _LINK, _NAME, _TWICE, _FIELD, _FOLDER, _ORPHAN, _OLD), check=_check
)
