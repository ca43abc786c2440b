from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fib_tools.errors import DocumentTooLargeError, FormatError, StorageError
from fib_tools.host.files import read_limited, sweep_temporaries, temporary_sibling, write_atomically


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_written_bytes_replace_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"a.json": b"new"}


def test_the_mode_comes_from_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_refusing_disk_leaves_the_old_file_and_no_temporary(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError) as caught:
        write_atomically(path, b"new")
    assert caught.value.where == str(path)
    assert caught.value.todo
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"a": b"old"}


def test_an_interrupt_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_a_folder(path: str) -> None:
    with pytest.raises(StorageError, match="a folder has this one"):
        write_atomically(Path(path), b"x")


def test_a_missing_folder_is_a_storage_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create the folder first"):
        write_atomically(tmp_path / "missing" / "a", b"")


def test_a_symlink_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


def test_a_file_at_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert read_limited(tmp_path / "a", 4) == b"1234"
    with pytest.raises(DocumentTooLargeError):
        read_limited(tmp_path / "a", 3)


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(FormatError):
            read_limited(path, 10)


def test_only_temporaries_of_dead_runs_are_swept(tmp_path: Path) -> None:
    ours = temporary_sibling(tmp_path / "x")
    stale = tmp_path / f".fib-tmp-{dead_pid()}-0123456789abcdef"
    stale_folder = tmp_path / f".fib-tmp-{dead_pid()}-00"
    foreign = tmp_path / ".fib-tmp-notes"
    for path in (ours, stale, foreign):
        path.write_bytes(b"")
    (stale_folder / "deep").mkdir(parents=True)
    assert set(sweep_temporaries(tmp_path)) == {stale, stale_folder}
    assert set(tmp_path.iterdir()) == {ours, foreign}
