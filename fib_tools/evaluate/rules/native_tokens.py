"""Tokens of C++ and CUDA text: enough to tell words, texts, assembly and includes apart; comments are dropped."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Token", "read_tokens"]

_SPLICE = re.compile(r"\\[ \t]*\r?\n")
_TEXT = r"""
      (?P<raw>(?:u8|[uUL])?R"(?P<fence>[^()\\\s]{0,16})\((?P<inside>.*?)\)(?P=fence)")
    | (?P<text>(?:u8|[uUL])?"(?P<body>(?:\\.|[^"\\\n])*)")
"""
_COMMENT_OR_TEXT = re.compile(
    rf"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z)) | {_TEXT} | (?P<digit>\d'\d)", re.DOTALL | re.VERBOSE
)
_TOKEN = re.compile(
    rf"""
      (?P<include>^[ \t]*(?:\#|%:)[ \t]*(?:include|include_next|import|embed)\b(?P<target>[^\n]*))
    | {_TEXT}
    | (?P<number>\.?\d(?:'?[\w.])*)
    | (?P<word>[A-Za-z_$]\w*)
    | (?P<space>\s+)
    | (?P<other>.)
    """,
    re.DOTALL | re.VERBOSE | re.MULTILINE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_ASSEMBLY = frozenset({"asm", "__asm", "__asm__"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A piece of code; neighbouring texts are one."""

    kind: str
    """`word`, `number`, `text`, `assembly` (a text inside asm), `include` (its target) or `other`."""
    text: str
    line: int


def read_tokens(source: str) -> list[Token]:
    """Cut C++ text into tokens, as a compiler would before the preprocessor runs."""
    spliced, splices = _splice(source)
    plain = _COMMENT_OR_TEXT.sub(_blank_comment, spliced)
    newlines = [match.start() for match in re.finditer(r"\n", plain)]
    tokens: list[Token] = []
    for match in _TOKEN.finditer(plain):
        line = 1 + bisect.bisect_left(newlines, match.start()) + bisect.bisect_right(splices, match.start())
        tokens += _read_token(match, line)
    return list(_mark_assembly(_join_texts(tokens)))


def _splice(source: str) -> tuple[str, list[int]]:
    """Join lines that end with a backslash; give where, in the joined text."""
    places: list[int] = []
    removed = 0
    for match in _SPLICE.finditer(source):
        places.append(match.start() - removed)
        removed += len(match.group())
    return _SPLICE.sub("", source), places


def _blank_comment(match: re.Match[str]) -> str:
    """Blank a comment character by character, so that every place stays where it is."""
    return re.sub(r"[^\n]", " ", match.group()) if match["comment"] else match.group()


def _read_token(match: re.Match[str], line: int) -> Iterator[Token]:
    kind = match.lastgroup
    if match["include"] is not None:
        yield Token(kind="include", text=match["target"].strip(), line=line)
    elif match["raw"] is not None:
        yield Token(kind="text", text=match["inside"], line=line)
    elif match["text"] is not None:
        yield Token(kind="text", text=_ESCAPE.sub(_unescape, match["body"]), line=line)
    elif kind in {"word", "number", "other"}:
        yield Token(kind=kind, text=match.group(), line=line)


def _unescape(match: re.Match[str]) -> str:
    hexadecimal, octal, plain = match.groups()
    if hexadecimal:
        return chr(int(hexadecimal, 16))
    if octal:
        return chr(int(octal, 8))
    return {"n": "\n", "t": "\t", "r": "\r"}.get(plain, plain)


def _join_texts(tokens: list[Token]) -> Iterator[Token]:
    waiting: Token | None = None
    for token in tokens:
        if waiting is not None and token.kind == "text":
            waiting = Token(kind="text", text=waiting.text + token.text, line=waiting.line)
            continue
        if waiting is not None:
            yield waiting
        waiting = token if token.kind == "text" else None
        if waiting is None:
            yield token
    if waiting is not None:
        yield waiting


def _mark_assembly(tokens: Iterator[Token]) -> Iterator[Token]:
    depth = 0
    is_assembly = False
    for token in tokens:
        if token.kind == "word" and token.text in _ASSEMBLY:
            is_assembly, depth = True, 0
        elif is_assembly and token.text in {"(", ")"} and token.kind == "other":
            depth += 1 if token.text == "(" else -1
            is_assembly = depth > 0
        if is_assembly and token.kind == "text":
            yield Token(kind="assembly", text=token.text, line=token.line)
        else:
            yield token
