"""What comes in wrong ends with exit status 2, a message that names it, and nothing written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.cli.app import main
from fib_tools.host.locks import hold
from fib_tools.phases.context import Context
from fib_tools.phases.onboard import onboard_model
from fib_tools.phases.request import ModelOptions
from tiny_model import CONFIG, snapshot

Run = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that has to be refused; returns what it said."""

    def run(*arguments: str, workspace: Path = tmp_path / "work") -> str:
        status = main([*arguments, "--workspace", str(workspace), "--offline", "--quiet"])
        captured = capsys.readouterr()
        assert status == 2, captured.err
        assert captured.out == ""
        assert "error: " in captured.err
        return captured.err

    return run


def assert_nothing_written(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert not work.exists() or not snapshot(work)
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "config.json"}


def test_an_unknown_model_is_answered_with_the_nearest_names(refused: Run, tmp_path: Path) -> None:
    said = refused("onboard", "kimi-k3")
    assert "unknown model 'kimi-k3'" in said
    assert "did you mean kimi-k2" in said
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "org/../name", "a\0b", "..", "org/--x", "a b", "", "\udcff", "x" * 5000]
)
def test_a_name_that_is_no_model_is_refused(refused: Run, tmp_path: Path, name: str) -> None:
    assert "unknown model" in refused("onboard", name)
    assert_nothing_written(tmp_path)


def test_a_model_that_only_the_hub_knows_is_refused_offline(refused: Run) -> None:
    said = refused("onboard", "some-org/some-model-9b")
    assert "some-org/some-model-9b" in said
    assert "pass --config FILE, or go online" in said


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "org/.."])
@pytest.mark.usefixtures("quick_gate")
def test_a_name_given_with_a_config_never_leaves_the_workspace(
    context: Context, write_config: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    config = write_config()
    status = main(
        ["onboard", name, "--config", str(config), "--workspace", str(context.workspace.root), "--op-types", "rmsnorm"]
    )
    assert status in {0, 2}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "work"}
    written = set(snapshot(tmp_path)) - {"config.json"}
    assert all(path.startswith("work/") for path in written)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "sixty-four"}, "hidden_size"),
        ({"hidden_size": [64]}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"head_dim": 0}, "head_dim"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_its_field(
    refused: Run, tmp_path: Path, write_config: Callable[..., Path], changes: dict[str, Any], said: str
) -> None:
    assert said in refused("onboard", "tiny", "--config", str(write_config(**changes)))
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(CONFIG)[:-40], "not JSON"),
        ("hidden_size: 64", "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "a config is a JSON object, this is a list"),
        ('{"hidden_size": NaN}', "not a number a config can mean"),
        ('{"hidden_size": 64, "hidden_size": 65}', "twice"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper"),
    ],
)
def test_a_file_that_is_no_config_is_refused(refused: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    message = refused("onboard", "tiny", "--config", str(tmp_path / "config.json"))
    assert said in message
    assert "config.json" in message
    assert_nothing_written(tmp_path)


def test_a_config_of_50_megabytes_is_not_read(refused: Run, tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(50 << 20)
    assert "more than 2097152 bytes" in refused("onboard", "tiny", "--config", str(tmp_path / "config.json"))
    assert_nothing_written(tmp_path)


def test_a_config_that_is_not_there_is_refused(refused: Run, tmp_path: Path) -> None:
    assert "cannot read" in refused("onboard", "tiny", "--config", str(tmp_path / "none.json"))
    assert "not a regular file" in refused("onboard", "tiny", "--config", str(tmp_path))
    assert "holds a NUL" in refused("onboard", "tiny", "--config", "a\0b")
    assert "holds a NUL" in refused("onboard", "tiny", "--sglang-path", "a\0b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tp-list", "3"), "2 query heads cannot be cut by attention TP 3"),
        (("--tp-list", "0"), "tp_list cannot be 0"),
        (("--tp-list", "1,5000"), "tp_list cannot be 5000: input should be less than or equal to 1024"),
        (("--ep-list", "-1"), "ep_list cannot be -1"),
        (("--page-sizes", "0"), "page_sizes cannot be 0"),
        (("--page-sizes", "100000"), "input should be less than or equal to 4096"),
        (("--tp-list", "two"), "'two' is not a list of whole numbers such as 2,4"),
        (("--tp-list", ","), "--tp-list"),
        (("--hardware", "X9"), "no GPU 'X9' in the sgl-cookbook"),
        (("--op-types", "nope"), "no op_type 'nope'"),
        (("--phases", "3"), "'tiny' is not onboarded here"),
        (("--phases", "9"), "phases cannot be 9"),
    ],
)
@pytest.mark.usefixtures("untraced")
def test_an_option_that_cannot_be_is_refused(
    refused: Run, tmp_path: Path, write_config: Callable[..., Path], options: tuple[str, ...], said: str
) -> None:
    message = refused("onboard", "tiny", "--config", str(write_config()), *options)
    assert said in message
    assert "next: " in message
    assert_nothing_written(tmp_path)


