"""The coverage document: for each model, how far each of its kernels has come; written parts stand between marks.

What lies outside of the marks is people's, and is never changed. What people wrote by hand is read: a name in a model's
section that none of its kernels can have, however it is served, is reported.

    <!-- coverage:kimi-k2 -->
    | Definition | op_type | TP | EP | page size | status |
    ...
    <!-- /coverage:kimi-k2 -->
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

from fib_tools.errors import FormatError
from fib_tools.model.base import Model, NonEmpty

__all__ = [
    "CoverageStatus",
    "CoveredKernel",
    "CoveredModel",
    "CoveredWay",
    "Discovered",
    "DiscoveredModel",
    "WrongName",
    "find_stem",
    "find_wrong_names",
    "list_hand_written",
    "list_names",
    "list_parts",
    "update_document",
]

CoverageStatus = Literal["workloads", "definition", "missing"]
"""What the dataset has of a kernel: its Definition with Workloads, the Definition alone, or nothing."""

_MARK = re.compile(r"<!-- (?P<end>/?)coverage:(?P<name>[\w.-]+) -->")
_HEADING = re.compile(r"#{1,6}\s+(?P<title>.+?)\s*#*\s*$")
_NAME = re.compile(r"(?<![\w./-])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w/-])")
_SIZE = re.compile(r"_(?!(?:kv)?(?:mx|nv)?(?:fp|bf|int)\d)(?:[a-z]+)?\d+(?=_|$)")
"""A letter or word with a number; an element type is none."""
_WORDS: Mapping[CoverageStatus, str] = {
    "workloads": "Definition and Workloads",
    "definition": "Definition only",
    "missing": "missing",
}
_OVERVIEW = "overview"
_DISCOVERED = "discovered"
_INTRODUCTION = "# Model coverage\n\nWhat lies between the marks is written by `fib coverage`; the rest is yours.\n"


class CoveredKernel(Model):
    """One kernel of a model."""

    name: str
    """Of its Definition, as the dataset has it."""
    op_type: str
    tp: tuple[int, ...]
    ep: tuple[int, ...]
    page_sizes: tuple[int, ...]
    status: CoverageStatus
    workloads: int = 0
    flashinfer: str = ""
    """`template`: it has the kernel and a trace template; `fi_supported`: the kernel only; `fi_missing`: neither."""
    sglang: str = ""
    """Whether SGLang calls FlashInfer's kernel."""


class CoveredWay(Model):
    """One way of serving a model."""

    title: NonEmpty
    """Such as `tp8 ep4 on H200, B200`."""
    kernels: tuple[str, ...]
    """Their names."""


class CoveredModel(Model):
    """How far a model is covered."""

    model: str
    """Its slug, which marks its part of the document."""
    title: str
    """Its repository, or the slug."""
    serving: tuple[str, ...]
    kernels: tuple[CoveredKernel, ...]
    ways: tuple[CoveredWay, ...] = ()
    sources: tuple[str, ...] = ()
    """By which versions its kernels and statuses are: `flashinfer 0.7.2`."""
    unmapped: tuple[tuple[str, str], ...]
    """What no kernel type covers or could not be drawn up, and why."""

    def count(self, way: CoveredWay | None = None) -> Counter[CoverageStatus]:
        """Count kernels by status, those of one way of serving if one is given."""
        return Counter(kernel.status for kernel in self.kernels if way is None or kernel.name in way.kernels)


class DiscoveredModel(Model):
    """A model that could be onboarded."""

    model: NonEmpty
    source: NonEmpty
    evidence: str
    config_bundled: bool
    onboarded: bool


class Discovered(Model):
    """What is new, and what was looked at for it."""

    models: tuple[DiscoveredModel, ...]
    basis: tuple[str, ...]


class WrongName(Model):
    """A name in a hand-written part that contradicts the model's config."""

    model: str
    line: int
    name: str
    reason: str


def list_parts(text: str) -> tuple[str, ...]:
    """List the models that have a part in the document, by slug.

    Raises:
        FormatError: a mark has no end, or comes twice.
    """
    return tuple(name for name in _find_parts(text) if name not in (_OVERVIEW, _DISCOVERED))


def update_document(text: str, models: Sequence[CoveredModel], discovered: Discovered | None = None) -> str:
    """Write the parts of these models and the overview anew; those of other models stay, and new ones come last.

    So does the list of new models; None leaves it as it is.

    Raises:
        FormatError: a mark has no end, or comes twice.
    """
    spans = _find_parts(text)
    rows = {**_read_overview(text, spans), **{model.model: _overview_row(model) for model in models}}
    bodies = {_OVERVIEW: _render_overview(rows), **{model.model: _render(model) for model in models}}
    if discovered is not None:
        bodies[_DISCOVERED] = _render_discovered(discovered)
    pieces, at = [], 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if name in bodies:
            pieces += [text[at:start], "\n", bodies.pop(name), "\n"]
            at = end
    updated = "".join([*pieces, text[at:]]) or _INTRODUCTION
    titles = {_DISCOVERED: "New models", **{model.model: model.title for model in models}}
    for name, body in bodies.items():
        heading = f"## {titles[name]}\n\n" if name in titles else ""
        updated = f"{updated.rstrip()}\n\n{heading}<!-- coverage:{name} -->\n{body}\n<!-- /coverage:{name} -->\n"
    return updated


