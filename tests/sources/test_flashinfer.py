from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fib_tools.errors import SourceError
from fib_tools.sources.flashinfer import Parameter, TracedApi, get_package, load_traced_apis

REAL_APIS = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except ImportError:
        print("skip", module)
from flashinfer import api_logging
registered = {function for function, _, _ in api_logging._TRACE_REGISTRY}
for function in registered | set(api_logging._TRACE_DISPATCHERS):
    print("api", api_logging._trace_fi_api_for(function), function in api_logging._TRACE_DISPATCHERS)
"""


def test_a_traced_api_is_described_whole(flashinfer_root: Path, line_of: Callable[[Path, str], int]) -> None:
    traced = load_traced_apis(flashinfer_root)
    assert (traced.version, traced.commit) == ("9.9.9", "abc123")
    assert traced.get("flashinfer.norm.rmsnorm") == TracedApi(
        fi_api="flashinfer.norm.rmsnorm",
        module="flashinfer.norm",
        name="rmsnorm",
        file="flashinfer/norm.py",
        line=line_of(flashinfer_root / "flashinfer/norm.py", "def rmsnorm"),
        template="rmsnorm_trace",
        parameters=(
            Parameter(name="input", kind="positional", annotation="torch.Tensor"),
            Parameter(name="weight", kind="positional"),
            Parameter(name="sizes", kind="*"),
            Parameter(name="eps", kind="keyword", annotation="float", default="1e-06"),
            Parameter(name="out", kind="keyword", default="None"),
            Parameter(name="options", kind="**"),
        ),
    )


def test_functions_and_methods_under_either_decorator_are_found(flashinfer_root: Path) -> None:
    traced = load_traced_apis(flashinfer_root)
    found = [(api.fi_api, api.template, api.is_dispatcher, api.is_experimental) for api in traced.apis]
    assert found == [
        ("flashinfer.decode.BatchDecodeWrapper.plan", "plan_trace", False, False),
        ("flashinfer.decode.BatchDecodeWrapper.run", "decode_trace", False, False),
        ("flashinfer.moe.fused", "fused_trace", True, True),
        ("flashinfer.norm.rmsnorm", "rmsnorm_trace", False, False),
        ("flashinfer.xqa.xqa", "xqa_trace_dispatch", True, False),
    ]


def test_an_api_that_moved_keeps_its_name_and_tells_where_it_is(flashinfer_root: Path) -> None:
    api = load_traced_apis(flashinfer_root).get("flashinfer.moe.fused")
    assert (api.module, api.file) == ("flashinfer.moe._impl", "flashinfer/moe/_impl.py")


def test_published_functions_without_a_template_are_listed(flashinfer_root: Path) -> None:
    assert [function.fi_api for function in load_traced_apis(flashinfer_root).untraced] == [
        "flashinfer.norm.explicitly_untraced",
        "flashinfer.norm.untraced",
    ]


def test_a_file_that_cannot_be_parsed_is_named(flashinfer_root: Path) -> None:
    (flashinfer_root / "flashinfer" / "broken.py").write_text("@flashinfer_api(\n", encoding="utf-8")
    traced = load_traced_apis(flashinfer_root)
    assert traced.unreadable == ("flashinfer/broken.py",)
    assert len(traced.apis) == 5


@pytest.mark.parametrize("layout", ["flashinfer", ""])
def test_the_package_itself_and_a_clone_of_it_are_found(flashinfer_root: Path, layout: str) -> None:
    assert get_package(flashinfer_root / layout).folder == flashinfer_root / "flashinfer"


def test_an_unknown_api_is_refused(flashinfer_root: Path) -> None:
    traced = load_traced_apis(flashinfer_root)
    assert traced.find("flashinfer.norm.private") is None
    with pytest.raises(SourceError, match=r"flashinfer\.norm\.private.*flashinfer 9\.9\.9"):
        traced.get("flashinfer.norm.private")


def test_a_folder_without_flashinfer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no flashinfer package here"):
        load_traced_apis(tmp_path)


def test_a_second_reading_comes_from_the_cache(
    flashinfer_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_traced_apis(flashinfer_root, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("fib_tools.sources.flashinfer._scan", None)
    assert load_traced_apis(flashinfer_root, cache_dir=tmp_path / "cache") == first


def test_a_changed_source_is_read_anew(flashinfer_root: Path, tmp_path: Path) -> None:
    load_traced_apis(flashinfer_root, cache_dir=tmp_path / "cache")
    (flashinfer_root / "flashinfer" / "xqa.py").unlink()
    traced = load_traced_apis(flashinfer_root, cache_dir=tmp_path / "cache")
    assert traced.find("flashinfer.xqa.xqa") is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"version": "9.9.9"}', b"\xff"])
def test_a_corrupt_cache_is_rebuilt(flashinfer_root: Path, tmp_path: Path, text: bytes) -> None:
    first = load_traced_apis(flashinfer_root, cache_dir=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(text)
    assert load_traced_apis(flashinfer_root, cache_dir=tmp_path / "cache") == first
    assert json.loads(kept.read_bytes())["version"] == "9.9.9"


def test_a_cache_that_cannot_be_kept_does_no_harm(flashinfer_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert len(load_traced_apis(flashinfer_root, cache_dir=tmp_path / "file" / "cache").apis) == 5


def test_the_installed_flashinfer_is_read_as_it_describes_itself_at_run_time(tmp_path: Path) -> None:
    traced = load_traced_apis(cache_dir=tmp_path)
    modules = sorted({api.module for api in traced.apis})
    command = [sys.executable, "-c", REAL_APIS, json.dumps(modules)]
    lines = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.splitlines()
    skipped = {line.split()[1] for line in lines if line.startswith("skip ")}
    expected = {(line.split()[1], line.split()[2] == "True") for line in lines if line.startswith("api ")}
    found = {(api.fi_api, api.is_dispatcher) for api in traced.apis if api.module not in skipped}
    assert found == expected
    assert len(found) > 200
