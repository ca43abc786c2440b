from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.errors import RequestError
from fib_tools.host.env import (
    cache_dir,
    child_environment,
    find_nvcc,
    inherited_environment,
    kernel_caches,
    proxy_environment,
    read_gpu_settings,
    read_secret,
    read_settings,
    redact,
    redact_command,
)

HF_TOKEN = "hf_" + "abcdefghijklmnop"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "FIB_OFFLINE", "FIB_WORKSPACE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = read_settings()
    assert settings.hf_endpoint == "https://huggingface.co"
    assert (settings.offline, settings.workspace, settings.no_color) == (False, None, False)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "FIB_OFFLINE"])
def test_either_variable_switches_the_network_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert read_settings().offline


def test_an_offline_variable_of_zero_leaves_the_network_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not read_settings().offline


def test_settings_do_not_hold_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    assert HF_TOKEN not in repr(read_settings())
    assert read_secret("HF_TOKEN") == HF_TOKEN


def test_the_cache_follows_xdg_if_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "fib-tools"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "fib-tools"


def test_a_child_gets_no_secrets_and_another_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    monkeypatch.setenv("SOME_VARIABLE", "x")
    extra = {"OMP_NUM_THREADS": "1", "ANTHROPIC_API_KEY": "x"}
    environment = child_environment(home=tmp_path, extra=extra)
    assert environment["HOME"] == str(tmp_path)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert not {"HF_TOKEN", "SOME_VARIABLE", "ANTHROPIC_API_KEY"} & environment.keys()


def test_proxies_are_read_in_both_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert proxy_environment()["https_proxy"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"token {HF_TOKEN}.", "token ***."),
        ("ghp_" + "a" * 36, "***"),
        ("github_pat_" + "a1_" * 9, "***"),
        ("sk-ant-" + "api03-abc_def-123", "***"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("https://user:pass@example.org/x", "https://***@example.org/x"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("the half_life of hf_hub", "the half_life of hf_hub"),
    ],
)
def test_secrets_are_masked_by_their_shape(text: str, masked: str) -> None:
    assert redact(text) == masked


def test_the_value_of_a_secret_variable_is_masked_whatever_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "correct horse")
    assert redact("login with correct horse failed") == "login with *** failed"


def test_a_variable_about_tokenizers_is_no_secret(tmp_path: Path) -> None:
    extra = {"TOKENIZERS_PARALLELISM": "false"}
    assert child_environment(home=tmp_path, extra=extra)["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["python", "train.py", "--steps", "5"], "python train.py --steps 5"),
        (["run", "--token", "abc", "--steps", "5"], "run --token *** --steps 5"),
        (["run", "--api-key=abc", "x"], "run --api-key=*** x"),
        (["env", "HF_TOKEN=abc", "LANG=C", "run"], "env HF_TOKEN=*** LANG=C run"),
        (["run", "tokens", "keys.txt"], "run tokens keys.txt"),
        (["run", "--token", "--key", "x"], "run --token *** x"),
        (["curl", "https://me:pass@example.org", HF_TOKEN], "curl https://***@example.org ***"),
    ],
)
def test_a_command_is_shown_without_its_secrets(args: list[str], shown: str) -> None:
    assert redact_command(args) == shown


def test_what_the_environment_says_about_gpus_is_read_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("CUDA_VISIBLE_DEVICES", "FIB_PRETEND_GPUS", "FIB_GPU_LOCK_DIR", "FIB_GPU_LEASE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    nothing = read_gpu_settings()
    assert (nothing.visible, nothing.pretend, nothing.lock_folder, nothing.lease) == (None, None, None, None)
    for name, value in zip(names, ("", "8", str(tmp_path), "ticket"), strict=True):
        monkeypatch.setenv(name, value)
    said = read_gpu_settings()
    assert (said.visible, said.pretend, said.lock_folder, said.lease) == ("", "8", tmp_path, "ticket")


def test_a_command_of_the_users_own_inherits_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    environment = inherited_environment({"CUDA_VISIBLE_DEVICES": ""})
    assert (environment["HF_TOKEN"], environment["CUDA_VISIBLE_DEVICES"]) == (HF_TOKEN, "")


def test_a_relative_folder_of_locks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", "locks")
    with pytest.raises(RequestError, match="the relative path 'locks'"):
        read_gpu_settings()


def test_the_compiler_is_found_where_builders_of_extensions_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for folder in ("path", "toolkit/bin"):
        (tmp_path / folder).mkdir(parents=True)
    toolkit = tmp_path / "toolkit"
    monkeypatch.setenv("CUDA_PATH", str(toolkit))
    assert find_nvcc() is None
    for at in (toolkit / "bin", tmp_path / "path"):
        (at / "nvcc").touch(mode=0o755)
        assert find_nvcc() == str(at / "nvcc"), "PATH comes first"


def test_kernel_libraries_keep_what_they_compile_where_they_are_told_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TVM_FFI_CACHE_DIR", str(tmp_path / "ffi"))
    monkeypatch.delenv("FLASHINFER_WORKSPACE_BASE", raising=False)
    variables, folders = kernel_caches()
    assert variables == {"FLASHINFER_WORKSPACE_BASE": str(tmp_path), "TVM_FFI_CACHE_DIR": str(tmp_path / "ffi")}
    assert folders == (tmp_path / ".cache/flashinfer", tmp_path / "ffi")
