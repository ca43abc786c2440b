from __future__ import annotations

from pathlib import Path

import pytest

import example_dataset
from fib_tools.dataset.store import Dataset
from fib_tools.publish.view.catalogue import Catalogue


def write(root: Path) -> Path:
    for path, content in example_dataset.FILES.items():
        example_dataset.write(root, path, content)
    return root


def test_an_entry_counts_what_is_beside_its_definition(tmp_path: Path) -> None:
    write(tmp_path)
    example_dataset.write(tmp_path, "traces/copy/copy_n4.jsonl", "{}\n\n{}\n")
    example_dataset.write(tmp_path, "workloads/copy/orphan.jsonl", "{}\n")
    contents = Catalogue(Dataset(tmp_path)).read()
    (entry,) = contents.entries
    assert (entry.workloads, entry.evaluations) == (1, 3), "of both layouts"
    assert [(at.author, at.file) for at in entry.solutions] == [("baseline", "wrapper")]
    assert (entry.models, entry.status) == ((), "unverified")
    assert [path for path, _, _ in contents.traces] == [
        "traces/baseline/copy/copy_n4.jsonl",
        "traces/copy/copy_n4.jsonl",
    ]
    assert contents.by_name() == {"copy_n4": entry}


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(write(tmp_path))
    read: list[str] = []
    for name in ("load_definition", "read_lines"):
        method = getattr(dataset, name)
        monkeypatch.setattr(dataset, name, lambda path, method=method: (read.append(path), method(path))[1])
    catalogue = Catalogue(dataset)
    first = catalogue.read()
    assert len(read) == 3
    assert catalogue.read() == first
    assert len(read) == 3
    example_dataset.write(tmp_path, "workloads/copy/copy_n4.jsonl", "{}\n{}\n")
    assert catalogue.read().entries[0].workloads == 2
    assert read[3:] == ["workloads/copy/copy_n4.jsonl"]


def test_what_is_gone_is_forgotten_and_what_is_broken_is_told(tmp_path: Path) -> None:
    catalogue = Catalogue(Dataset(write(tmp_path)))
    assert len(catalogue.read().entries) == 1
    path = "definitions/copy/copy_n4.json"
    example_dataset.write(tmp_path, path, "{")
    broken = catalogue.read()
    assert broken.entries == ()
    assert broken.problems[0].startswith(path)
    (tmp_path / path).unlink()
    assert catalogue.read().problems == ()
    write(tmp_path)
    assert len(catalogue.read().entries) == 1
