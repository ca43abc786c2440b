from __future__ import annotations

import re
from html import unescape

import pytest

from fib_tools.publish.view import source_code
from fib_tools.publish.view.source_code import show_source

SOURCE = '''"""Doc."""
import torch


@torch.no_grad()
def run(x):  # a < b
\treturn f"{x!r}</code>" + '\\n' + """two
lines""" * 3
'''


def read(markup: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", markup.partition("<pre")[2].partition(">")[2].partition("</pre>")[0]))


@pytest.mark.parametrize("file", ["main.py", "kernel.cu", "note.txt"])
@pytest.mark.parametrize("text", [SOURCE, "\n\n  x = 1", "x\r\ny\n", "<script>alert(1)</script>\n", "a\x0cb\u2028c\n"])
def test_what_is_shown_is_the_text_in_any_language(file: str, text: str) -> None:
    shown = show_source(text, label="it", file=file)
    assert read(shown).splitlines() == text.splitlines()
    assert "<script" not in shown


def test_kinds_of_tokens_have_their_colours() -> None:
    shown = show_source(SOURCE, label="it")
    for classes, text in (("tk", "import"), ("tf", "run"), ("tc", "# a &lt; b"), ("tn", "3")):
        assert f'<span class="{classes}">{text}</span>' in shown
    assert shown.count('class="l"') == SOURCE.count("\n")


def test_a_very_long_text_is_shown_in_one_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_code, "_MOST_CHARACTERS", 10)
    shown = show_source(SOURCE, label="it")
    assert 'class="tk"' not in shown
    assert read(shown) == SOURCE
