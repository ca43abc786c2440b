"""Phase 2 by hand: a Definition that a person or an LLM wrote, through the full gate into the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from fib_tools.errors import DocumentTooLargeError, FormatError, RequestError
from fib_tools.host.files import read_limited
from fib_tools.host.locks import hold
from fib_tools.model.canonical import load_json
from fib_tools.model.report import Problem
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock

__all__ = ["AdmitResult", "Status", "submit_definition"]

Status = Literal["defined", "existing", "refused", "would define"]

_LIMIT = 1 << 20
"""The largest Definition in the published dataset has 20 KB."""
_FORWARD_LIMIT = 64 << 10


class AdmitResult(Result):
    """What became of a Definition, and what to change in one that was refused."""

    rows = "problems"
    advice = ("problems.todo",)

    status: Status
    name: str
    op_type: str
    path: str | None = None
    """The file, when there is one now."""
    existing: str | None = None
    """The Definition that is this kernel already."""
    problems: tuple[Problem, ...] = ()
    """Everything to change, as far as it can be seen at once."""
    executed: bool | None = None
    """Whether the reference ran and gave what the Definition declares; None when it could not be tried."""
    seconds: float | None = None
    axes: dict[str, int] = Field(default_factory=dict)
    """The lengths it ran with."""
    compared: str
    """What comparing it with SGLang's own forward showed, or why it was not compared."""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    manifest: str | None = None
    """The model's manifest that records it."""

    @property
    def has_errors(self) -> bool:
        """A refusal is an error."""
        return self.status == "refused"

    def summary(self) -> Summary:
        """List what is to change, then what came of it."""
        rows = tuple(
            (item.field, f"found: {item.found}; expected: {item.expected}; {item.todo}") for item in self.problems
        )
        tables = (Table(title=f"{self.name}: what to change", columns=("field", "why"), rows=rows),) if rows else ()
        lines = [self.compared, *(f"note: {text}" for text in self.notes)]
        return Summary(tables=tables, lines=(*lines, self._conclusion()))

    def _conclusion(self) -> str:
        if self.status == "refused":
            return f"{self.name}: refused, {len(self.problems)} to change; nothing was written"
        if self.status == "existing":
            return f"{self.name}: the dataset has this kernel as {self.existing}; nothing was written"
        if self.status == "would define":
            return f"{self.name}: passes the gate; nothing was written (dry run)"
        return f"{self.name}: defined in {self.path}"


def _to_text(value: Any) -> Any:
    """Take a document as it is: agents write an object more surely than an object in a string."""
    return json.dumps(value) if isinstance(value, dict) else value


def submit_definition(
    context: Context,
    definition: Annotated[
        str,
        BeforeValidator(_to_text),
        WithJsonSchema({"type": ["object", "string"]}),
        Field(description="The Definition as a JSON object or text, or the path of a file that holds it."),
    ],
    *,
    model: Annotated[
        str | None, Field(description="The model it is for: tags it, and its manifest records it.")
    ] = None,
    fills: Annotated[
        str | None,
        Field(description="The gap of the model that it fills, as fib brief names it.", max_length=300),
    ] = None,
    sglang_forward: Annotated[
        str | None,
        Field(
            description="Python source, or the path of a .py file, with run_sglang(...): takes what run takes, calls "
            "SGLang's torch-native forward, returns the same outputs. Compared in the sandbox.",
            min_length=1,
        ),
    ] = None,
    sglang_path: Annotated[
        Path | None, Field(description="SGLang's source to compare with: a clone, a package or an unpacked wheel.")
    ] = None,
    dry_run: Annotated[bool, Field(description="Judge it; nothing is written.")] = False,
) -> AdmitResult:
    """Admit one Definition written by hand: every check of the gate, its reference executed, or all that is to change.

    Nothing in the dataset is overwritten: a kernel that is there under any name is reported as existing.
    """
    # the gate is heavy, and `fib --help` can do without it
    from fib_tools.phases.submission import Submission, judge

    document = _read_document(context, definition)
    forward = None if sglang_forward is None else _read_forward(context, sglang_forward)
    submission = Submission(
        document=document, model=model, fills=fills, forward=forward, sglang_path=sglang_path, is_dry=dry_run
    )
    if dry_run:
        return judge(context, submission)
    context.workspace.create()
    with hold(workspace_lock(context), purpose="admitting a Definition"):
        context.sweep()
        return judge(context, submission)


def _read_document(context: Context, text: str) -> Any:
    """Parse JSON text, or the file that the text names.

    Raises:
        FormatError: with line and column, or the key that stands twice.
        PathError: the file is not one that this caller may name.
    """
    if text.lstrip()[:1] in {"{", "["}:
        if len(text.encode(errors="surrogatepass")) > _LIMIT:
            raise DocumentTooLargeError(f"more than {_LIMIT} bytes", where="definition", todo="shorten the reference")
        where, data = "definition", text
    else:
        path = context.check_readable(_as_path(text))
        where, data = path.name, _decode(read_limited(path, _LIMIT), path)
    try:
        return load_json(data, where=where)
    except FormatError as error:
        raise FormatError(error.what, where=error.where, todo=error.todo or "send one JSON object") from error


def _read_forward(context: Context, text: str) -> str:
    """Take source text, or read the file that the text names."""
    if "\n" not in text.strip() and text.strip().endswith(".py"):
        path = context.check_readable(_as_path(text.strip()))
        return _decode(read_limited(path, _FORWARD_LIMIT), path)
    if len(text) > _FORWARD_LIMIT:
        raise DocumentTooLargeError(f"more than {_FORWARD_LIMIT} characters", where="sglang_forward", todo="shorten it")
    return text


def _as_path(text: str) -> Path:
    """Take a text for a path, if it can be one.

    Raises:
        RequestError: it is neither JSON nor a path.
    """
    if "\n" in text or len(text) > 1000:
        raise RequestError(
            "neither a JSON object nor a path", where=text[:40], todo="send the Definition as a JSON object"
        )
    return Path(text)


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: {error.reason}", where=str(path), todo="save it as UTF-8") from error
