"""Small pieces that several pages share: tables that a phone shows as blocks, chips, counts, bars of parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fib_tools.publish.markup import Html, join, tag

__all__ = ["card", "chips", "count", "fact_list", "list_table", "parts_bar", "status_chip", "tiles"]


def card(title: str, *content: str, anchor: str | None = None, note: str = "", aside: str = "") -> Html:
    """Frame a part of the page under a heading; `aside` stands at the heading's right."""
    head = tag("div", tag("h2", title), *([tag("span", aside, class_="dim")] if aside else []), class_="head")
    said = [tag("p", note, class_="dim")] if note else []
    return tag("section", head, *said, *content, class_="card", id=anchor)


def list_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> Html:
    """Write a table that is read as it stands; on a phone each row is a block whose parts say what they are."""
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = (
        tag(
            "tr",
            *(
                tag("td" if place else "th", cell, scope=None if place else "row", data_of=columns[place])
                for place, cell in enumerate(row)
                if cell or place
            ),
        )
        for row in rows
    )
    return tag("table", tag("thead", head), tag("tbody", *body), class_="list", aria_label=label)


def chips(items: Iterable[str], *, classes: str = "chip") -> Html:
    """Write words side by side."""
    return join((tag("span", item, class_=classes) for item in items), " ")


def status_chip(status: str) -> Html:
    """Say whether a reference was held against the real kernel."""
    words = {"verified": "good", "unverified": "plain"}
    return tag("span", status or "no status", class_=f"chip {words.get(status, 'plain')}")


def count(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def tiles(items: Iterable[tuple[str, str, str]]) -> Html:
    """Show a few figures large: what, how much, and what to know of it."""
    return tag(
        "div",
        *(
            tag("div", tag("span", name), tag("strong", value), tag("span", note, class_="dim"), class_="tile")
            for name, value, note in items
        ),
        class_="tiles",
    )


def fact_list(pairs: Iterable[tuple[str, str]]) -> Html:
    """List facts by name; those without a value are left out."""
    items = (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value)
    return tag("dl", *items, class_="facts")


def parts_bar(parts: Sequence[tuple[str, int, str]], *, label: str) -> Html:
    """Draw what a whole is made of: name, number and class of each part; the legend says the same in words."""
    whole = sum(number for _, number, _ in parts) or 1
    bars = (
        tag("span", style=f"width:{100 * number / whole:.2f}%", class_=classes)
        for _, number, classes in parts
        if number
    )
    keys = (
        tag("li", tag("i", class_=f"dot {classes}"), tag("span", f"{number:,} {name}"))
        for name, number, classes in parts
        if number
    )
    return join(
        [
            tag("div", *bars, class_="parts", role="img", aria_label=label),
            tag("ul", *keys, class_="legend small"),
        ]
    )
