"""The first page: how much there is, of which models and kernel types, and where to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fib_tools.publish.markup import Html, tag
from fib_tools.publish.view.catalogue import Contents
from fib_tools.publish.view.cells import card, count, tiles
from fib_tools.publish.view.frame import Page, show_problems
from fib_tools.publish.view.model_tree import ModelView
from fib_tools.publish.view.models_page import show_model_cards
from fib_tools.publish.view.paths import INDEX, MODELS, definitions_of

__all__ = ["build_overview_page"]

_MOST_MODELS = 12


def build_overview_page(contents: Contents, models: Sequence[ModelView], *, subject: str, root: str) -> Page:
    """Build the first page."""
    shown = sorted(models, key=lambda model: -len(model.kernels))[:_MOST_MODELS]
    more = tag("p", tag("a", f"All {len(models)} models", href=MODELS)) if len(models) > len(shown) else Html("")
    body = [
        tag("h1", subject),
        tag("p", tag("code", root), class_="lead"),
        _tiles(contents, models),
        *show_problems("These cannot be read", contents.problems),
        tag("h2", "Models") if shown else Html(""),
        show_model_cards(shown, of=INDEX, heading="h3") if shown else Html(""),
        more,
        _op_types(contents),
    ]
    return Page(path=INDEX, title=subject, body=tuple(body), section=INDEX)


def _tiles(contents: Contents, models: Sequence[ModelView]) -> Html:
    entries = contents.entries
    verified = sum(entry.status == "verified" for entry in entries)
    served = sum(entry.workloads > 0 for entry in entries)
    measured = sum(entry.evaluations > 0 for entry in entries)
    authors = {at.author for entry in entries for at in entry.solutions}
    solutions = sum(len(entry.solutions) for entry in entries)
    op_types = len({entry.definition.op_type for entry in entries})
    return tiles(
        (
            ("Definitions", f"{len(entries):,}", f"{verified:,} verified, {count(op_types, 'op_type')}"),
            ("models", f"{len(models):,}", "tagged or onboarded"),
            ("Workloads", f"{sum(entry.workloads for entry in entries):,}", f"for {count(served, 'Definition')}"),
            ("Solutions", f"{solutions:,}", f"by {count(len(authors), 'author')}"),
            ("evaluations", f"{sum(e.evaluations for e in entries):,}", f"of {count(measured, 'Definition')}"),
        )
    )


def _op_types(contents: Contents) -> Html:
    counted = Counter(entry.definition.op_type for entry in contents.entries)
    most = max(counted.values(), default=1)
    items = (
        tag(
            "li",
            tag(
                "a",
                tag("span", name),
                tag(
                    "span", tag("span", style=f"width:{100 * number / most:.1f}%"), class_="bar c0", aria_hidden="true"
                ),
                tag("b", f"{number:,}"),
                href=definitions_of(name),
            ),
        )
        for name, number in counted.most_common()
    )
    return card("Kernel types", tag("ul", *items, class_="types")) if counted else Html("")
