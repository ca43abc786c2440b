"""The list of all Definitions, to be searched, filtered and sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fib_tools.publish.markup import Html, breakable, join, tag
from fib_tools.publish.report_cells import Cell, make_table
from fib_tools.publish.report_scales import NOTHING
from fib_tools.publish.view.catalogue import Contents, Entry
from fib_tools.publish.view.frame import Page, show_problems
from fib_tools.publish.view.paths import DEFINITIONS, definition_path

__all__ = ["build_definitions_page"]

_COLUMNS = (
    ("Definition", "name"),
    ("op_type", "op"),
    ("models", "models"),
    ("Workloads", "n"),
    ("Solutions", "n"),
    ("evaluations", "n"),
    ("status", "status"),
)
_STATES = (
    ("measured", "with evaluations"),
    ("unmeasured", "without evaluations"),
    ("workloads", "with Workloads"),
    ("bare", "without Workloads"),
    ("verified", "verified"),
    ("unverified", "not verified"),
)


def build_definitions_page(contents: Contents) -> Page:
    """Build the list of all Definitions."""
    entries = contents.entries
    body = [
        tag("h1", "Definitions"),
        _filters(entries),
        tag("p", f"{len(entries):,} Definitions", class_="found", role="status", data_all=str(len(entries))),
        make_table(_COLUMNS, map(_row, entries), label="Definitions", is_stack=True)
        if entries
        else tag("p", "None yet: fib onboard MODEL writes those of a model.", class_="card dim"),
        *show_problems("These cannot be read", contents.problems),
    ]
    return Page(path=DEFINITIONS, title="Definitions", body=tuple(body), section=DEFINITIONS)


def _filters(entries: Sequence[Entry]) -> Html:
    op_types = Counter(entry.definition.op_type for entry in entries)
    models = Counter(model for entry in entries for model in entry.models)
    search = tag(
        "input",
        type="search",
        name="search",
        placeholder="Search names, APIs, sizes   /",
        aria_label="Search Definitions",
        autocomplete="off",
        spellcheck="false",
    )
    return tag(
        "div",
        search,
        _choice("op_type", "every op_type", ((name, f"{name} ({op_types[name]})") for name in sorted(op_types))),
        _choice("model", "every model", ((name, f"{name} ({models[name]})") for name in sorted(models))),
        _choice("state", "every state", _STATES),
        class_="filters",
        role="search",
    )


def _choice(name: str, all_of_them: str, options: Iterable[tuple[str, str]]) -> Html:
    items = (tag("option", text, value=value) for value, text in options)
    return tag("select", tag("option", all_of_them, value=""), *items, name=name, aria_label=name.replace("_", " "))


def _row(entry: Entry) -> Sequence[Cell]:
    definition = entry.definition
    path = definition_path(entry.at.op_type, entry.at.definition)
    hidden = " ".join(text for text in definition.tags if text.startswith(("fi_api:", "fi_name:")))
    name = join(
        [
            tag("a", breakable(definition.name), href=path, data_words=hidden or None),
            tag("span", definition.description or "", class_="what"),
        ]
    )
    models = join((tag("span", slug, class_="chip") for slug in entry.models), " ")
    numbers = (entry.workloads, entry.solutions and len(entry.solutions), entry.evaluations)
    return (
        (name, definition.name),
        (definition.op_type, definition.op_type),
        (models, " ".join(entry.models)),
        *((f"{number:,}" if number else tag("span", NOTHING, class_="dim"), int(number or 0)) for number in numbers),
        (tag("span", entry.status or NOTHING, class_="good" if entry.status == "verified" else "dim"), entry.status),
    )
