"""The dataset as a web site: from a server on this machine, or as files for any other."""

from __future__ import annotations

import json
import math
import threading
import webbrowser
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PrivateAttr

from fib_tools.dataset.store import Dataset
from fib_tools.errors import FibError, FormatError, RequestError
from fib_tools.host.env import has_display
from fib_tools.host.files import read_limited, storage_errors, write_atomically
from fib_tools.host.paths import confine
from fib_tools.model.canonical import load_json
from fib_tools.model.manifest import Manifest
from fib_tools.model.summary import Result, Summary
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.manifests import find_manifest, list_manifests, manifest_model
from fib_tools.phases.request import COMMAND_LINE_ONLY

if TYPE_CHECKING:
    from fib_tools.host.loopback import Answer, LoopbackServer
    from fib_tools.publish.view.site import Manifests, Site

__all__ = ["ViewResult", "view_dataset"]

_PORT = 8642
"""Taken when it is free, so that a page can be loaded again after a new start."""
_FRESH_SECONDS = 1.0
"""How long a look at the dataset serves: a page and what it fetches at once are of one moment."""
_SHOWN = 20
_TIMELINES = "traces"
_LIST = "fib-view.json"
"""Names what was written into a folder, so that a later run removes its own files and no others."""
_LIST_BYTES = 64 << 20


class ViewResult(Result):
    """Where the pages are."""

    dataset: str
    url: str | None = None
    """Of the server, which answers until it is interrupted."""
    folder: str | None = None
    """Where the files were written."""
    files: int = 0
    written: int = 0
    """Files that are new or changed."""
    removed: int = 0
    """Files of an earlier run that are no part of the site any more."""
    problems: tuple[str, ...] = ()
    """Pages that could not be made, and files of the dataset that could not be read."""

    _server: LoopbackServer | None = PrivateAttr(None)
    _serve: Callable[[], None] | None = PrivateAttr(None)

    @property
    def has_errors(self) -> bool:
        """What could not be made or read is an error of the data."""
        return bool(self.problems)

    def summary(self) -> Summary:
        """Say where to look."""
        told = [f"problem: {problem}" for problem in self.problems[:_SHOWN]]
        if self.problems:
            told.append(f"{len(self.problems)} problems: what cannot be read has no page")
        if self.url:
            return Summary(lines=(*told, f"{self.url} shows {self.dataset}; Ctrl-C ends it"))
        counts = f"{self.files} files, {self.written} new or changed, {self.removed} removed"
        return Summary(lines=(*told, f"{self.folder}/index.html: {counts}"))

    def serve(self) -> None:
        """Answer until interrupted."""
        if self._serve is not None:
            self._serve()

    def stop(self) -> None:
        """End the server, from another thread if it answers already."""
        if self._server is not None:
            self._server.stop()

    def served_by(self, server: LoopbackServer, serve: Callable[[], None]) -> ViewResult:
        """Take the server whose address this is, and what makes it answer."""
        self._server, self._serve = server, serve
        return self


def view_dataset(
    context: Context,
    *,
    port: Annotated[
        int | None,
        Field(description=f"Port of the server, 0 for a free one; {_PORT} or a free one if left out.", ge=0, le=65535),
    ] = None,
    out: Annotated[
        Path | None,
        Field(description="Write the pages into this folder instead, for any web server."),
        COMMAND_LINE_ONLY,
    ] = None,
    open: Annotated[  # noqa: A002  # the name of the option
        bool, Field(description="Open the first page in the browser, where there is a screen.")
    ] = True,
) -> ViewResult:
    """View a dataset as a web site: models, Definitions, Workloads, Solutions, leaderboard, rooflines.

    The server listens on 127.0.0.1 alone and shows the dataset as it is at each look; nothing is written.
    Exit status 1: a page could not be made, or a file of the dataset not read.
    """
    # pages need what no other command does
    from fib_tools.publish.view.site import Site

    dataset = Dataset.open(context.dataset.root)
    timelines = context.workspace.root / _TIMELINES
    manifests = _Manifests(context.workspace)
    # files are written from one look, a server looks anew
    seconds = _FRESH_SECONDS if out is None else math.inf
    site = Site(dataset, manifests=manifests.load, timelines=timelines, fresh_seconds=seconds)
    paths = site.list_paths(lambda done, total: context.progress("reading the dataset", done, total))
    if out is not None:
        return _write(context, site, paths, out)
    server = _bind(site, port)
    result = ViewResult(dataset=str(dataset.root), url=server.url, files=len(paths), problems=site.find_problems())
    return result.served_by(server, lambda: _serve(server, site, opens=open))


