from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.errors import StorageError
from fib_tools.host import folders
from fib_tools.host.folders import replace_folder, stage_folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staged_folder_takes_a_free_place(tmp_path: Path) -> None:
    with stage_folder(tmp_path / "deep" / "out") as staged:
        (staged / "new.txt").write_text("new", encoding="utf-8")
        replace_folder(staged, tmp_path / "deep" / "out")
    assert _names(tmp_path / "deep") == ["out"]
    assert _names(tmp_path / "deep" / "out") == ["new.txt"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_staged_folder_replaces_another_as_a_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    can_exchange: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    if not can_exchange:
        monkeypatch.setattr(folders, "is_linux", lambda: False)
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old", encoding="utf-8")
    with stage_folder(target) as staged:
        (staged / "new.txt").write_text("new", encoding="utf-8")
        replace_folder(staged, target)
    assert _names(tmp_path) == ["out"]
    assert _names(target) == ["new.txt"]


def test_what_was_not_put_in_place_is_removed(tmp_path: Path) -> None:
    with stage_folder(tmp_path / "out") as staged:
        (staged / "new.txt").write_text("new", encoding="utf-8")
        assert len(_names(tmp_path)) == 1
    assert _names(tmp_path) == []


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError), stage_folder(tmp_path / "file" / "out"):
        pass
