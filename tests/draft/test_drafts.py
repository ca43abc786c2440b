from __future__ import annotations

import pytest

from fib_tools.draft.digest import digest_source
from fib_tools.draft.extract import extract_source, extract_technique, extract_why
from fib_tools.errors import FormatError
from fib_tools.model.solution import Language

PLAIN = '''
def run(x, w):
    """Scale."""
    y = x * w  # elementwise
    return y + 1
'''


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("y", "scaled"),
        PLAIN.replace('    """Scale."""\n', "").replace("  # elementwise", ""),
        PLAIN.replace("x, w", "x: int, w").replace("x * w", "(x * w)"),
    ],
)
def test_words_and_names_do_not_make_another_source(other: str) -> None:
    assert digest_source(other, Language.PYTHON) == digest_source(PLAIN, Language.PYTHON)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("+ 1", "+ 2"),
        PLAIN.replace("x * w", "w * x"),
        PLAIN.replace("return y", "global y\n    return y"),
        PLAIN.replace("x, w", "x, w: tl.constexpr"),
        PLAIN.replace("def run", "def run2"),
    ],
)
def test_what_computes_something_else_is_another_source(other: str) -> None:
    assert digest_source(other, Language.PYTHON) != digest_source(PLAIN, Language.PYTHON)


def test_a_source_that_is_nested_too_deeply_is_taken_as_it_stands() -> None:
    deep = f"def run(x):\n    return {'-' * 40000}x\n"
    assert digest_source(deep, Language.PYTHON) != digest_source(PLAIN, Language.PYTHON)


def test_a_text_that_is_no_python_is_taken_as_it_stands() -> None:
    assert digest_source("def run(:", Language.TRITON) != digest_source("def run( :", Language.TRITON)


def test_comments_and_layout_do_not_make_another_cuda_source() -> None:
    first = "__global__ void k(int* x) { x[0] = 1; } // one\n"
    assert digest_source(first, Language.CUDA) == digest_source(
        first.replace("// one", "").replace("{ ", "{\n"), Language.CUDA
    )
    assert digest_source(first, Language.CUDA) != digest_source(first.replace("= 1", "= 2"), Language.CUDA)


def test_the_longest_block_with_a_run_is_the_source() -> None:
    text = "Use\n```python\nprint(1)\n```\nand\n```python\ndef run(x):\n    return x\n```\nas in\n```\nrun(x)\n```\n"
    assert extract_source(text) == "def run(x):\n    return x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no code", "no fenced code block that defines run"),
        ("```python\nx = 1\n```\n", "no fenced code block that defines run"),
        ("```python\ndef run(x):\n", "cut off"),
        (f"```\ndef run(x): pass\n#{'a' * 200_001}\n```\n", "characters"),
    ],
)
def test_an_answer_without_a_whole_source_says_what_is_missing(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        extract_source(text)


@pytest.mark.parametrize(
    ("text", "technique"),
    [
        ("TECHNIQUE: Two-pass  Reduction\nWHY: x", "two-pass reduction"),
        ("**Technique:** `warp shuffle`", "warp shuffle"),
        ("nothing", "unnamed"),
        (f"TECHNIQUE: {'a' * 80}", "a" * 60),
    ],
)
def test_a_technique_is_a_few_words_in_lower_case(text: str, technique: str) -> None:
    assert extract_technique(text) == technique


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("TECHNIQUE: a\nWHY: one  pass, not two\n```", "one pass, not two"),
        ("**Why:** fewer loads", "fewer loads"),
        ("nothing", ""),
        ("WHY:\n```python\ndef run(): pass\n```", ""),
        (f"WHY: {'a' * 400}", "a" * 300),
    ],
)
def test_what_is_expected_of_a_draft_is_one_short_line(text: str, why: str) -> None:
    assert extract_why(text) == why
