from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fib_tools import docs
from fib_tools.cli.app import build_app
from fib_tools.docs import find_tools, main, render_document
from fib_tools.errors import FormatError
from fib_tools.model.schema import DOCUMENTS
from fib_tools.operations import JOB_TOOLS
from fib_tools.sources.registry import find_model

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


def _tools_block(stale: str = "") -> str:
    return f"<!-- tools: generated, do not edit -->\n{stale}\n<!-- /tools -->\n"


def test_a_table_of_tools_has_those_that_the_words_name() -> None:
    before = f"First `fib_get_job`, then `fib_show_status`.\n{_tools_block('| `fib_clone_repos` | stale |')}"
    table = render_document(before).partition("-->\n")[2].partition("<!--")[0]
    assert table.splitlines() == [
        "| Tool | What it does | Writes to |",
        "|---|---|---|",
        "| `fib_show_status` | Show what the workspace holds and how far each onboarding has come. | nothing |",
        f"| `fib_get_job` | {JOB_TOOLS[0][1]} | nothing |",
    ]


def test_a_tool_that_there_is_not_is_an_error_with_the_nearest() -> None:
    with pytest.raises(FormatError, match=r"fib_onboard_modle.*such as fib_onboard_model"):
        render_document(f"Call `fib_onboard_modle`.\n{_tools_block()}")


def test_tools_are_found_in_a_documents_own_words_only() -> None:
    text = f"`fib_get_job`, `fib_get_job`, fib_plain, `fib status`\n{_tools_block('`fib_clone_repos`')}`fib_x`"
    assert find_tools(text) == ("fib_get_job", "fib_x")


def test_a_table_of_skills_says_when_to_use_each() -> None:
    table = render_document("<!-- skills: generated, do not edit -->\n<!-- /skills -->")
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in table.splitlines()[3:-1])}
    assert rows["`/clone-repos`"][2].strip().startswith("SGLang, FlashInfer")
    assert len(rows) == 16


def test_without_arguments_the_readme_and_all_skills_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "_ROOT", tmp_path)
    paths = [tmp_path / "README.md", tmp_path / "skills" / "one" / "SKILL.md"]
    paths[1].parent.mkdir(parents=True)
    for path in paths:
        path.write_text(f"`fib_get_job`\n{_tools_block('stale')}", encoding="utf-8")
    main([])
    assert all("| `fib_get_job` |" in path.read_text(encoding="utf-8") for path in paths)


def test_the_guide_for_agents_stays_short() -> None:
    assert len((ROOT / ".claude" / "CLAUDE.md").read_text(encoding="utf-8").splitlines()) < 120


def test_a_schema_is_written_for_each_kind_of_document(tmp_path: Path) -> None:
    main(["--schemas", str(tmp_path / "schemas")])
    written = sorted(path.name for path in (tmp_path / "schemas").iterdir())
    assert written == [f"{name}.schema.json" for name in sorted(DOCUMENTS)]


def test_every_command_of_the_readme_can_be_given_as_it_stands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("fib ")]
    assert len(commands) >= 6
    for command in commands:
        build_app(command).parse_args(command, exit_on_error=False, print_error=False)
        names_a_model = not {"--config", "--discover"} & set(command)
        if command[0] in {"onboard", "inventory", "brief"} and names_a_model:
            assert find_model(command[1]) is not None, f"{command[1]} is no known model"
