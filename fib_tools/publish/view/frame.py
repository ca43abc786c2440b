"""What every page of the site has: head, policy, navigation, and the way back to the first page.

Everything that a dataset says comes from strangers. It is escaped where it is written (`markup.tag`), pages run the
site's own scripts alone, and these write text only.
"""

from __future__ import annotations

from dataclasses import dataclass

from fib_tools.publish.markup import Html, join, tag
from fib_tools.publish.report_marks import define_shapes
from fib_tools.publish.view.paths import DEFINITIONS, INDEX, LEADERBOARD, MODELS, TIMELINES, link

__all__ = ["ASSETS", "POLICY", "Page", "crumbs", "format_site_page", "show_problems"]

ASSETS = ("page.css", "view.css", "page.js", "view.js", "icon.svg")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Attributes of style place marks in plots; no sheet and no script but the site's own is taken."""

_NAVIGATION = (
    ("Overview", INDEX),
    ("Models", MODELS),
    ("Definitions", DEFINITIONS),
    ("Leaderboard", LEADERBOARD),
    ("Timelines", TIMELINES),
)
_MOST_PROBLEMS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The content of a page, before it is framed."""

    path: str
    title: str
    body: tuple[Html, ...]
    section: str = ""
    """The path of the entry of the navigation that it belongs to."""
    data: str = ""
    """The path of what its figures open."""
    stamp: str = ""
    """What the data has to say of itself, to be those of the page."""


def format_site_page(page: Page, *, subject: str) -> str:
    """Write a page of the site of a dataset."""
    at = page.path
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{page.title} · {subject}" if page.title != subject else subject),
        tag("link", rel="icon", href=link("assets/icon.svg", of=at), type="image/svg+xml"),
        *(tag("link", rel="stylesheet", href=link(f"assets/{name}", of=at)) for name in ASSETS if _is(name, "css")),
        *(tag("script", src=link(f"assets/{name}", of=at), defer=True) for name in ASSETS if _is(name, "js")),
    ]
    body = [
        tag("a", "Skip to the content", href="#main", class_="skip"),
        define_shapes(),
        _header(page, subject),
        tag("main", *page.body, id="main", tabindex="-1"),
    ]
    if page.data:
        source = link(page.data, of=at)
        body.append(
            tag("dialog", id="evidence", aria_labelledby="evidence-title", data_source=source, data_stamp=page.stamp)
        )
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body, class_='site'), lang='en')}\n"


def _is(name: str, suffix: str) -> bool:
    return name.endswith(f".{suffix}")


def _header(page: Page, subject: str) -> Html:
    links = (
        tag(
            "a",
            name,
            href=link(path, of=page.path),
            aria_current="page" if path == page.path else "true" if path == page.section else None,
        )
        for name, path in _NAVIGATION
    )
    brand = tag("a", tag("b", "fib"), tag("span", subject), href=link(INDEX, of=page.path), class_="brand")
    return tag("header", brand, tag("nav", *links, aria_label="Pages"), class_="topbar")


def crumbs(*steps: tuple[str, str], of: str) -> Html:
    """Write the way down to a page: names, and paths of those that are pages."""
    items = (tag("li", tag("a", name, href=link(path, of=of)) if path else tag("span", name)) for name, path in steps)
    return tag("nav", tag("ol", join(items)), class_="crumbs", aria_label="Where this page is")


def show_problems(title: str, problems: tuple[str, ...]) -> list[Html]:
    """List what could not be read; nothing where all could."""
    if not problems:
        return []
    more = len(problems) - _MOST_PROBLEMS
    items = [tag("li", text) for text in problems[:_MOST_PROBLEMS]]
    items += [tag("li", f"and {more} more; fib validate lists all")] if more > 0 else []
    return [tag("section", tag("h2", title), tag("ul", *items), class_="card alarm")]
