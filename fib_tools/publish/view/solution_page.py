"""The page of one Solution: how it is built, and its sources."""

from __future__ import annotations

from fib_tools.dataset.layout import Location
from fib_tools.model.solution import Solution
from fib_tools.publish.markup import breakable, tag
from fib_tools.publish.view.cells import card, count, fact_list
from fib_tools.publish.view.frame import Page, crumbs
from fib_tools.publish.view.paths import DEFINITIONS, definition_path, link, solution_path
from fib_tools.publish.view.source_code import show_source

__all__ = ["build_solution_page"]


def build_solution_page(at: Location, solution: Solution) -> Page:
    """Build the page of a Solution."""
    path = solution_path(at)
    home = definition_path(at.op_type, at.definition)
    spec = solution.spec
    facts = [
        ("language", spec.language.value),
        ("made for", ", ".join(spec.target_hardware)),
        ("entry point", tag("code", spec.entry_point)),
        ("outputs", "written in place" if spec.destination_passing_style else "returned"),
        ("binding", spec.binding.value if spec.binding else ""),
        ("needs", ", ".join(spec.dependencies)),
        ("hash", tag("code", solution.hash[:16])),
    ]
    body = [
        crumbs(("Definitions", DEFINITIONS), (at.definition, home), (solution.author, ""), of=path),
        tag(
            "div",
            tag("h1", breakable(solution.name), class_="name"),
            tag("p", solution.description or f"By {solution.author}.", class_="lead"),
            fact_list(facts),
            tag("p", tag("a", "Its results", href=f"{link(home, of=path)}#results")),
            class_="top",
        ),
        *(
            card(
                source.path,
                show_source(source.content, label=source.path, file=source.path),
                aside=count(source.content.count("\n"), "line"),
            )
            for source in solution.sources
        ),
    ]
    return Page(path=path, title=f"{solution.author}/{solution.name}", body=tuple(body), section=DEFINITIONS)
