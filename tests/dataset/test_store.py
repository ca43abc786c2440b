from __future__ import annotations

from pathlib import Path

import pytest

from example_dataset import SOLUTION, write
from fib_tools.dataset.layout import Kind, Location
from fib_tools.dataset.store import Dataset, Written, count_documents
from fib_tools.errors import DocumentTooLargeError, FormatError, PathError, RequestError
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.trace import Trace
from fib_tools.model.workload import Workload
from fib_tools.op_types.registry import get_kernel_type

NORM = get_kernel_type("rmsnorm").build({"hidden_size": 64})


def workload(uuid: str) -> Trace:
    return Trace(definition=NORM.name, workload=Workload(axes={"batch_size": 1}, inputs={}, uuid=uuid))


def test_a_written_definition_is_read_back_and_a_second_write_changes_nothing(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "new")
    assert dataset.write_definition(NORM) is Written.CREATED
    before = (tmp_path / "new/definitions/rmsnorm/rmsnorm_h64.json").read_bytes()
    assert before == canonical_bytes(NORM)
    assert dataset.write_definition(NORM) is Written.UNCHANGED
    assert dataset.find_definition(NORM.name) == NORM
    assert dataset.find_definition("other") is None
    assert dataset.load_definitions() == ({NORM.name: NORM}, ())


