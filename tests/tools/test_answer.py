from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st

from fib_tools.model.base import Model, to_document
from fib_tools.model.summary import Result, Summary
from fib_tools.tools.answer import Answer, Page, Whole, cut, document_size, take_whole


def whole(document: dict[str, Any], *, rows: str = "", fields: tuple[str, ...] = (), lines: int = 1) -> Whole:
    said = tuple(f"line {number}" for number in range(lines))
    return Whole(has_errors=False, lines=said, rows=rows, row_fields=fields, document=document)


def kernels(count: int, **more: Any) -> dict[str, Any]:
    rows = [{"name": f"kernel_{number}", "tp": [1, 8], **more} for number in range(count)]
    return {"path": "x", "manifest": {"model": "m", "kernels": rows, "notes": ["a note"]}}


def test_a_small_result_is_answered_whole() -> None:
    answer = cut(whole(kernels(3), rows="manifest.kernels"), Page())
    assert answer == Answer(has_errors=False, summary=("line 0",), result=kernels(3), total=3)


def test_what_a_tool_needs_of_a_result_is_taken() -> None:
    class Found(Result):
        rows: ClassVar[str] = "items"
        row_fields: ClassVar[tuple[str, ...]] = ("a",)
        items: tuple[int, ...] = (1,)

        @property
        def has_errors(self) -> bool:
            return True

        def summary(self) -> Summary:
            return Summary(lines=("said",))

    class Text(Found):
        is_text: ClassVar[bool] = True

    assert take_whole(Text()).lines == (), "its document says it all"
    assert take_whole(Found()) == Whole(
        has_errors=True, lines=("said",), rows="items", row_fields=("a",), document={"items": [1]}
    )


def test_advice_in_a_result_is_in_the_words_of_tools_and_other_text_as_it_is() -> None:
    class Row(Model):
        todo: str | None = None
        code: str = "fib validate --execute"

    class Found(Result):
        advice: ClassVar[tuple[str, ...]] = ("next", "rows_.todo", "none.todo")
        next: str = "run fib validate --op-type x"
        rows_: tuple[Row, ...] = (Row(todo="pass --execute"), Row())
        none: tuple[Row, ...] = ()

    class Outer(Result):
        inner: Found = Found()
        nothing: Found | None = None

    document = take_whole(Outer()).document["inner"]
    assert document["next"] == "run fib_validate_dataset op_type x"
    assert [row.get("todo") for row in document["rows_"]] == ["pass execute", None]
    assert document["rows_"][0]["code"] == "fib validate --execute"


@given(count=st.integers(0, 120), limit=st.integers(1, 50), size=st.integers(0, 2000), room=st.integers(2000, 9000))
def test_pages_stay_within_their_bound_and_together_are_the_whole(count: int, limit: int, size: int, room: int) -> None:
    document = kernels(count, detail="x" * size)
    seen: list[dict[str, Any]] = []
    offset: int | None = 0
    while offset is not None:
        page = Page(limit=limit, offset=offset, max_bytes=room)
        answer = cut(whole(kernels(count, detail="x" * size), rows="manifest.kernels"), page)
        assert document_size(to_document(answer)) <= room
        assert answer.total == count
        rows = answer.result["manifest"]["kernels"]
        assert len(rows) <= limit
        assert rows or not count
        seen += rows
        offset = answer.next_offset
    expected = document["manifest"]["kernels"]
    assert [row["name"] for row in seen] == [row["name"] for row in expected]
    assert all(row == other or "detail" not in row for row, other in zip(seen, expected, strict=True))


@given(
    st.recursive(
        st.one_of(st.integers(), st.text(max_size=400), st.lists(st.integers(), max_size=300)),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=4), inner, max_size=5),
        max_leaves=20,
    ).filter(lambda value: isinstance(value, dict))
)
def test_whatever_is_too_large_is_left_out_and_named(document: Any) -> None:
    before = document_size(document)
    answer = cut(whole(document), Page(max_bytes=2000))
    if before < 1500:
        assert not answer.left_out
    assert bool(answer.left_out) == (document_size(answer.result) < before)


def test_parts_are_left_out_from_the_largest_and_can_be_asked_for() -> None:
    document = {"small": 1, "list": list(range(3000)), "text": "x" * 3000, "inner": {"deep": ["y"] * 900}}
    answer = cut(whole(dict(document)), Page())
    assert answer.left_out == ("list (3000 items)",)
    assert set(answer.result) == {"small", "text", "inner"}
    asked = cut(whole(dict(document)), Page(fields=("list",), max_bytes=64000))
    assert asked.result == {"list": document["list"]}


def test_fields_go_through_lists() -> None:
    answer = cut(
        whole(kernels(2), rows="manifest.kernels"), Page(fields=("manifest.kernels.name", "manifest.model", "path"))
    )
    assert answer.result == {
        "path": "x",
        "manifest": {"kernels": [{"name": "kernel_0"}, {"name": "kernel_1"}], "model": "m"},
    }


def test_a_field_that_this_result_leaves_out_is_left_out() -> None:
    assert cut(whole(kernels(0)), Page(fields=("manifest.refused", "manifest.model"))).result == {
        "manifest": {"model": "m"}
    }


def test_rows_show_the_fields_that_matter_unless_others_are_asked_for() -> None:
    document = kernels(2, witnesses=["w"])
    short = cut(whole(kernels(2, witnesses=["w"]), rows="manifest.kernels", fields=("name",)), Page())
    assert short.result["manifest"]["kernels"] == [{"name": "kernel_0"}, {"name": "kernel_1"}]
    assert short.left_out == ("manifest.kernels.{tp,witnesses}",)
    asked = Page(fields=("manifest.kernels.witnesses", "manifest.kernels.name", "manifest.kernels.tp"))
    full = cut(whole(document, rows="manifest.kernels", fields=("name",)), asked)
    assert full.result["manifest"]["kernels"][0] == {"witnesses": ["w"], "name": "kernel_0", "tp": [1, 8]}


def test_of_a_long_summary_the_end_is_kept() -> None:
    answer = cut(whole({}, lines=500), Page(max_bytes=2000))
    assert answer.summary[0] == "..."
    assert answer.summary[-1] == "line 499"
    assert document_size(list(answer.summary)) < 600


def test_an_offset_beyond_the_end_answers_no_row() -> None:
    answer = cut(whole(kernels(2), rows="manifest.kernels"), Page(offset=9))
    assert (answer.result["manifest"]["kernels"], answer.total, answer.next_offset) == ([], 2, None)