def _find_parts(text: str) -> dict[str, tuple[int, int]]:
    """Find what lies between the marks of each name."""
    found: dict[str, tuple[int, int]] = {}
    open_name, start = "", 0
    for mark in _MARK.finditer(text):
        name, where = mark["name"], f"line {text.count(chr(10), 0, mark.start()) + 1}"
        if not mark["end"]:
            if open_name or name in found:
                what = f"inside of coverage:{open_name}" if open_name else "a second time"
                raise FormatError(f"coverage:{name} begins {what}", where=where, todo="mend the marks by hand")
            open_name, start = name, mark.end()
        elif name != open_name:
            raise FormatError(f"coverage:{name} ends and has not begun", where=where, todo="mend the marks by hand")
        else:
            found[name], open_name = (start, mark.start()), ""
    if open_name:
        raise FormatError(f"coverage:{open_name} has no end", todo="mend the marks by hand")
    return found


def _read_overview(text: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Read the overview's rows of models, by slug."""
    if _OVERVIEW not in spans:
        return {}
    start, end = spans[_OVERVIEW]
    rows = [line for line in text[start:end].splitlines() if line.startswith("| [")]
    return {match["slug"]: row for row in rows if (match := re.search(r"\]\(#(?P<slug>[^)]+)\)", row))}


def _overview_row(model: CoveredModel) -> str:
    counts = model.count()
    numbers = (sum(counts.values()), *(counts[status] for status in _WORDS), len(model.unmapped))
    return f"| [{_cell(model.title)}](#{model.model}) | {' | '.join(map(str, numbers))} |"


def _render_overview(rows: Mapping[str, str]) -> str:
    head = ("Model", "kernels", *(word for word in _WORDS.values()), "unmapped")
    return "\n".join([*_table_head(head), *(rows[name] for name in sorted(rows))])


def _render(model: CoveredModel) -> str:
    lines = [f'<a id="{model.model}"></a>', "", "| served with | kernels | " + " | ".join(_WORDS.values()) + " |"]
    lines.append("| --- " * (2 + len(_WORDS)) + "|")
    for way in model.ways:
        counts = model.count(way)
        numbers = (sum(counts.values()), *(counts[status] for status in _WORDS))
        lines.append(f"| {_cell(way.title)} | {' | '.join(map(str, numbers))} |")
    lines += ["", *(f"- {_cell(source)}" for source in model.serving), ""]
    lines += [f"By {_cell(', '.join(model.sources))}.", ""] if model.sources else []
    lines += _table_head(("Definition", "op_type", "TP", "EP", "page size", "status", "FlashInfer", "SGLang"))
    lines += [_row(kernel) for kernel in model.kernels]
    if model.unmapped:
        lines += ["", *_table_head(("Unmapped", "why"))]
        lines += [f"| {_cell(subject)} | {_cell(reason)} |" for subject, reason in model.unmapped]
    return "\n".join(lines)


def _render_discovered(discovered: Discovered) -> str:
    lines = [*(f"- {_cell(line)}" for line in discovered.basis), ""]
    lines += _table_head(("Model", "from", "evidence", "config", "onboarded"))
    for item in discovered.models:
        known = ("bundled" if item.config_bundled else "on the Hub", "yes" if item.onboarded else "no")
        lines.append(f"| {' | '.join(map(_cell, (item.model, item.source, item.evidence, *known)))} |")
    return "\n".join(lines)


def _table_head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]


def _row(kernel: CoveredKernel) -> str:
    sizes = (", ".join(map(str, numbers)) for numbers in (kernel.tp, kernel.ep, kernel.page_sizes))
    status = _WORDS[kernel.status] + (f" ({kernel.workloads})" if kernel.workloads else "")
    return f"| `{kernel.name}` | {kernel.op_type} | {' | '.join(sizes)} | {status} | {kernel.flashinfer} | {kernel.sglang} |"


def _cell(text: str) -> str:
    """Keep text from outside within its cell, and from being markup."""
    words = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", words)


def list_hand_written(text: str) -> Iterator[tuple[int, str, str]]:
    """List the lines outside of the marks: their number, the heading they are under, and the text."""
    spans = sorted(_find_parts(text).values())
    heading, at = "", 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        is_ours = any(start <= at < end for start, end in spans)
        at += len(line)
        if match := _HEADING.match(line):
            heading = match["title"]
        elif not is_ours and not _MARK.search(line):
            yield number, heading, line


def list_names(line: str) -> tuple[str, ...]:
    """List what could be names of Definitions in a line, each once."""
    return tuple(dict.fromkeys(_NAME.findall(line)))


def find_stem(name: str) -> str:
    """Cut the sizes off a Definition's name: `gqa_paged_decode_h32_kv8_d128_ps64` is a `gqa_paged_decode`."""
    return _SIZE.sub("", name)


def find_wrong_names(
    model: str, lines: Iterable[tuple[int, str]], *, possible: Collection[str], stems: Collection[str]
) -> Iterator[WrongName]:
    """Find names that none of a model's kernels can have; `stems` are those of all kernels that there are.

    A name of a stem that nobody knows may be a Definition written by hand, and is not judged.
    """
    own = sorted({find_stem(name) for name in possible})
    for number, line in lines:
        for name in list_names(line):
            stem = find_stem(name)
            if name in possible or stem == name or stem not in stems:
                continue
            alike = [each for each in possible if find_stem(each) == stem]
            nearest = get_close_matches(name, sorted(alike), n=1, cutoff=0.0)
            reason = f"by its config it is {nearest[0]}" if nearest else f"the model has no {stem} by its config"
            close = [] if nearest else get_close_matches(stem, own, n=1)
            reason += f", but {close[0]}" if close else ""
            yield WrongName(model=model, line=number, name=name, reason=reason)
