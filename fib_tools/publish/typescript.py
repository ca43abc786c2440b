"""Reading TypeScript as far as a list of data goes: tokens with their places, so that the rest can be left as it is.

What cannot be told apart without a whole parser (a regular expression from a division) is refused, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from fib_tools.errors import FormatError

__all__ = ["LINE_BREAK", "Token", "TokenKind", "format_string", "line_of", "read_string", "tokenize"]

LINE_BREAK = re.compile(r"\r\n|\r|\n")
_SPACE = re.compile(r"[\s\ufeff]+")
_LINE_COMMENT = re.compile(r"//[^\n\r\u2028\u2029]*")
_BLOCK_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r"\"(?:[^\"\\\n\r]|\\(?:\r\n|.))*\"|'(?:[^'\\\n\r]|\\(?:\r\n|.))*'", re.DOTALL)
_WORD = re.compile(r"[^\W\d][\w$]*|[$#@][\w$]*")
_NUMBER = re.compile(r"\.?\d[\w.]*")
_TEMPLATE_PIECE = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:u\{(?P<point>[0-9a-fA-F]{1,6})\}|u(?P<unit>[0-9a-fA-F]{4})|x(?P<byte>[0-9a-fA-F]{2})|(?P<other>\r\n|.))",
    re.DOTALL,
)
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
_CONTINUED = ("\n", "\r", "\r\n", "\u2028", "\u2029")
_MOST_NESTED = 100


class TokenKind(str, Enum):
    """What a token is."""

    COMMENT = "comment"
    STRING = "string"
    TEMPLATE = "template"
    WORD = "word"
    NUMBER = "number"
    PUNCTUATION = "punctuation"


class Token(NamedTuple):
    """A piece of source that is no white space."""

    kind: TokenKind
    text: str
    start: int
    end: int


def tokenize(text: str, *, where: str) -> Iterator[Token]:
    """Cut a source into tokens, lazily: what comes after the last one asked for is not looked at.

    Raises:
        FormatError: a string, template or comment has no end, or a slash could begin a regular expression.
    """
    at = 0
    while at < len(text):
        space = _SPACE.match(text, at)
        if space is not None:
            at = space.end()
            continue
        token = _read_token(text, at, where)
        yield token
        at = token.end


def _read_token(text: str, at: int, where: str) -> Token:
    if text.startswith(("//", "/*"), at):
        return _match(_LINE_COMMENT if text[at + 1] == "/" else _BLOCK_COMMENT, TokenKind.COMMENT, text, at, where)
    if text[at] in "\"'":
        return _match(_STRING, TokenKind.STRING, text, at, where)
    if text[at] == "`":
        return Token(TokenKind.TEMPLATE, text[at : (end := _skip_template(text, at, where))], at, end)
    if text[at] == "/":
        raise FormatError(
            "a slash may begin a regular expression here or divide, which only a whole parser can tell",
            where=_place(text, at, where),
            todo="write a regular expression as new RegExp(...), and a quotient as the number it is, or import either from "
            "another file",
        )
    for pattern, kind in ((_WORD, TokenKind.WORD), (_NUMBER, TokenKind.NUMBER)):
        found = pattern.match(text, at)
        if found is not None:
            return Token(kind, found[0], at, found.end())
    length = 2 if text.startswith("=>", at) else 3 if text.startswith("...", at) else 1
    return Token(TokenKind.PUNCTUATION, text[at : at + length], at, at + length)


def _match(pattern: re.Pattern[str], kind: TokenKind, text: str, at: int, where: str) -> Token:
    found = pattern.match(text, at)
    if found is None:
        raise FormatError(f"a {kind.value} has no end", where=_place(text, at, where), todo="mend the file")
    return Token(kind, found[0], at, found.end())


def _skip_template(text: str, start: int, where: str, depth: int = 0) -> int:
    """Find the end of a template literal, whose `${...}` may hold anything, templates among it."""
    at = start + 1
    while depth < _MOST_NESTED:
        piece = _TEMPLATE_PIECE.match(text, at)
        at = piece.end() if piece else at
        if at >= len(text):
            break
        if text[at] == "`":
            return at + 1
        at = _skip_expression(text, at + 2, where, depth + 1)
    raise FormatError("a template has no end", where=_place(text, start, where), todo="mend the file")


def _skip_expression(text: str, start: int, where: str, depth: int) -> int:
    at, braces = start, 0
    while at < len(text):
        space = _SPACE.match(text, at)
        if space is not None:
            at = space.end()
        elif text[at] == "`":
            at = _skip_template(text, at, where, depth)
        else:
            token = _read_token(text, at, where)
            at = token.end
            if token.text == "}" and not braces:
                return at
            braces += (token.text == "{") - (token.text == "}")
    raise FormatError("a template has no end", where=_place(text, start, where), todo="mend the file")


def line_of(text: str, at: int) -> int:
    """Count lines from 1, as editors do."""
    return len(LINE_BREAK.findall(text, 0, at)) + 1


def _place(text: str, at: int, where: str) -> str:
    return f"{where}, line {line_of(text, at)}"


def read_string(token: Token) -> str | None:
    """Return what a string says; None for a template with something to fill in, and for what is no string."""
    if token.kind not in (TokenKind.STRING, TokenKind.TEMPLATE):
        return None
    inner = token.text[1:-1]
    if token.kind is TokenKind.TEMPLATE and re.search(r"(?<!\\)(?:\\\\)*\$\{", inner):
        return None
    said = _ESCAPE.sub(_unescape, inner)
    return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), said)


def _unescape(escape: re.Match[str]) -> str:
    code = escape["point"] or escape["unit"] or escape["byte"]
    if code is not None:
        return chr(min(int(code, 16), 0x10FFFF))
    return "" if escape["other"] in _CONTINUED else _SIMPLE.get(escape["other"], escape["other"])


def format_string(value: str) -> str:
    """Write a string in double quotes, in ASCII: what it holds cannot end it, a line, or a comment."""
    return json.dumps(value, ensure_ascii=True)