class _Manifests:
    """The newest manifest of each model of a workspace; one that has not changed is not read again."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[str, tuple[int, int, Manifest | FormatError]] = {}

    def load(self) -> Manifests:
        """Load them by model; one that cannot be read leaves its model to the tags, and is told."""
        newest = {manifest_model(name): name for name in list_manifests(self._workspace)}
        found = {model: self._load(model, name) for model, name in newest.items()}
        return (
            {model: each for model, each in found.items() if isinstance(each, Manifest)},
            tuple(str(each) for each in found.values() if isinstance(each, FormatError)),
        )

    def _load(self, model: str, name: str) -> Manifest | FormatError:
        seen = (self._workspace.root / name).stat()
        known = self._known.get(name)
        if known is None or known[:2] != (seen.st_mtime_ns, seen.st_size):
            known = (seen.st_mtime_ns, seen.st_size, self._read(model, name))
            self._known[name] = known
        return known[2]

    def _read(self, model: str, name: str) -> Manifest | FormatError:
        try:
            found = find_manifest(self._workspace, model)
        except FormatError as error:
            return error
        return found[1] if found else FormatError("it is gone", where=name)


def _bind(site: Site, port: int | None) -> LoopbackServer:
    from fib_tools.host.loopback import LoopbackServer

    def find(path: str) -> Answer | None:
        return _answer(site, path)

    if port is not None:
        return LoopbackServer(find, port=port)
    try:
        return LoopbackServer(find, port=_PORT)
    except RequestError:
        return LoopbackServer(find)


def _answer(site: Site, path: str) -> Answer | None:
    from fib_tools.host.loopback import Answer
    from fib_tools.publish.view.frame import POLICY

    found = site.find(path)
    if found is None:
        return None
    headers = {"Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'"}
    return Answer(body=found.data, media_type=found.media_type, headers=headers)


def _serve(server: LoopbackServer, site: Site, *, opens: bool) -> None:
    with server:
        threading.Thread(target=_warm_up, args=(site,), daemon=True).start()
        if opens and has_display():
            webbrowser.open(server.url)
        server.serve_forever()


def _warm_up(site: Site) -> None:
    with suppress(FibError):  # the page that needs it will say so
        site.warm_up()


def _write(context: Context, site: Site, paths: Iterable[str], out: Path) -> ViewResult:
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        is_empty = not any(out.iterdir())
    before = _read_list(out)
    if before is None and not is_empty:
        raise RequestError(
            "the folder is not empty, and holds no site of fib view", where=str(out), todo="pass another --out"
        )
    wanted = list(paths)
    # first all that may be there when this run is killed, at the end what is there
    _write_list(out, {*wanted, *(before or ())})
    written, problems, made = 0, [*site.find_problems()], set()
    for done, path in enumerate(wanted):
        context.progress("writing pages", done, len(wanted))
        try:
            found = site.find(path)
        except FibError as error:
            problems.append(f"{path}: {error}")
            continue
        if found is not None:
            made.add(path)
            written += _write_file(out, path, found.data)
    gone = [path for path in before or () if path not in made]
    removed = sum(_remove(out, path) for path in gone)
    _write_list(out, made)
    return ViewResult(
        dataset=str(context.dataset.root),
        folder=str(out),
        files=len(made),
        written=written,
        removed=removed,
        problems=tuple(problems),
    )


def _read_list(out: Path) -> list[str] | None:
    """Read what an earlier run wrote; None where there was none.

    Raises:
        FormatError: it is no list, or names what no site has: somebody else wrote it, or changed it.
        PathError: a link leads out of the folder.
    """
    # `fib --help` can do without the pages
    from fib_tools.publish.view.paths import is_site_path

    path = out / _LIST
    if not path.exists():
        return None
    document = load_json(read_limited(path, _LIST_BYTES), where=str(path))
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, list) or not all(isinstance(item, str) for item in files):
        raise FormatError("it is no list of a site's files", where=str(path), todo="pass another --out")
    strange = next((item for item in files if not is_site_path(item)), None)
    if strange is not None:
        what = f"it names {strange!r}, which is no file of a site"
        raise FormatError(what, where=str(path), todo="pass another --out; nothing was written or removed")
    for item in files:
        confine(out, *item.split("/"))
    return files


def _write_list(out: Path, files: Iterable[str]) -> None:
    write_atomically(out / _LIST, (json.dumps({"files": sorted(files)}, indent=1) + "\n").encode())


def _write_file(out: Path, path: str, data: bytes) -> bool:
    """Write a file unless it says the same already; tell whether it did."""
    at = confine(out, *path.split("/"))
    if at.is_file() and at.stat().st_size == len(data) and at.read_bytes() == data:
        return False
    with storage_errors(at):
        at.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(at, data)
    return True


def _remove(out: Path, path: str) -> bool:
    at = confine(out, *path.split("/"))
    if not at.is_file():
        return False
    with storage_errors(at):
        at.unlink()
    return True
