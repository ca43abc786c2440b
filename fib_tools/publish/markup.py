"""HTML whose escaping cannot be forgotten: text is escaped unless it was made by `tag`.

>>> tag("b", "1 < 2", class_="x")
'<b class="x">1 &lt; 2</b>'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any

__all__ = ["Html", "breakable", "embed_json", "join", "tag"]

_VOID = frozenset({"br", "circle", "input", "line", "link", "meta", "path", "polyline", "rect", "use", "wbr"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | bool | None) -> Html:
    """Write an element; attributes that are None or False are left out, `class_` is class, `aria_sort` aria-sort."""
    written = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(
            f"<{name}{written}/>" if name not in {"br", "input", "link", "meta", "wbr"} else f"<{name}{written}>"
        )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str], separator: str = "") -> Html:
    """Put pieces side by side; those that are no markup are escaped."""
    return Html(separator.join(child if isinstance(child, Html) else escape(child) for child in children))


def breakable(text: str) -> Html:
    """Write a name that may go on in the next line after `_` and `/`, and nowhere else while there is room."""
    return Html(re.sub(r"([_/])(?=[^_/])", r"\1<wbr>", escape(text)))


def embed_json(value: Any) -> Html:
    """Write JSON that can stand in a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if key != "viewBox" else key
