from __future__ import annotations

import pytest

from fib_tools.errors import FormatError
from fib_tools.model.tags import Tag, find_tag_values, merge_tags, parse_tag


@pytest.mark.parametrize("text", ["fi_api:flashinfer.norm.rmsnorm", "tp:8", "moe", "note:a:b", "empty:"])
def test_a_tag_comes_back_from_its_parts(text: str) -> None:
    assert str(parse_tag(text)) == text


def test_only_the_first_colon_cuts_a_tag() -> None:
    assert parse_tag("note:a:b") == Tag(key="note", value="a:b")


@pytest.mark.parametrize("text", ["", ":x", " ", "a\nb", "a\0"])
def test_a_text_without_a_key_or_with_a_line_break_is_no_tag(text: str) -> None:
    with pytest.raises(FormatError):
        parse_tag(text)


def test_merged_tags_stand_once_in_one_order_with_numbers_by_value() -> None:
    merged = merge_tags(["tp:16", "custom", "status:unverified"], ["tp:8", "fi_api:x", "tp:16", "model:m"])
    assert merged == ["fi_api:x", "model:m", "tp:8", "tp:16", "status:unverified", "custom"]


def test_a_verified_status_is_not_lost_to_an_unverified_one() -> None:
    assert merge_tags(["status:verified"], ["status:unverified"]) == ["status:verified"]


def test_the_values_of_a_key_are_found() -> None:
    assert find_tag_values(["model:a", "tp:8", "model:b"], "model") == ("a", "b")


def test_a_malformed_tag_of_others_is_kept_and_harms_no_reader() -> None:
    assert merge_tags([":x", "tp:8"], ["tp:²"]) == ["tp:²", "tp:8", ":x"]
    assert find_tag_values([":x", "", "tp:8"], "tp") == ("8",)
