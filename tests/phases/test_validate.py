from __future__ import annotations

import json
from pathlib import Path

import pytest

import example_dataset
from fib_tools.cli.app import main
from fib_tools.errors import RequestError, StorageError
from fib_tools.model.report import Finding, Severity
from fib_tools.phases.context import Context
from fib_tools.phases.report_html import format_html
from fib_tools.phases.validate import ValidationResult, validate_dataset


@pytest.fixture
def dataset(context: Context) -> Path:
    root = context.dataset.root
    for path, content in example_dataset.FILES.items():
        example_dataset.write(root, path, content)
    blob = example_dataset.safetensors({"indptr": ("I32", [3], 12)})
    example_dataset.write(root, example_dataset.BLOB, blob)
    return root


@pytest.mark.usefixtures("dataset")
def test_a_clean_dataset_has_no_error(
    context: Context,
) -> None:
    result = validate_dataset(context)
    assert not result.has_errors, result.findings
    assert result.counts["definition"] == 1
    assert result.summary().lines[-1].startswith("errors: 0")


def test_a_reference_is_executed_only_when_asked(context: Context, dataset: Path) -> None:
    broken = {
        **example_dataset.DEFINITION,
        "name": "broken_n4",
        "reference": "def run(x, indptr, scale):\n    raise ValueError('no')\n",
    }
    example_dataset.write(dataset, "definitions/copy/broken_n4.json", broken)
    example_dataset.write(dataset, "definitions/copy/idle_n4.json", {**broken, "name": "idle_n4"})
    steps: list[str] = []
    watched = Context(workspace=context.workspace, progress=lambda step, _done, _total: steps.append(step))
    assert not validate_dataset(watched, checks=("definition",)).has_errors
    result = validate_dataset(watched, execute=True, checks=("definition",), definitions=("copy_n4", "broken_n4"))
    assert result.has_errors
    (finding,) = [finding for finding in result.findings if finding.check == "definition.not_executed"]
    assert finding.where == "definitions/copy/broken_n4.json"
    assert "no" in finding.message
    assert result.counts["executed"] == 1
    assert "executing: broken_n4" in steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"definitions": ("nope",)}, "no Definition 'nope'"),
        ({"op_types": ("nope",)}, "nothing of op_type 'nope'"),
        ({"checks": ("nope",)}, "no check 'nope'"),
    ],
)
@pytest.mark.usefixtures("dataset")
def test_a_selection_of_nothing_is_refused(context: Context, options: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        validate_dataset(context, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("dataset")
def test_an_op_type_of_the_dataset_can_be_selected(context: Context) -> None:
    result = validate_dataset(context, op_types=("copy",))
    assert not result.has_errors


def test_a_broken_definition_can_be_selected(context: Context, dataset: Path) -> None:
    example_dataset.write(dataset, "definitions/copy/bad_n4.json", "{")
    result = validate_dataset(context, definitions=("bad_n4",))
    assert result.has_errors
    assert {finding.where for finding in result.findings} == {"definitions/copy/bad_n4.json"}


@pytest.mark.parametrize("suffix", [".html", ".json", ".txt"])
def test_a_report_is_written(context: Context, dataset: Path, tmp_path: Path, suffix: str) -> None:
    example_dataset.write(dataset, "definitions/copy/bad_n4.json", "{")
    report = tmp_path / f"report{suffix}"
    result = validate_dataset(context, report=report)
    text = report.read_text(encoding="utf-8")
    assert "definitions/copy/bad_n4.json" in text
    if suffix == ".json":
        assert ValidationResult.model_validate(json.loads(text)) == result


@pytest.mark.usefixtures("dataset")
def test_a_report_into_no_folder_is_refused(context: Context, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create the folder first"):
        validate_dataset(context, report=tmp_path / "none" / "report.txt")


def test_the_report_escapes_what_comes_from_the_dataset() -> None:
    hostile = "<script>alert('x')</script>"
    finding = Finding(severity=Severity.ERROR, check="a.b", where=hostile, message=hostile, todo=hostile)
    text = format_html(hostile, {hostile: 1}, [finding])
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") == 6


def test_many_findings_are_shown_in_part_and_errors_first() -> None:
    def finding(number: int, severity: Severity) -> Finding:
        return Finding(severity=severity, check="a.b", where=f"file{number}", message="wrong")

    findings = [finding(number, Severity.NOTE) for number in range(50)] + [finding(99, Severity.ERROR)]
    summary = ValidationResult(dataset="data", counts={"definition": 1}, findings=tuple(findings)).summary()
    assert len(summary.tables[0].rows) == 40
    assert summary.tables[0].rows[0][2] == "file99"
    assert summary.lines == (
        "... and 11 more; --json and --report FILE have all",
        "data: definition: 1",
        "errors: 1, warnings: 0, notes: 50",
    )


def test_the_exit_status_says_what_came_of_it(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["validate", "--dataset", str(dataset), "--quiet"]
    assert main(command) == 0
    example_dataset.write(dataset, "definitions/copy/bad_n4.json", "{")
    assert main(command) == 1
    assert "definitions/copy/bad_n4.json" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["definition"] == 2
    assert main(["validate", "--dataset", str(dataset / "none")]) == 2
