from __future__ import annotations

import re
from pathlib import Path

import pytest

from fib_tools.sources.packages import SourceFile, find_package, list_files, parse_files, read_files


def make_package(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", **texts}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("layout", ["", "acme", "python/acme", "src/acme"])
def test_a_package_is_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "acme"
    folder = make_package(root / layout)
    package = find_package("acme", root)
    assert package is not None
    assert package.folder == folder


def test_a_folder_of_another_name_is_not_the_package(tmp_path: Path) -> None:
    make_package(tmp_path / "other")
    assert find_package("acme", tmp_path) is None
    assert find_package("acme", tmp_path / "other") is None


def test_an_installed_package_is_found_without_importing_it() -> None:
    package = find_package("pydantic")
    assert package is not None
    assert (package.folder / "main.py").is_file()
    assert find_package("no_such_package_at_all") is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('__version__ = "1.2.3"', "1.2.3"),
        ("__version__ = version = '0.5.23'", "0.5.23"),
        ("__version__: str\n__version__ = '4'", "4"),
        ("# __version__ = '9'", "unknown"),
    ],
)
def test_the_version_is_what_the_source_says(tmp_path: Path, text: str, version: str) -> None:
    package = find_package("acme", make_package(tmp_path / "acme", _version=text))
    assert package is not None
    assert package.version == version


def test_a_wheels_metadata_or_a_clones_version_file_tells_the_version(tmp_path: Path) -> None:
    make_package(tmp_path / "acme")
    (tmp_path / "version.txt").write_text("2.0\n", encoding="utf-8")
    package = find_package("acme", tmp_path)
    assert package is not None
    assert package.version == "2.0"
    (tmp_path / "acme-3.1.dist-info").mkdir()
    package = find_package("acme", tmp_path)
    assert package is not None
    assert package.version == "3.1"


def test_the_fingerprint_changes_with_every_python_file(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "acme", a="x = 1")

    def fingerprint() -> str:
        package = find_package("acme", folder)
        assert package is not None
        return package.fingerprint

    seen = [fingerprint()]
    (folder / "notes.txt").write_text("", encoding="utf-8")
    assert fingerprint() == seen[0]
    (folder / "a.py").write_text("x = 22", encoding="utf-8")
    seen.append(fingerprint())
    (folder / "b.py").write_text("", encoding="utf-8")
    seen.append(fingerprint())
    (folder / "b.py").unlink()
    (folder / "c.py").write_text("", encoding="utf-8")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "acme")
    (tmp_path / "secret.py").write_text("x = 1", encoding="utf-8")
    (folder / "link.py").symlink_to(tmp_path / "secret.py")
    (folder / "loop").symlink_to(folder)
    package = find_package("acme", folder)
    assert package is not None
    assert [(file.path, file.module, file.is_package) for file in list_files(package)] == [
        ("acme/__init__.py", "acme", True)
    ]


@pytest.mark.parametrize("text", ["def f(", "x = 1\0", "(" * 100_000, "-" * 1_000_000 + "1", "'\\d'"])
def test_hostile_source_is_parsed_or_named_but_never_crashes(tmp_path: Path, text: str) -> None:
    folder = make_package(tmp_path / "acme", hostile=text)
    package = find_package("acme", folder)
    assert package is not None
    parsed = {file.module: tree is not None for file, tree in parse_files(package, list_files(package))}
    assert parsed == {"acme": True, "acme.hostile": text == "'\\d'"}


def test_only_files_with_the_pattern_are_parsed(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "acme", a="import torch", b="import os")
    package = find_package("acme", folder)
    assert package is not None
    found = [file.module for file, _ in parse_files(package, list_files(package), containing=re.compile(b"torch"))]
    assert found == ["acme.a"]


def test_a_huge_or_missing_file_is_not_read(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "acme", huge="#" * (5 << 20))
    package = find_package("acme", folder)
    assert package is not None
    files = [*list_files(package), SourceFile(path="acme/gone.py", module="acme.gone", is_package=False)]
    assert [tree is None for _, tree in parse_files(package, files)] == [False, True, True]
    assert list(read_files(package, files)) == [b""]
