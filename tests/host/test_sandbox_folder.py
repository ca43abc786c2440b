from __future__ import annotations

import os
from pathlib import Path

import pytest

from fib_tools.host.sandbox_folder import make_folder, sweep_folders


def age(folder: Path) -> None:
    os.utime(folder, (1_000_000_000, 1_000_000_000))


def test_a_folder_that_nobody_holds_is_removed_and_one_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, held = make_folder()
    (folder / "solution").mkdir()
    other = tmp_path / "fib-sandbox-is-a-file"
    other.write_text("", encoding="utf-8")
    age(folder)
    sweep_folders()
    assert folder.is_dir()
    os.close(held)  # as the kernel does for a process that is killed
    age(folder)
    sweep_folders()
    assert not folder.exists()
    assert other.exists()


def test_a_folder_that_was_just_made_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, held = make_folder()
    os.close(held)
    sweep_folders()
    assert folder.is_dir()
