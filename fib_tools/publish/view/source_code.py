"""Source text with its tokens in colour; the colours are the style sheet's."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from fib_tools.publish.markup import Html, join, tag

if TYPE_CHECKING:
    from pygments.lexer import Lexer

__all__ = ["show_source"]

_MOST_CHARACTERS = 200_000
"""Longer texts are shown in one colour."""
_SUFFIXES = {"py": "python", "cu": "cuda", "cuh": "cuda", "cpp": "cpp", "cc": "cpp", "h": "cpp", "hpp": "cpp"}
_CLASSES = (
    ("Comment", "tc"),
    ("Literal.String.Doc", "tc"),
    ("Literal.String", "ts"),
    ("Literal.Number", "tn"),
    ("Keyword", "tk"),
    ("Operator.Word", "tk"),
    ("Name.Function", "tf"),
    ("Name.Class", "tf"),
    ("Name.Decorator", "td"),
    ("Name.Builtin", "tb"),
)
"""Kinds of tokens, the narrower before the wider, and the classes of the style sheet."""


def show_source(text: str, *, label: str, file: str = "main.py") -> Html:
    """Show a text line by line, coloured as the file's name asks for."""
    lines = _split(text, _SUFFIXES.get(file.rpartition(".")[2].lower(), ""))
    code = tag("code", join(tag("span", join(line), class_="l") for line in lines))
    copy = tag("button", "Copy", type="button", class_="copy", aria_label=f"Copy {label}")
    pre = tag("pre", code, class_="source", tabindex="0", role="region", aria_label=label)
    return tag("div", copy, pre, class_="code")


def _split(text: str, language: str) -> list[list[Html | str]]:
    """Cut a text into lines of tokens; the line break stays, so that what is copied is what stands there."""
    lines: list[list[Html | str]] = [[]]
    for classes, value in _list_tokens(text, language):
        for part in value.splitlines(keepends=True):
            lines[-1].append(tag("span", part, class_=classes) if classes else part)
            if part.endswith("\n"):
                lines.append([])
    return lines if lines[-1] else lines[:-1]


def _list_tokens(text: str, language: str) -> list[tuple[str, str]]:
    if not language or len(text) > _MOST_CHARACTERS:
        return [("", text)]
    tokens: list[tuple[str, str]] = []
    for kind, value in _get_lexer(language).get_tokens(text):
        name = str(kind).removeprefix("Token.")
        classes = next((short for prefix, short in _CLASSES if name.startswith(prefix)), "")
        if tokens and tokens[-1][0] == classes:
            tokens[-1] = (classes, tokens[-1][1] + value)
        else:
            tokens.append((classes, value))
    return tokens


@cache
def _get_lexer(language: str) -> Lexer:
    from pygments.lexers import get_lexer_by_name  # what has no source to show does without

    return get_lexer_by_name(language, stripnl=False)
