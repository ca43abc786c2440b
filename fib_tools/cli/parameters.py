"""Options of operations as parameters of the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter

from fib_tools.operation import Option

__all__ = ["SHARED", "make_parameter"]


def _shared(name: str, kind: Any, default: object, text: str) -> inspect.Parameter:
    annotation = Annotated[kind, Parameter(help=text, negative="" if kind is bool else None)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


SHARED = (
    _shared("workspace", Path | None, None, "Folder for clones, dataset and manifests. [default: tmp]"),
    _shared("dataset", Path | None, None, "Dataset folder. [default: WORKSPACE/flashinfer-trace]"),
    _shared("offline", bool, False, "Never reach for the network."),
    _shared("json", bool, False, "Print the result as JSON."),
    _shared("quiet", bool, False, "Show no progress."),
)
"""Options of every command."""


def make_parameter(option: Option) -> inspect.Parameter:
    """Turn an option into a parameter of the command line; lists are written with commas between."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if option.is_subject else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind, default=option.default, annotation=_annotation(option))


def _annotation(option: Option) -> Any:
    if option.kind is bool:
        negative = "" if option.default is False else None
        return Annotated[bool, Parameter(help=option.description, negative=negative)]
    item = _item_type(option.kind)
    if item is None:
        return Annotated[option.kind, Parameter(help=option.description)]
    return Annotated[
        option.kind,
        Parameter(
            help=option.description,
            converter=_split_into(item, _count_items(option.kind)),
            n_tokens=1,
            accepts_keys=False,
            negative="",
            metavar=f"{_name(item)},...",
            show_default=_join if option.default else False,
        ),
    ]


def _item_type(kind: Any) -> Any:
    for option in get_args(kind) or (kind,):
        if get_origin(option) is tuple:
            return get_args(option)[0]
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _name(item: Any) -> str:
    """Name an element of a list: its type, or the words there are."""
    return "|".join(get_args(item)) if get_origin(item) is Literal else str(item.__name__).upper()


def _count_items(kind: Any) -> int | None:
    """Count the elements of a tuple whose length is fixed."""
    found = next((each for each in (kind, *get_args(kind)) if get_origin(each) is tuple), None)
    return None if found is None or Ellipsis in get_args(found) else len(get_args(found))


def _split_into(item: Any, count: int | None) -> Callable[..., tuple[Any, ...]]:
    def convert(_kind: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
        pieces = [piece.strip() for token in tokens for piece in token.value.split(",") if piece.strip()]
        if not pieces:
            raise ValueError("no value")
        if count is not None and len(pieces) != count:
            raise ValueError(f"it takes {count} values with a comma between, not {','.join(pieces)!r}")
        if item is int and not all(re.fullmatch(r"-?[0-9]{1,18}", piece) for piece in pieces):
            raise ValueError(f"{','.join(pieces)!r} is not a list of whole numbers such as 2,4")
        if get_origin(item) is Literal:
            unknown = [piece for piece in pieces if piece not in get_args(item)]
            if unknown:
                raise ValueError(f"{unknown[0]!r} is none of {', '.join(get_args(item))}")
            return tuple(pieces)
        return tuple(map(item, pieces))

    return convert


def _join(values: tuple[Any, ...] | None) -> str:
    return ",".join(map(str, values or ()))