def test_a_definition_that_stands_there_gains_tags_and_loses_none(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.write_definition(NORM.model_copy(update={"tags": ["model:a", "tp:8"]}))
    assert dataset.write_definition(NORM.model_copy(update={"tags": ["model:b", "tp:2"]})) is Written.UPDATED
    found = dataset.find_definition(NORM.name)
    assert found is not None
    assert found.tags == ["model:a", "model:b", "tp:2", "tp:8"]


def test_another_definition_of_the_same_name_is_never_overwritten(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.write_definition(NORM)
    other = get_kernel_type("rmsnorm").build({"hidden_size": 64, "eps": 1e-5})
    with pytest.raises(RequestError, match="stands there"):
        dataset.write_definition(other)
    assert dataset.find_definition(NORM.name) == NORM


def test_broken_files_come_back_as_errors_beside_the_good_ones(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.write_definition(NORM)
    (tmp_path / "definitions/rmsnorm/broken.json").write_text("{", encoding="utf-8")
    loaded, broken = dataset.load_definitions()
    assert list(loaded) == [NORM.name]
    assert [error.where for error in broken] == ["definitions/rmsnorm/broken.json:1:2"]


def test_a_workload_file_is_ordered_by_uuid_and_of_one_definition(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    assert dataset.write_workloads("rmsnorm", [workload("b"), workload("a")]) is Written.CREATED
    assert dataset.write_workloads("rmsnorm", [workload("a"), workload("b")]) is Written.UNCHANGED
    assert dataset.write_workloads("rmsnorm", [workload("a")]) is Written.UPDATED
    with pytest.raises(RequestError, match="one Definition"):
        dataset.write_workloads("rmsnorm", [workload("a"), workload("b").model_copy(update={"definition": "other"})])


def test_a_link_out_of_the_dataset_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}", encoding="utf-8")
    folder = tmp_path / "set/definitions/rmsnorm"
    folder.mkdir(parents=True)
    (folder / "x.json").symlink_to(tmp_path / "secret")
    with pytest.raises(PathError):
        Dataset(tmp_path / "set").read("definitions/rmsnorm/x.json")


def test_a_huge_document_and_a_missing_one_are_errors_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "definitions/rmsnorm"
    folder.mkdir(parents=True)
    with (folder / "big.json").open("wb") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(DocumentTooLargeError):
        Dataset(tmp_path).read("definitions/rmsnorm/big.json")
    with pytest.raises(FormatError):
        Dataset(tmp_path).read("definitions/rmsnorm/none.json")


def test_only_an_existing_dataset_can_be_opened(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RequestError, match="no dataset"):
            Dataset.open(folder)
    (tmp_path / "definitions").mkdir()
    assert Dataset.open(tmp_path).root == tmp_path


def test_files_are_counted_by_kind_and_strays_apart(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.write_definition(NORM)
    dataset.write_workloads("rmsnorm", [workload("a")])
    (tmp_path / "definitions/stray.txt").touch()
    assert count_documents(dataset.files()) == {"definition": 1, "stray": 1, "workloads": 1}


def test_half_written_files_of_a_killed_run_are_swept_away(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.write_definition(NORM)
    stale = tmp_path / "definitions/rmsnorm/.fib-tmp-999999999-00ff"
    stale.touch()
    dataset.sweep()
    assert not stale.exists()
    assert dataset.find_definition(NORM.name) == NORM


def test_a_file_whose_name_is_no_text_is_listed_without_a_place(tmp_path: Path) -> None:
    folder = tmp_path / "definitions/rmsnorm"
    folder.mkdir(parents=True)
    (folder / b"\xff.json".decode("utf-8", "surrogateescape")).write_text("{}", encoding="utf-8")
    (file,) = Dataset(tmp_path).files()
    assert (file.relative, file.location) == (r"definitions/rmsnorm/\udcff.json", None)
    assert Dataset(tmp_path).load_definitions() == ({}, ())


def test_nothing_is_swept_behind_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere/rmsnorm"
    elsewhere.mkdir(parents=True)
    (elsewhere / ".fib-tmp-999999999-00ff").touch()
    root = tmp_path / "set"
    root.mkdir()
    (root / "definitions").symlink_to(elsewhere.parent)
    Dataset(root).sweep()
    assert (elsewhere / ".fib-tmp-999999999-00ff").exists()


def test_workloads_and_solutions_are_loaded_in_order_and_evidence_alone_is_no_dataset(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    (tmp_path / "evidence").mkdir()
    with pytest.raises(RequestError, match="there is no dataset"):
        Dataset.open(tmp_path)
    assert dataset.load_workloads("rmsnorm", NORM.name) == ()
    assert dataset.load_solutions("rmsnorm", NORM.name) == ()
    dataset.write_workloads("rmsnorm", [workload("b"), workload("a")])
    assert [each.uuid for each in dataset.load_workloads("rmsnorm", NORM.name)] == ["a", "b"]
    for author, name in (("b", "one"), ("a", "two")):
        write(
            tmp_path,
            f"solutions/{author}/rmsnorm/{NORM.name}/{name}.json",
            {**SOLUTION, "name": name, "author": author, "definition": NORM.name},
        )
    assert [(each.author, each.name) for each in dataset.load_solutions("rmsnorm", NORM.name)] == [
        ("a", "two"),
        ("b", "one"),
    ]
    (tmp_path / f"workloads/rmsnorm/{NORM.name}.jsonl").write_bytes(b'{"definition": ""}\n')
    with pytest.raises(FormatError, match="Trace"):
        dataset.load_workloads("rmsnorm", NORM.name)
    (tmp_path / f"workloads/rmsnorm/{NORM.name}.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(FormatError, match="not UTF-8"):
        dataset.load_workloads("rmsnorm", NORM.name)
    (tmp_path / f"workloads/rmsnorm/{NORM.name}.jsonl").write_bytes(b'\n\n{"definition": }\n')
    with pytest.raises(FormatError, match=rf"{NORM.name}.jsonl:3:16"):
        dataset.load_workloads("rmsnorm", NORM.name)


def test_lines_end_at_newlines_only_and_blank_ones_do_not_count(tmp_path: Path) -> None:
    path = "traces/someone/copy/copy_n4.jsonl"
    write(tmp_path, path, '{"a": "\u2028"}\n\n{}\n'.encode())
    assert Dataset(tmp_path).read_lines(path) == ['{"a": "\u2028"}', "{}"]


def test_a_blob_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    at = Location(kind=Kind.BLOB, op_type="copy", definition="copy_n4", file="0a.safetensors")
    dataset = Dataset(tmp_path)
    assert [dataset.write_blob(at, b"one"), dataset.write_blob(at, b"one")] == [Written.CREATED, Written.UNCHANGED]
    with pytest.raises(RequestError, match="another blob stands there"):
        dataset.write_blob(at, b"two")
    assert (tmp_path / str(at)).read_bytes() == b"one"


def test_sweeping_removes_what_killed_runs_left_in_every_folder(tmp_path: Path) -> None:
    folders = (
        "definitions/copy",
        "workloads/copy",
        "traces/someone/copy",
        "evidence/0a",
        "blob/workloads/copy/copy_n4",
    )
    left = [f"{folder}/.fib-tmp-999999999-0a" for folder in folders]
    for path in left:
        write(tmp_path, path, b"half")
    Dataset(tmp_path).sweep()
    assert [path for path in left if (tmp_path / path).exists()] == []
