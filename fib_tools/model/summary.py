"""What a person sees of a result: lines and tables as plain values, so that no face decides what matters."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fib_tools.model.base import Model

__all__ = ["Result", "Summary", "Table"]


class Table(Model):
    """Rows under column headings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Summary(Model):
    """Tables, and the lines under them; the last line says what came of it, and where it is."""

    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = Field(default_factory=tuple)


class Result(Model):
    """What an operation returns: a document for machines, with a summary for people."""

    rows: ClassVar[str] = ""
    """The path of its one list that is long by nature, such as `manifest.kernels`; agents are shown it in pages."""
    row_fields: ClassVar[tuple[str, ...]] = ()
    """The fields of its rows that agents are shown unless they ask for others; all if empty."""

    advice: ClassVar[tuple[str, ...]] = ()
    """The paths of texts that say what to do, such as `problems.todo`: in the words of the command line, and for agents in
    those of tools."""

    is_text: ClassVar[bool] = False
    """Its summary only sets out what the document says: agents are shown the document alone."""

    @property
    def has_errors(self) -> bool:
        """Tell whether the data has errors, which makes the command's exit status 1."""
        return False

    def summary(self) -> Summary:
        """Say what a person wants to know of it."""
        return Summary()

    def serve(self) -> None:
        """Serve what the result tells of until interrupted; most results have nothing to serve."""
