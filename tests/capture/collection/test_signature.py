from __future__ import annotations

from fib_tools.capture.collection.signature import UNREADABLE, bind_arguments, parse_signature


def test_names_and_defaults_are_read_past_annotations_with_commas_and_brackets() -> None:
    text = "(self, q: Union[torch.Tensor, Tuple[int, str]], mode: str = 'A,(B', scale: Optional[float] = None, /) -> X"
    found = [(item.name, item.has_default, item.default) for item in parse_signature(text)]
    assert found == [("self", False, None), ("q", False, None), ("mode", True, "A,(B"), ("scale", True, None)]


def test_what_stands_behind_a_star_is_taken_by_name_only() -> None:
    parameters = parse_signature("(self, q: int, *args: Any, causal: bool = False, **kwargs: Any) -> None")
    assert [(item.name, item.is_positional) for item in parameters] == [("self", True), ("q", True), ("causal", False)]
    assert bind_arguments(parameters, {0: "s", 1: "q", 2: "lost"}, {"other": 4}) == {"self": "s", "q": "q", "other": 4}


def test_a_default_that_is_no_literal_is_told_apart_from_none() -> None:
    (parameter,) = parse_signature("(mode: Mode = <Mode.A: 1>)")
    assert parameter.default is UNREADABLE


def test_what_is_no_signature_has_no_parameters() -> None:
    assert parse_signature("<unavailable>") == ()
