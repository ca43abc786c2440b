from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fib_tools.errors import PathError
from fib_tools.host.paths import check_component, check_path, confine, locate, slugify


def test_a_plain_path_is_joined_below_the_root(tmp_path: Path) -> None:
    assert confine(tmp_path, "a", "b/c.json") == tmp_path.resolve() / "a" / "b" / "c.json"


@pytest.mark.parametrize("part", ["..", "a/../../b", "a\\..\\b", "/etc/passwd", "C:\\x", "\\\\host\\share", "a\0b"])
def test_a_part_that_leaves_the_root_is_refused(part: str, tmp_path: Path) -> None:
    with pytest.raises(PathError):
        confine(tmp_path, part)


def test_a_symlink_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(PathError, match="leads out"):
        confine(tmp_path / "root", "link", "secret")


def test_a_symlink_that_stays_inside_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert confine(tmp_path, "link", "x") == tmp_path.resolve() / "real" / "x"


def test_the_root_itself_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    assert confine(tmp_path / "root", "x") == tmp_path.resolve() / "real" / "x"


def test_a_loop_of_symlinks_never_resolves_to_a_path_outside(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    try:
        found = confine(tmp_path, "a", "x")
    except PathError:
        return
    assert found.is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("name", ["gqa_paged_decode_h32_kv8_d128_ps1", "c++", "_x", "v1.0"])
def test_an_ordinary_name_is_returned(name: str) -> None:
    assert check_component(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".git", "-rf", "a/b", "a b", "ä", "a\n", "x" * 201])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(PathError):
        check_component(name)


def test_a_slug_is_lower_case_with_dashes() -> None:
    assert slugify("moonshotai/Kimi-K2 (Instruct)") == "moonshotai-kimi-k2-instruct"


def test_nothing_cannot_be_a_slug() -> None:
    with pytest.raises(PathError):
        slugify("../!")


@given(st.text())
def test_every_slug_is_a_safe_component(text: str) -> None:
    try:
        slug = slugify(text)
    except PathError:
        return
    assert check_component(slug) == slug


def test_a_path_is_located_inside_the_root_however_it_is_spelled(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(root)
    for spelled in (Path("a/b"), root / "a" / "b"):
        assert locate(root, spelled) == root.resolve() / "a" / "b"
    assert locate(tmp_path / "alias", tmp_path / "alias" / "a") == root / "a"


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "..", "a/../../b", "a\0b"])
def test_a_path_that_leads_out_is_not_located(tmp_path: Path, path: str) -> None:
    with pytest.raises(PathError):
        locate(tmp_path, Path(path))


def test_a_path_with_a_nul_is_refused(tmp_path: Path) -> None:
    assert check_path(tmp_path) == tmp_path
    with pytest.raises(PathError, match="NUL"):
        check_path(Path("a\0b"))