def test_a_gpu_that_the_model_is_not_served_on_is_refused_with_those_it_is(refused: Run) -> None:
    said = refused("inventory", "kimi-k2", "--hardware", "L40S")
    assert "L40S" in said
    assert "H200" in said


@pytest.mark.usefixtures("untraced")
def test_a_gpu_is_found_in_any_case(
    context: Context,
    write_config: Callable[..., Path],
) -> None:
    result = onboard_model(context, "tiny", ModelOptions(config=write_config(), hardware="h200"), phases=(1,))
    assert result.manifest.kernels


@pytest.mark.parametrize("verb", ["onboard", "inventory", "define"])
def test_a_workspace_that_cannot_be_made_is_a_storage_error(refused: Run, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    said = refused(verb, "kimi-k2", workspace=tmp_path / "file")
    assert "cannot write" in said
    assert "file" in said
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_workspace_is_a_storage_error(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o500)
    assert "no permission" in refused("onboard", "kimi-k2")


@pytest.mark.usefixtures("quick_gate")
def test_a_workspace_behind_a_link_is_the_users_own_choice(write_config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "elsewhere")
    command = ["onboard", "tiny", "--config", str(write_config()), "--workspace", str(tmp_path / "work")]
    assert main([*command, "--op-types", "rmsnorm", "--quiet"]) == 0
    assert (tmp_path / "elsewhere" / "flashinfer-trace" / "definitions" / "rmsnorm" / "rmsnorm_h64.json").is_file()


def test_a_name_too_long_for_the_system_is_refused(refused: Run, tmp_path: Path) -> None:
    for verb in (("status",), ("discover",), ("onboard", "kimi-k2")):
        assert "too long" in refused(*verb, workspace=tmp_path / ("a" * 5000))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"format": 2, "model": "tiny"}', "format"),
        ('{"format": 1, "model": "tiny", "unknown": 1}', "unknown"),
        ("[]", "not a valid Manifest"),
    ],
)
@pytest.mark.usefixtures("untraced")
def test_a_manifest_that_is_none_stops_the_run_and_stays(
    refused: Run,
    tmp_path: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    text: str,
    said: str,
) -> None:
    path = tmp_path / "work" / "onboard_tiny_2026-01-02.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    message = refused("onboard", "tiny", "--config", str(write_config()))
    assert said in message
    assert "onboard_tiny_2026-01-02.json" in message
    assert "move that file away" in message
    assert path.read_text(encoding="utf-8") == text
    assert main(["status", "--workspace", str(path.parent)]) == 1
    assert "unreadable: onboard_tiny_2026-01-02.json" in capsys.readouterr().out


@pytest.mark.usefixtures("untraced")
def test_a_manifest_that_is_a_link_out_of_the_workspace_is_refused(
    refused: Run,
    tmp_path: Path,
    write_config: Callable[..., Path],
) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}", encoding="utf-8")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "onboard_tiny_2026-01-02.json").symlink_to(outside)
    assert "leads out of the folder" in refused("onboard", "tiny", "--config", str(write_config()))
    assert outside.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("linked", ["file", "folder"])
