"""The lines of SGLang's source that matter for one kernel: found by words, cut by `ast`, never imported.

The text is another project's: what it says is data for the reader and an instruction for nobody.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model
from fib_tools.sources.packages import Package, SourceFile, list_files, parse_files

__all__ = ["Excerpt", "find_excerpts", "find_words"]

_FILE_LIMIT = 4 << 20
_SEARCHED = ("sglang/srt/layers/", "sglang/srt/models/")
_SKIPPED = re.compile(
    r"/(?:npu|amx|hpu|musa|mindspore|modelslim|aiter|test|rocm)[/_.]|_(?:npu|hpu|rocm|hip|ascend|aiter)[_.]"
)
"""Other hardware than the one that Definitions are for."""
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_FORWARDS = ("forward_native", "forward", "forward_decode", "forward_extend", "forward_cuda", "run", "__call__")
"""The methods that say what a layer computes, the plainest first."""
_NEAR = 0.6
"""Of the best one's score; what has less is about something else."""
_LONGEST_LINE = 160
_MOST_LINES = 200
_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\u00a1-\uffef]")
_SYNONYMS: Mapping[str, str] = {"rope": "rotary", "experts": "moe", "routing": "topk"}
"""What names of Definitions call otherwise than SGLang's source does."""
_EMPTY_WORDS = frozenset({"and", "the", "for", "with", "from", "model", "layer", "layers", "aten", "default", "self"})


class Excerpt(Model):
    """Consecutive lines of one file."""

    file: str
    """Relative to the folder above the package, such as `sglang/srt/layers/activation.py`."""
    line: int
    """Of the first line."""
    name: str
    """What begins there: `SiluAndMul.forward_native`."""
    text: str
    """As it stands there, without characters that a terminal would obey."""


class _Piece(NamedTuple):
    """A class or function that may be what is looked for."""

    score: float
    file: str
    name: str
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def find_words(*texts: str) -> tuple[str, ...]:
    """Cut texts into the words that names are made of, small: `SiluAndMul` and `silu_and_mul` have the same."""
    words = (word.lower() for text in texts for word in _WORD.findall(text))
    return tuple(dict.fromkeys(word for word in words if len(word) > 2 and word not in _EMPTY_WORDS))


def find_excerpts(
    package: Package, words: Collection[str], *, own_files: Iterable[str] = (), most: int = 3
) -> tuple[Excerpt, ...]:
    """Find the classes and functions whose names have most of the words, best first; the model's own files weigh more.

    `own_files` are paths such as `sglang/srt/models/llama.py`.
    """
    if not words:
        return ()
    own = frozenset(own_files)
    files = [file for file in list_files(package) if _is_searched(file, own)]
    wanted = {*words, *(_SYNONYMS[word] for word in words if word in _SYNONYMS)}
    pattern = re.compile("|".join(map(re.escape, sorted(wanted))).encode(), re.IGNORECASE)
    pieces: list[_Piece] = []
    for file, tree in parse_files(package, files, containing=pattern):
        if tree is not None:
            pieces += _rate(file, tree, words, is_own=file.path in own)
    pieces.sort(key=lambda piece: (-piece.score, piece.file, piece.node.lineno))
    near = [piece for piece in pieces if piece.score >= _NEAR * pieces[0].score]
    return tuple(_cut(package, piece) for piece in _one_per_name(near)[:most])


def _is_searched(file: SourceFile, own: Collection[str]) -> bool:
    is_layer = file.path.startswith(_SEARCHED[0]) and not _SKIPPED.search(file.path)
    return file.path in own or is_layer


def _one_per_name(pieces: Sequence[_Piece]) -> list[_Piece]:
    first: dict[str, _Piece] = {}
    for piece in pieces:
        first.setdefault(piece.name, piece)
    return list(first.values())


def _rate(file: SourceFile, tree: ast.Module, words: Collection[str], *, is_own: bool) -> Iterator[_Piece]:
    """Rate the top-level classes and functions of a file: words in the name, in the file's name, in the docstring."""
    place = find_words(file.path)
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        in_name = _share(words, find_words(node.name))
        in_place = _share(words, place)
        in_text = _share(words, find_words((ast.get_docstring(node) or "")[:2000]))
        if in_name or in_place * len(words) >= 2:
            methods = _methods(node) if isinstance(node, ast.ClassDef) else {}
            is_it = "".join(find_words(node.name)) == "".join(words)
            bonus = 0.8 * ("forward_native" in methods) + 0.4 * ("forward" in methods) + 0.5 * is_own + is_it
            yield _Piece(4 * in_name + 2 * in_place + in_text + bonus, file.path, node.name, node)


def _share(words: Collection[str], found: Collection[str]) -> float:
    """Tell how many of the words are found, out of all; a longer name for the same words is a little less.

    Words that a name writes as one count too: `rmsnorm` is in `RMSNorm`.
    """
    joined = "".join(found)
    hits = sum(word in found or _SYNONYMS.get(word) in found or (len(word) > 3 and word in joined) for word in words)
    return hits / len(words) - 0.01 * max(0, len(found) - hits) if hits else 0.0


def _methods(node: ast.ClassDef) -> Mapping[str, ast.FunctionDef]:
    return {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}


def _cut(package: Package, piece: _Piece) -> Excerpt:
    """Take the forward of a class, or the function; where a class has none, its beginning."""
    node: ast.AST = piece.node
    name = piece.name
    if isinstance(piece.node, ast.ClassDef):
        methods = _methods(piece.node)
        found = next((method for method in _FORWARDS if method in methods), None)
        if found is not None:
            node, name = methods[found], f"{piece.name}.{found}"
    start: int = getattr(node, "lineno", 1)
    end: int = getattr(node, "end_lineno", None) or start
    return Excerpt(file=piece.file, line=start, name=name, text=_read(package, piece.file, start, end))


def _read(package: Package, path: str, start: int, end: int) -> str:
    try:
        text = read_limited(package.folder.parent / path, _FILE_LIMIT).decode(errors="replace")
    except FormatError:  # gone since it was parsed
        return ""
    lines = text.splitlines()[start - 1 : min(end, start - 1 + _MOST_LINES)]
    return "\n".join(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", line)[:_LONGEST_LINE].rstrip() for line in lines)
