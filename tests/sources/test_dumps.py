from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fib_tools.errors import SourceError
from fib_tools.model.report import Finding
from fib_tools.sources.dumps import RawDump, load_raw_dumps


def test_dumps_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "rank1").mkdir()
    (tmp_path / "rmsnorm_h64.json").write_text('{"name": "rmsnorm_h64"}', encoding="utf-8")
    (tmp_path / "rank1" / "gemm.json").write_text('{"name": "gemm", "extra": [1]}', encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no dump", encoding="utf-8")
    assert list(load_raw_dumps(tmp_path)) == [
        RawDump(
            path=Path("rank1/gemm.json"),
            data={"name": "gemm", "extra": [1]},
            sha256=hashlib.sha256(b'{"name": "gemm", "extra": [1]}').hexdigest(),
        ),
        RawDump(
            path=Path("rmsnorm_h64.json"),
            data={"name": "rmsnorm_h64"},
            sha256=hashlib.sha256(b'{"name": "rmsnorm_h64"}').hexdigest(),
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b'{"name": ', "not JSON"),
        (b"[]", "is a list"),
        (b"\xff", "not JSON"),
        (b'{"a": 1, "a": 1}', "stands twice"),
        (b" " * (5 << 20), "more than"),
    ],
)
def test_a_broken_dump_is_a_finding_and_the_others_are_read(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "broken.json").write_bytes(text)
    (tmp_path / "whole.json").write_bytes(b"{}")
    broken, whole = load_raw_dumps(tmp_path)
    assert isinstance(broken, Finding)
    assert (broken.check, broken.where) == ("dump.unreadable", "broken.json")
    assert message in broken.message
    assert isinstance(whole, RawDump)


def test_a_link_and_a_folder_are_no_dumps(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere.json")
    findings = [found for found in load_raw_dumps(tmp_path) if isinstance(found, Finding)]
    assert [(finding.where, finding.message.partition(" (")[0]) for finding in findings] == [
        ("folder.json", "not a regular file"),
        ("link.json", "it is a link"),
    ]


def test_an_empty_folder_has_no_dumps(tmp_path: Path) -> None:
    assert list(load_raw_dumps(tmp_path)) == []


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder"):
        list(load_raw_dumps(tmp_path / "missing"))
