"""The site of a dataset: every path it has, and what is there at the moment that it is asked for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from fib_tools.dataset.layout import Location
from fib_tools.dataset.store import Dataset
from fib_tools.errors import FormatError, PathError
from fib_tools.evaluate.report.report_reading import Reading, read_measurements
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.host.files import read_limited
from fib_tools.model.evidence import Evidence
from fib_tools.model.manifest import Manifest
from fib_tools.model.solution import Solution
from fib_tools.model.workload import Workload
from fib_tools.publish.view.catalogue import Catalogue, Contents, Entry
from fib_tools.publish.view.definition_page import Dossier, build_definition_data, build_definition_page
from fib_tools.publish.view.definitions_page import build_definitions_page
from fib_tools.publish.view.frame import ASSETS, Page, format_site_page
from fib_tools.publish.view.leaderboard_page import build_leaderboard_page, choose_points
from fib_tools.publish.view.model_tree import ModelView, view_model
from fib_tools.publish.view.models_page import build_model_page, build_models_page
from fib_tools.publish.view.overview_page import build_overview_page
from fib_tools.publish.view.paths import (
    DEFINITIONS,
    INDEX,
    LEADERBOARD,
    MODELS,
    TIMELINES,
    data_path,
    definition_path,
    model_path,
    solution_path,
    timeline_path,
)
from fib_tools.publish.view.solution_page import build_solution_page
from fib_tools.publish.view.timelines_page import Timeline, build_timelines_page

__all__ = ["Content", "Manifests", "Site"]

Manifests = tuple[Mapping[str, Manifest], tuple[str, ...]]
"""By model, and what is wrong with those that cannot be read."""

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_FOLDERS = {name: Path(__file__).parent for name in ASSETS} | {
    name: Path(__file__).parents[1] for name in ("page.css", "page.js")
}
_TIMELINE_SUFFIX = ".pftrace"
_TIMELINE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What is at a path."""

    data: bytes
    media_type: str

    @classmethod
    def at(cls, path: str, data: bytes) -> Content:
        """Name its type by the suffix of its path."""
        return cls(data=data, media_type=_TYPES.get(path.rpartition(".")[2], "application/octet-stream"))


@dataclass(frozen=True, kw_only=True)
class _Map:
    """What the paths of a site lead to, at one look."""

    contents: Contents
    manifests: Mapping[str, Manifest]
    definitions: Mapping[str, Entry]
    """By the paths of their pages, and of their pages' data."""
    solutions: Mapping[str, Location]
    """By the paths of their pages."""

    def list_models(self) -> list[str]:
        """Name the models that are tagged or onboarded."""
        tagged = {model for entry in self.contents.entries for model in entry.models}
        return sorted(tagged | self.manifests.keys())


