"""Phase 2 by hand, the question: all that a person or an LLM needs to write one Definition, on one page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.model.base import Model, to_document
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.fitting import shorten, take
from fib_tools.phases.request import DEFAULTS, ModelArgument, ModelOptions

if TYPE_CHECKING:
    from fib_tools.model.manifest import Manifest

__all__ = ["BRIEF_BYTES", "BriefResult", "Serving", "get_manual_brief"]

BRIEF_BYTES = 6 << 10
"""Of the whole document as compact JSON."""

_GAPS_BYTES = 4500
_OP_TYPE = re.compile(r"[a-z][a-z0-9_]{1,60}")


class Serving(Model):
    """The serving configurations that were asked for."""

    tp: tuple[int, ...]
    ep: tuple[int, ...]
    points: tuple[str, ...] = ()


class BriefResult(Result):
    """What is to be defined, and everything that helps; or, when nothing was named, what is open."""

    advice = ("next", "source_note")

    model: str
    wanted: str = ""
    """The kernel or op_type that the brief is for; empty when only the gaps are listed."""
    gap: dict[str, str] = Field(default_factory=dict)
    """The gap of the model that it fills, if it is one."""
    gaps: tuple[dict[str, str], ...] = ()
    """Open gaps of the model, when nothing was named."""
    gaps_left_out: int = 0
    facts: dict[str, Any] = Field(default_factory=dict)
    serving: Serving | None = None
    sources: tuple[dict[str, Any], ...] = ()
    """Excerpts of SGLang: data only."""
    source_note: str = ""
    nearest: tuple[dict[str, str], ...] = ()
    """The Definitions most like it, in the dataset, of this model, or of our kernel types."""
    definition_schema: tuple[str, ...] = ()
    naming: str = ""
    checks: tuple[str, ...] = ()
    """What fib admit will check."""
    next: str

    def summary(self) -> Summary:
        """Show the brief as tables; the last line says what to do with it."""
        parts = (
            ("open gaps", [(item["name"], item["detail"]) for item in self.gaps]),
            ("gap", list(self.gap.items())),
            ("facts", [(name, str(value)) for name, value in self.facts.items()]),
            ("SGLang", [(f"{item['file']}:{item['line']} {item['name']}", item["text"]) for item in self.sources]),
            ("nearest", [(item["name"], _join(item)) for item in self.nearest]),
            ("schema", [(str(place), text) for place, text in enumerate(self.definition_schema, start=1)]),
            ("checks", [(str(place), text) for place, text in enumerate(self.checks, start=1)]),
        )
        tables = [Table(title=title, columns=("what", "says"), rows=tuple(rows)) for title, rows in parts if rows]
        lines = [text for text in (self.source_note, self.naming and f"naming: {self.naming[:120]}...") if text]
        return Summary(tables=tuple(tables), lines=(*lines, self.next))


def _join(item: dict[str, str]) -> str:
    return "; ".join(text for name, text in item.items() if name != "name")


def get_manual_brief(
    context: Context,
    model: ModelArgument,
    options: ModelOptions = DEFAULTS,
    *,
    kernel: Annotated[
        str | None,
        Field(description="The gap to fill, as the list of gaps names it, or a kernel's name.", max_length=300),
    ] = None,
    op_type: Annotated[
        str | None, Field(description="The op_type of the kernel, which may be a new one, such as lightning_attention.")
    ] = None,
) -> BriefResult:
    """Brief whoever writes a Definition by hand: facts, source excerpt, nearest Definitions, schema, checks; at most 6 KB.

    Without kernel and op_type it lists what of the model no Definition covers yet. The answer goes to fib admit.
    """
    # these load a hundred classes, which `fib --help` can do without
    from fib_tools.phases.brief_page import write_brief
    from fib_tools.phases.classify import build_manifest
    from fib_tools.phases.gaps import list_gaps
    from fib_tools.phases.manifests import find_manifest
    from fib_tools.phases.survey import survey_model

    _check_op_type(op_type)
    survey = survey_model(context, model, options)
    definitions, _ = context.dataset.load_definitions()
    manifest = build_manifest(survey, definitions, options.op_types)
    found = find_manifest(context.workspace, manifest.model)
    filled = tuple(item.fills for item in found[1].manual if item.fills) if found else ()
    standing = found[1].kernels if found else ()
    gaps = list_gaps(manifest.model_copy(update={"kernels": standing}), filled=filled)
    if kernel is None and op_type is None:
        return _list_only(manifest.model, [to_document(gap) for gap in gaps])
    wanted = " ".join(filter(None, (kernel, op_type)))
    gap = _choose_gap(manifest, gaps, kernel, op_type)
    return write_brief(context, (survey, manifest, definitions), options, wanted=wanted, gap=gap)


def _check_op_type(op_type: str | None) -> None:
    if op_type is not None and not _OP_TYPE.fullmatch(op_type):
        todo = "use small letters, digits and _, such as lightning_attention"
        raise RequestError(f"{op_type[:80]!r} cannot be an op_type", where="op_type", todo=todo)


def _list_only(model: str, gaps: list[dict[str, str]]) -> BriefResult:
    shown = take(gaps, _GAPS_BYTES)
    advice = (
        f"ask again with --kernel and the name of a gap, or with --op-type for a kernel of {model} that is not listed"
    )
    none = f"no gap of {model} is known; ask with --op-type for a kernel that the inventory does not have"
    return BriefResult(
        model=model, gaps=tuple(shown), gaps_left_out=len(gaps) - len(shown), next=advice if gaps else none
    )


def _choose_gap(manifest: Manifest, gaps: Sequence[Any], kernel: str | None, op_type: str | None) -> dict[str, str]:
    """Find what the kernel names.

    Raises:
        RequestError: it names nothing of this model, and no op_type says what it is.
    """
    from fib_tools.phases.gaps import find_gap

    if kernel is None:
        return {}
    gap = find_gap(tuple(gaps), kernel)
    if gap is not None:
        return {name: shorten(str(text), 180) for name, text in to_document(gap).items()}
    names = {name for item in manifest.kernels for name in (item.name, item.kernel, item.definition)}
    if op_type is None and kernel not in names:
        known = "; ".join(item.name for item in gaps)[:400] or "no gap is known"
        raise RequestError(
            f"{manifest.model} has no kernel and no gap {kernel[:80]!r}",
            where="kernel",
            todo=f"pass op_type too if it is a new kernel, or use: {known}",
        )
    return {}
