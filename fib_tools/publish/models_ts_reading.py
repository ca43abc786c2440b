"""Finding the list of models in a TypeScript file, and in it each entry with its id; what is not certain is refused."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from fib_tools.errors import FormatError
from fib_tools.publish.typescript import LINE_BREAK, Token, TokenKind, line_of, read_string, tokenize

__all__ = ["ModelsList", "WrittenEntry", "checksum", "read_models"]

_MARK = re.compile(r"//\s*fib pages: (?P<checksum>[0-9a-f]{16})\b.*")
"""The first thing in an entry that we wrote, with the checksum of all that follows."""
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_STATEMENTS = ("const", "let", "var", "import", "export", "function", "class", "enum", "interface", "declare", ";")


class WrittenEntry(NamedTuple):
    """One entry of the list."""

    id: str
    line: int
    start: int
    end: int
    checksum: str
    """As its mark says; empty for one without."""
    is_intact: bool
    """We wrote it, and nobody has changed it since, but for white space and commas."""
    definitions: tuple[str, ...]
    """The names that it links to."""


class ModelsList(NamedTuple):
    """Where the list is."""

    entries: tuple[WrittenEntry, ...]
    comma_at: int
    """Where a comma belongs, if none follows the last entry."""
    needs_comma: bool
    last: int
    """The end of the last token in the list, comments among them."""


def read_models(text: str, *, where: str) -> ModelsList:
    """Find `const models = [...]`, or `export default [...]`, and its entries.

    Raises:
        FormatError: there is no such list, or something in it cannot be read with certainty.
    """
    tokens = _find_list(text, where)
    elements: list[list[Token]] = [[]]
    depth: list[str] = []
    last = comma = next(tokens).end  # of the bracket that opens it
    for token in tokens:
        if not depth and token.text == "]":
            return _make_list(text, elements, where, (comma, last))
        last = token.end
        if token.text in _PAIRS:
            depth.append(_PAIRS[token.text])
        elif token.text in _PAIRS.values():
            if depth[-1:] != [token.text]:
                raise _fault(
                    text, token.start, where, f"a {token.text!r} that closes nothing", "see which bracket it is for"
                )
            depth.pop()
        if not depth and token.text == ",":
            elements.append([])
        elif token.kind is not TokenKind.COMMENT or depth:
            elements[-1].append(token)
            comma = token.end
    raise _fault(text, last, where, "the list of models has no end", "close it with ]")


def _make_list(text: str, elements: Sequence[list[Token]], where: str, ends: tuple[int, int]) -> ModelsList:
    comma, last = ends
    held = elements if elements[-1] else elements[:-1]
    for element in held:
        if not element:
            raise _fault(text, comma, where, "an empty place in the list", "remove the comma too many")
    breaks = [found.end() for found in LINE_BREAK.finditer(text)]
    entries = tuple(_read_entry(text, element, where, bisect_right(breaks, element[0].start) + 1) for element in held)
    return ModelsList(entries=entries, comma_at=comma, needs_comma=bool(elements[-1]), last=last)


def _find_list(text: str, where: str) -> Iterator[Token]:
    """Go to the bracket that opens the list; the tokens begin with it."""
    tokens = tokenize(text, where=where)
    before: list[str] = ["", ""]
    depth = 0
    for token in tokens:
        if token.kind is TokenKind.COMMENT:
            continue
        before = [*before[-1:], token.text]
        if not depth and before[0] in ("const", "let", "var") and token.text == "models":
            return _chain(_skip_annotation(tokens, text, where), tokens)
        if not depth and before == ["default", "["]:
            return _chain(token, tokens)
        depth += (token.text in _PAIRS) - (token.text in _PAIRS.values())
    what = "no list of models: neither `const models = [` nor `export default [`"
    raise _fault(text, len(text), where, what, "pass the file that has it")


def _chain(first: Token, rest: Iterator[Token]) -> Iterator[Token]:
    yield first
    yield from rest


def _skip_annotation(tokens: Iterator[Token], text: str, where: str) -> Token:
    """Go past a type to what is assigned, which has to be a list."""
    depth, is_assigned, at = 0, False, 0
    for token in tokens:
        at = token.start
        if token.kind is TokenKind.COMMENT:
            continue
        if is_assigned:
            if token.text == "[":
                return token
            break
        if not depth and token.text in _STATEMENTS:
            break
        is_assigned = not depth and token.text == "="
        depth += (token.text in _PAIRS) - (token.text in _PAIRS.values())
    raise _fault(text, at, where, "`models` is no list in brackets", "write its entries between [ and ] there")


def _read_entry(text: str, element: Sequence[Token], where: str, line: int) -> WrittenEntry:
    if element[0].text != "{" or element[-1].text != "}":
        raise _fault(text, element[0].start, where, "an entry that is no object in braces", _mend_entry(element))
    inside = list(element[1:-1])
    mark = _MARK.fullmatch(inside[0].text) if inside and inside[0].kind is TokenKind.COMMENT else None
    return WrittenEntry(
        id=_read_id(text, inside, where, line),
        line=line,
        start=element[0].start,
        end=element[-1].end,
        checksum=mark["checksum"] if mark else "",
        is_intact=mark is not None and mark["checksum"] == checksum(inside[1:]),
        definitions=tuple(_list_definitions(inside)),
    )


def _read_id(text: str, inside: Sequence[Token], where: str, line: int) -> str:
    """Read the id of an entry: a plain string, that nothing else in the entry can replace."""
    said: list[str | None] = []
    for key, value in _list_properties([token for token in inside if token.kind is not TokenKind.COMMENT]):
        is_plain = key.kind in (TokenKind.WORD, TokenKind.STRING, TokenKind.NUMBER)
        if not is_plain or not value or value[0].text != ":":
            what = "a property that is not `name: value`, so the entry's id is not certain"
            raise _fault(text, key.start, where, what, _mend_property(key, is_plain=is_plain))
        if (read_string(key) or key.text) == "id":
            said.append(read_string(value[1]) if len(value) == 2 else None)
    if len(said) != 1 or not said[0]:
        what = f"the entry at line {line} has no id that is a string"
        at = inside[0].start if inside else 0
        raise _fault(text, at, where, what, 'write it once, as id: "..." with nothing to fill in')
    return said[0]


def _list_properties(tokens: Sequence[Token]) -> Iterator[tuple[Token, list[Token]]]:
    """Cut what stands in braces at its commas: the first token of each property, and the others."""
    held: list[Token] = []
    depth = 0
    for token in tokens:
        if not depth and token.text == "," and token.kind is TokenKind.PUNCTUATION:
            if held:
                yield held[0], held[1:]
            held = []
            continue
        held.append(token)
        if token.kind is TokenKind.PUNCTUATION:
            depth += (token.text in _PAIRS) - (token.text in _PAIRS.values())
    if held:
        yield held[0], held[1:]


def _list_definitions(tokens: Sequence[Token]) -> Iterator[str]:
    """List the strings in the brackets after each `definitions:`."""
    said = [token for token in tokens if token.kind is not TokenKind.COMMENT]
    for index, token in enumerate(said[:-2]):
        if (read_string(token) or token.text) == "definitions" and said[index + 2].text == "[":
            names = (read_string(item) for item in takewhile(lambda item: item.text != "]", said[index + 3 :]))
            yield from (name for name in names if name is not None)


def checksum(tokens: Sequence[Token]) -> str:
    """Sum up an entry as it means, whatever its white space, quotes and last commas."""
    said: list[str] = []
    for token in tokens:
        if token.kind is TokenKind.PUNCTUATION and said and token.text in _PAIRS.values() and said[-1] == ",":
            said.pop()
        plain = read_string(token)
        said.append(token.text.strip() if plain is None else plain)
    while said and said[-1] == ",":
        said.pop()
    return hashlib.sha256("\0".join(said).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _mend_entry(element: Sequence[Token]) -> str:
    if element[0].text == "...":
        return "write out in its place the entries that it spreads"
    if element[0].text == "{":
        return "leave out what follows its last brace: what holds for all may stand behind the list, as `satisfies Model[]`"
    return "write the entry itself in its place, as { id: ... }"


def _mend_property(key: Token, *, is_plain: bool) -> str:
    if key.text == "...":
        return "write out in its place the properties that it spreads"
    if not is_plain:
        return "write the name itself, in quotes if need be"
    return f"write it as `{key.text}: value`"


def _fault(text: str, at: int, where: str, what: str, todo: str) -> FormatError:
    return FormatError(what, where=f"{where}, line {line_of(text, at)}", todo=todo)