class Site:
    """The pages of one dataset; each is built when it is asked for."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        manifests: Callable[[], Manifests],
        timelines: Path | None = None,
        fresh_seconds: float = 1.0,
    ) -> None:
        """Take a dataset, a way to the workspace's manifests by model, and the folder of traces for Perfetto.

        A look at what is there serves the pages that are asked for within `fresh_seconds`.
        """
        self.subject = dataset.root.resolve().name
        self._dataset = dataset
        self._manifests = manifests
        self._timelines = timelines
        self._catalogue = Catalogue(dataset)
        self._fresh_seconds = fresh_seconds
        self._seen: tuple[float, _Map] | None = None
        self._turn = threading.Lock()
        self._opened: Dossier | None = None
        self._leaderboard: tuple[object, Page] | None = None

    def find(self, path: str) -> Content | None:
        """Find what is at a path; None where the site has nothing.

        Raises:
            FibError: what belongs there cannot be read.
        """
        path = path or INDEX
        top, _, rest = path.partition("/")
        if top == "assets":
            return self._find_asset(rest)
        if top == "timelines":
            return self._find_timeline(path)
        page = self._find_data(path) if top == "data" else self._find_page(path, top)
        return page if isinstance(page, Content) or page is None else self._format(page)

    def list_paths(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> list[str]:
        """List every path of the site."""
        found = self._look(progress)
        timelines = (timeline_path(each.file) for each in self._list_timelines())
        return [
            *(f"assets/{name}" for name in ASSETS),
            *(INDEX, MODELS, DEFINITIONS, LEADERBOARD, TIMELINES),
            *map(model_path, found.list_models()),
            *found.definitions,
            *found.solutions,
            *timelines,
        ]

    def find_problems(self) -> tuple[str, ...]:
        """Say which Definitions and manifests cannot be read, and why."""
        return self._look().contents.problems

    def warm_up(self) -> None:
        """Read what the leaderboard needs before somebody asks for it."""
        self._build_leaderboard(self._look())

    def _format(self, page: Page) -> Content:
        return Content.at(page.path, format_site_page(page, subject=self.subject).encode("utf-8", "backslashreplace"))

    def _find_asset(self, name: str) -> Content | None:
        return Content.at(name, (_FOLDERS[name] / name).read_bytes()) if name in _FOLDERS else None

    def _look(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> _Map:
        seen = self._seen
        if seen is not None and time.monotonic() - seen[0] < self._fresh_seconds:
            return seen[1]
        contents = self._catalogue.read(progress)
        definitions: dict[str, Entry] = {}
        for entry in contents.entries:
            definitions[definition_path(entry.at.op_type, entry.at.definition)] = entry
            definitions[data_path(entry.at.op_type, entry.at.definition)] = entry
        solutions = {solution_path(at): at for entry in contents.entries for at in entry.solutions}
        manifests, problems = self._manifests()
        contents = replace(contents, problems=(*contents.problems, *problems))
        found = _Map(contents=contents, manifests=manifests, definitions=definitions, solutions=solutions)
        self._seen = (time.monotonic(), found)
        return found

    def _find_page(self, path: str, top: str) -> Page | None:
        found = self._look()
        if path == INDEX:
            return build_overview_page(
                found.contents, self._view_models(found), subject=self.subject, root=str(self._dataset.root)
            )
        if path == MODELS:
            return build_models_page(self._view_models(found))
        if path == DEFINITIONS:
            return build_definitions_page(found.contents)
        if path == LEADERBOARD:
            return self._build_leaderboard(found)
        if path == TIMELINES:
            return build_timelines_page(self._list_timelines())
        if top == "definitions" and path in found.definitions:
            return build_definition_page(self._open(found.definitions[path]))
        if top == "models":
            return self._find_model(path, found)
        return self._find_solution(path, found) if top == "solutions" else None

    def _find_data(self, path: str) -> Content | None:
        entry = self._look().definitions.get(path)
        if entry is None:
            return None
        data = build_definition_data(self._open(entry))
        return Content.at(path, json.dumps(data, allow_nan=False, separators=(",", ":")).encode())

    def _find_model(self, path: str, found: _Map) -> Page | None:
        slug = next((slug for slug in found.list_models() if model_path(slug) == path), None)
        if slug is None:
            return None
        own = [each.file for each in self._list_timelines() if each.file.startswith(f"{slug}_")]
        return build_model_page(_view(slug, found, found.contents.by_name()), own)

    def _find_solution(self, path: str, found: _Map) -> Page | None:
        at = found.solutions.get(path)
        return build_solution_page(at, self._dataset.load_solution(str(at))) if at else None

    def _view_models(self, found: _Map) -> list[ModelView]:
        names = found.contents.by_name()
        return [_view(slug, found, names) for slug in found.list_models()]

    def _open(self, entry: Entry) -> Dossier:
        """Read everything that there is of a Definition, once for a page and its data if one look serves both."""
        opened = self._opened
        if opened is None or opened.entry is not entry:
            opened = self._opened = self._read(entry)
        return opened

    def _read(self, entry: Entry) -> Dossier:
        """Read a Definition's files; what cannot be read is said."""
        at, problems = entry.at, []
        workloads: tuple[Workload, ...] = ()
        solutions: list[tuple[Location, Solution]] = []
        try:
            workloads = self._dataset.load_workloads(at.op_type, at.definition)
        except (FormatError, PathError) as error:
            problems.append(str(error))
        for place in entry.solutions:
            try:
                solutions.append((place, self._dataset.load_solution(str(place))))
            except (FormatError, PathError) as error:
                problems.append(str(error))
        reading = read_measurements(self._dataset, definitions=[at.definition], op_types=[at.op_type])
        return Dossier(
            entry=entry,
            workloads=workloads,
            solutions=tuple(solutions),
            reading=reading,
            problems=(*problems, *reading.problems),
        )

    def _build_leaderboard(self, found: _Map) -> Page:
        """Sum up all Traces, once for each state of their files and of the pages that there are."""
        state = (found.contents.traces, tuple(found.definitions))
        with self._turn:
            if self._leaderboard is None or self._leaderboard[0] != state:
                reading = read_measurements(self._dataset, with_evidence=False)
                evidence, problems = self._sample(reading)
                report = build_report(replace(reading, evidence=evidence))
                entries = found.contents.entries
                page = build_leaderboard_page(report, evidence, [*reading.problems, *problems], entries)
                self._leaderboard = (state, page)
            return self._leaderboard[1]

    def _sample(self, reading: Reading) -> tuple[dict[str, Evidence], list[str]]:
        evidence: dict[str, Evidence] = {}
        problems = []
        for m in choose_points(reading.measurements):
            try:
                found = self._dataset.find_evidence(m.evidence or "")
            except (FormatError, PathError) as error:
                problems.append(str(error))
                continue
            if found is not None:
                evidence[found.key] = found
        return evidence, problems

    def _list_timelines(self) -> list[Timeline]:
        if self._timelines is None or not self._timelines.is_dir():
            return []
        found = sorted(path for path in self._timelines.glob(f"*{_TIMELINE_SUFFIX}") if path.is_file())
        return [
            Timeline(
                file=path.name,
                size=path.stat().st_size,
                made=datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc),
            )
            for path in found
            if not path.is_symlink()
        ]

    def _find_timeline(self, path: str) -> Content | None:
        file = next((each.file for each in self._list_timelines() if timeline_path(each.file) == path), None)
        if file is None or self._timelines is None:
            return None
        return Content.at(path, read_limited(self._timelines / file, _TIMELINE_BYTES))


def _view(slug: str, found: _Map, names: Mapping[str, Entry]) -> ModelView:
    tagged = [entry for entry in found.contents.entries if slug in entry.models]
    return view_model(slug, tagged, names, found.manifests.get(slug))
