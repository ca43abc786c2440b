from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.docs import main, render_document
from fib_tools.errors import FormatError
from fib_tools.model.schema import DOCUMENTS

ROOT = Path(__file__).parents[1]


def test_the_generated_tables_of_the_readme_are_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render_document(text) == text, "run: python -m fib_tools.docs README.md"


def test_a_block_that_no_table_fills_is_an_error() -> None:
    with pytest.raises(FormatError, match="colours"):
        render_document("<!-- colours: generated, do not edit -->\n<!-- /colours -->")


def test_a_document_is_written_with_its_tables(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text(
        "a\n<!-- commands: generated, do not edit -->\nstale words\n<!-- /commands -->\nb\n", encoding="utf-8"
    )
    main([str(target)])
    text = target.read_text(encoding="utf-8")
    assert "stale words" not in text
    assert "`fib onboard`" in text
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")


def test_the_guide_for_agents_stays_short() -> None:
    assert len((ROOT / "CLAUDE.md").read_text(encoding="utf-8").splitlines()) < 120


def test_a_schema_is_written_for_each_kind_of_document(tmp_path: Path) -> None:
    main(["--schemas", str(tmp_path / "schemas")])
    written = sorted(path.name for path in (tmp_path / "schemas").iterdir())
    assert written == [f"{name}.schema.json" for name in sorted(DOCUMENTS)]
