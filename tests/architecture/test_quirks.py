from __future__ import annotations

from collections import Counter

from fib_tools.architecture.quirks import QUIRKS, find_quirk


def test_each_model_type_has_one_row() -> None:
    counted = Counter(model_type for row in QUIRKS for model_type in row.model_types)
    assert [name for name, count in counted.items() if count > 1] == []


def test_each_row_says_why() -> None:
    assert all(len(row.reason) > 10 for row in QUIRKS)


def test_an_unknown_model_type_has_no_row() -> None:
    assert find_quirk("no_such_type") is None
