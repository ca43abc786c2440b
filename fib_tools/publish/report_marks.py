"""Which colour and shape stands for whom, the same all over a page; colours come from the style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fib_tools.evaluate.report.report_schema import DefinitionReport, DeviceReport
from fib_tools.model.solution import BASELINE
from fib_tools.publish.markup import Html, breakable, join, tag

__all__ = ["Marks", "define_shapes", "legend"]

_COLOURS = 8
_OUTLINES = (
    tag("circle", r="4.4"),
    tag("rect", x="-3.9", y="-3.9", width="7.8", height="7.8", rx="0.8"),
    tag("path", d="M0 -5 L4.7 3.6 L-4.7 3.6 Z"),
    tag("path", d="M0 -5.4 L5.4 0 L0 5.4 L-5.4 0 Z"),
    tag("path", d="M0 5 L4.7 -3.6 L-4.7 -3.6 Z"),
    tag("path", d="M-1.7 -5 H1.7 V-1.7 H5 V1.7 H1.7 V5 H-1.7 V1.7 H-5 V-1.7 H-1.7 Z"),
)


def define_shapes() -> Html:
    """Define the outlines once, for every mark of the page."""
    symbols = (tag("symbol", outline, id=f"s{place}", viewBox="-6 -6 12 12") for place, outline in enumerate(_OUTLINES))
    return tag("svg", *symbols, class_="defs", aria_hidden="true")


class Marks:
    """The colours of a device's authors, and the shapes of their Solutions."""

    def __init__(self, device: DeviceReport, definitions: Iterable[DefinitionReport]) -> None:
        authors = [standing.author for standing in device.leaderboard if standing.author != BASELINE]
        self._colours = {author: min(place, _COLOURS) for place, author in enumerate(authors)}
        self._shapes = {
            (report.definition, solution.author, solution.solution): shape % len(_OUTLINES)
            for report in definitions
            for author in {solution.author for solution in report.solutions}
            for shape, solution in enumerate(
                sorted((s for s in report.solutions if s.author == author), key=lambda s: s.solution)
            )
        }

    def colour(self, author: str) -> str:
        """Name the class of an author's colour."""
        return "cb" if author == BASELINE else f"c{self._colours.get(author, _COLOURS)}"

    def mark(
        self, author: str, solution: str = "", definition: str = "", *, at: Sequence[float] | None = None, **more: str
    ) -> Html:
        """Draw the mark of a Solution, or of its author; `at` is its place in percent from the left and from the top."""
        shape = self._shapes.get((definition, author, solution), 0)
        classes = f"mk {self.colour(author)}"
        style = (
            None
            if at is None
            else ";".join(f"{side}:{value:.2f}%" for side, value in zip(("left", "top"), at, strict=False))
        )
        return tag("svg", tag("use", href=f"#s{shape}"), class_=classes, style=style, aria_hidden="true", **more)

    def label(self, author: str, solution: str = "", definition: str = "") -> Html:
        """Write a name with its mark before it."""
        name = f"{author or 'unknown'}/{solution}" if solution else author or "unknown"
        return tag("span", self.mark(author, solution, definition), tag("span", breakable(name)), class_="who")


def legend(items: Iterable[Html]) -> Html:
    """List what the marks of a plot stand for."""
    return tag("ul", join(tag("li", item) for item in items), class_="legend")