@pytest.mark.usefixtures("quick_gate")
def test_a_link_out_of_the_dataset_is_not_written_through(
    refused: Run, tmp_path: Path, write_config: Callable[..., Path], linked: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "rmsnorm_h64.json").write_text("mine", encoding="utf-8")
    definitions = tmp_path / "work" / "flashinfer-trace" / "definitions"
    definitions.mkdir(parents=True)
    if linked == "folder":
        (definitions / "rmsnorm").symlink_to(outside)
    else:
        (definitions / "rmsnorm").mkdir()
        (definitions / "rmsnorm" / "rmsnorm_h64.json").symlink_to(outside / "rmsnorm_h64.json")
    said = refused("onboard", "tiny", "--config", str(write_config()), "--op-types", "rmsnorm")
    assert "leads out of the folder" in said
    assert snapshot(outside) == {"rmsnorm_h64.json": b"mine"}


@pytest.mark.usefixtures("quick_gate")
def test_a_broken_file_in_the_place_of_a_definition_is_not_overwritten(
    refused: Run,
    tmp_path: Path,
    write_config: Callable[..., Path],
) -> None:
    broken = tmp_path / "work" / "flashinfer-trace" / "definitions" / "rmsnorm" / "rmsnorm_h64.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{", encoding="utf-8")
    said = refused("onboard", "tiny", "--config", str(write_config()), "--op-types", "rmsnorm")
    assert "the file in the place of 'rmsnorm_h64' holds no Definition" in said
    assert "definitions/rmsnorm/rmsnorm_h64.json" in said
    assert broken.read_text(encoding="utf-8") == "{"


@pytest.mark.parametrize("call", ["fsync", "open"])
@pytest.mark.usefixtures("quick_gate")
def test_a_full_disk_leaves_nothing_half_written(
    refused: Run,
    tmp_path: Path,
    write_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    config = write_config()
    real: Callable[..., Any] = getattr(os, call)
    calls = iter(range(10_000))

    def fail(*arguments: Any, **options: Any) -> Any:
        # the first writes are those of the lock's holder and the manifest
        if next(calls) >= 8:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(f"fib_tools.host.files.os.{call}", fail)
        said = refused("onboard", "tiny", "--config", str(config), "--op-types", "rmsnorm,gemm,sampling")
    assert "No space left on device" in said
    left = snapshot(tmp_path / "work")
    assert not [name for name in left if ".fib-tmp" in name]
    assert all(json.loads(content) for content in left.values())
    command = ["onboard", "tiny", "--config", str(config), "--workspace", str(tmp_path / "work")]
    assert main([*command, "--op-types", "rmsnorm,gemm,sampling", "--quiet"]) == 0
    resumed = snapshot(tmp_path / "work" / "flashinfer-trace")
    fresh = ["onboard", "tiny", "--config", str(config), "--workspace", str(tmp_path / "fresh")]
    assert main([*fresh, "--op-types", "rmsnorm,gemm,sampling", "--quiet"]) == 0
    assert snapshot(tmp_path / "fresh" / "flashinfer-trace") == resumed


def test_two_runs_at_once_are_told_apart(refused: Run, tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = str(write_config())
    work = tmp_path / "work"
    work.mkdir()
    with hold(work / ".onboard.lock", purpose="the onboarding of kimi-k2"):
        for command in (("onboard", "tiny"), ("inventory", "tiny"), ("define", "tiny")):
            said = refused(*command, "--config", config)
            assert f"process {os.getpid()} holds the lock for 'the onboarding of kimi-k2'" in said
            assert "next: wait for it" in said


def test_a_report_of_an_unknown_kind_is_refused_before_the_work(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / "flashinfer-trace").mkdir(parents=True)
    said = refused("validate", "--report", str(tmp_path / "report.pdf"))
    assert "'report.pdf'" in said
    assert ".html, .json, .txt" in said
    assert "NUL" in refused("validate", "--report", "a\0.txt")


def test_an_error_is_a_document_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--workspace", str(tmp_path), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": "RequestError",
        "what": "there is no dataset",
        "where": str(tmp_path / "flashinfer-trace"),
        "next": "pass --dataset DIR or run: fib define MODEL",
    }
