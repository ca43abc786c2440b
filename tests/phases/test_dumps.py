from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fib_tools.cli.app import main
from fib_tools.errors import PathError, RequestError
from fib_tools.model.tags import find_tag_values
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases.context import Context, Workspace
from fib_tools.phases.define import define_model
from fib_tools.phases.outcomes import DefineResult
from tiny_model import snapshot

_RMSNORM = """from __future__ import annotations
import torch

@torch.no_grad()
def _rmsnorm_reference(hidden_states, weight):
    EPS = 1e-6
    x = hidden_states.to(torch.float32)
    inv_rms = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + EPS)
    y = (x * inv_rms) * weight.to(torch.float32)
    return y.to(hidden_states.dtype)
"""
_SILU = """import torch

@torch.no_grad()
def _scaled_reference(x):
    return x * 2
"""


def rmsnorm(**changes: Any) -> dict[str, Any]:
    rows = {"shape": ["batch_size", "hidden_size"], "dtype": "bfloat16"}
    return {
        "name": "rmsnorm_h256",
        "description": "Root Mean Square Normalization. Epsilon is fixed at 1e-6.",
        "op_type": "rmsnorm",
        "tags": ["fi_api:flashinfer.norm.rmsnorm", "status:verified"],
        "axes": {"batch_size": {"type": "var"}, "hidden_size": {"type": "const", "value": 256}},
        "inputs": {"hidden_states": rows, "weight": {"shape": ["hidden_size"], "dtype": "bfloat16"}},
        "outputs": {"output": rows},
        "reference": _RMSNORM,
        **changes,
    }


def scaled(**changes: Any) -> dict[str, Any]:
    rows = {"shape": ["m", "n"], "dtype": "float32"}
    return {
        "name": "scaled_n8",
        "op_type": "toy",
        "tags": ["fi_api:flashinfer.toy.scaled", "status:verified"],
        "axes": {"m": {"type": "var"}, "n": {"type": "const", "value": 8}},
        "inputs": {"x": rows},
        "outputs": {"y": rows},
        "reference": _SILU,
        **changes,
    }


def write_dumps(folder: Path, *documents: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, document in enumerate(documents):
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / f"dump_{index}.json").write_text(text, encoding="utf-8")
    return folder


def by_status(result: DefineResult) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in result.entries:
        found.setdefault(entry.status, []).append(entry.name)
    return found


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, DefineResult]:
    folder = tmp_path_factory.mktemp("staged")
    broken = scaled(
        name="broken_n8",
        tags=["fi_api:flashinfer.toy.broken"],
        reference="def run(x):\n    if x.dim():\n        raise ValueError('broken on purpose')\n    return x\n",
    )
    dumps = write_dumps(
        folder / "dumps", rmsnorm(), rmsnorm(), scaled(), broken, "{", rmsnorm(name="", axes={}), rmsnorm(axes=[])
    )
    context = Context(workspace=Workspace(root=folder / "work"), offline=True)
    return context, define_model(context, "moonshotai/Kimi-K2-Instruct", path="dump", from_dir=dumps)


def test_good_dumps_are_staged_and_executed(staged: tuple[Context, DefineResult]) -> None:
    context, result = staged
    assert by_status(result)["defined"] == ["rmsnorm_h256", "scaled_n8"]
    assert all(entry.executed for entry in result.entries if entry.status == "defined")
    assert set(context.dataset.load_definitions()[0]) == {"rmsnorm_h256", "scaled_n8"}


def test_a_dump_carries_the_models_own_name(staged: tuple[Context, DefineResult]) -> None:
    definition = staged[0].dataset.find_definition("rmsnorm_h256")
    assert definition is not None
    assert find_tag_values(definition.tags, "model") == ("kimi-k2",)
    assert "status:unverified" in definition.tags


def test_a_dump_that_is_there_twice_is_staged_once(staged: tuple[Context, DefineResult]) -> None:
    (entry,) = [entry for entry in staged[1].entries if entry.status == "existing"]
    assert entry.name == "rmsnorm_h256"
    assert "the same kernel as rmsnorm_h256" in entry.reason


def test_what_cannot_be_kept_is_refused_with_its_reason(staged: tuple[Context, DefineResult]) -> None:
    result = staged[1]
    reasons = {entry.name: entry.reason for entry in result.entries if entry.status == "refused"}
    assert set(reasons) == {"dump_4", "dump_5", "dump_6", "broken_n8"}
    assert "not JSON" in reasons["dump_4"]
    assert "name" in reasons["dump_5"]
    assert "axes" in reasons["dump_6"]
    assert "broken on purpose" in reasons["broken_n8"]
    assert result.has_errors


def test_what_comes_before_the_first_reference_is_told_of_where_it_lasts(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.dataset.write_definition(get_kernel_type("silu_and_mul").build({"intermediate_size": 8}))
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps" / "rmsnorm.json").write_text(json.dumps(rmsnorm()))
    told: list[tuple[str, int, int]] = []
    watched = replace(context, progress=lambda *what: told.append(what))
    monkeypatch.setattr("fib_tools.phases.context._UNTOLD_SECONDS", -1.0)
    define_model(watched, path="dump", from_dir=tmp_path / "dumps")
    assert told == [
        ("reading the dataset", 0, 1),
        ("starting the sandbox", 0, 0),
        ("comparing with the dataset", 0, 1),
        ("executing references: rmsnorm_h256", 1, 1),
    ]


def test_what_was_changed_is_said(staged: tuple[Context, DefineResult]) -> None:
    entry = staged[1].entries[-1]
    remarks = [remark for entry in staged[1].entries for remark in entry.remarks]
    assert any("renamed run" in remark for remark in remarks), entry
    assert any("status:verified taken back" in remark for remark in remarks)
    table = staged[1].summary().tables[0]
    assert "scaled_n8" in {row[0] for row in table.rows}


def test_a_dump_whose_reference_does_not_run_becomes_our_own_definition(context: Context, tmp_path: Path) -> None:
    broken = rmsnorm(
        reference=_RMSNORM.replace("    EPS", "    assert weight.dim() == 0, 'broken on purpose'\n    EPS")
    )
    result = define_model(context, path="dump", from_dir=write_dumps(tmp_path / "dumps", broken))
    (entry,) = result.entries
    assert (entry.status, entry.executed) == ("defined", True), entry.reason
    definition = context.dataset.find_definition(entry.name)
    assert definition is not None
    assert "broken on purpose" not in definition.reference


@pytest.mark.usefixtures("quick_gate")
def test_a_name_that_another_kernel_has_gets_a_suffix(
    context: Context,
    tmp_path: Path,
) -> None:
    other = rmsnorm(reference=_RMSNORM.replace("1e-6", "1e-5"))
    triple = scaled(reference=_SILU.replace("x * 2", "x * FACTOR").replace("    return", "    FACTOR = 3\n    return"))
    result = define_model(
        context, path="dump", from_dir=write_dumps(tmp_path / "dumps", rmsnorm(), other, scaled(), triple)
    )
    assert by_status(result) == {
        "defined": ["rmsnorm_h256", "scaled_n8"],
        "conflict": ["rmsnorm_h256_eps1e-05", "scaled_n8_v2"],
    }


def test_a_dry_run_stages_nothing(context: Context, tmp_path: Path) -> None:
    dumps = write_dumps(tmp_path / "dumps", rmsnorm(), "[]")
    result = define_model(context, path="dump", from_dir=dumps, dry_run=True)
    assert by_status(result) == {"refused": ["dump_1"], "would define": ["rmsnorm_h256"]}
    assert not snapshot(context.workspace.root)


@pytest.mark.parametrize("name", ["../../escape", "/etc/escape", "a\0b", "a/b", "..", ".hidden", "x" * 5000, "\ud800"])
@pytest.mark.usefixtures("quick_gate")
def test_a_name_that_would_lead_out_is_refused(context: Context, tmp_path: Path, name: str) -> None:
    result = define_model(context, path="dump", from_dir=write_dumps(tmp_path / "dumps", scaled(name=name), scaled()))
    assert by_status(result)["defined"] == ["scaled_n8"]
    assert len(by_status(result)["refused"]) == 1
    assert set(snapshot(tmp_path)) == {
        "dumps/dump_0.json",
        "dumps/dump_1.json",
        "work/flashinfer-trace/definitions/toy/scaled_n8.json",
    }


@pytest.mark.usefixtures("quick_gate")
def test_an_op_type_that_would_lead_out_is_refused(
    context: Context,
    tmp_path: Path,
) -> None:
    dumps = write_dumps(tmp_path / "dumps", scaled(op_type="../../../escape"), scaled(op_type="a/b"))
    result = define_model(context, path="dump", from_dir=dumps)
    assert set(by_status(result)) == {"refused"}
    assert not (tmp_path / "work" / "flashinfer-trace").exists()


@pytest.mark.usefixtures("quick_gate")
def test_a_link_among_the_dumps_is_not_followed(
    context: Context,
    tmp_path: Path,
) -> None:
    write_dumps(tmp_path / "elsewhere", scaled())
    dumps = write_dumps(tmp_path / "dumps", rmsnorm())
    (dumps / "link.json").symlink_to(tmp_path / "elsewhere" / "dump_0.json")
    result = define_model(context, path="dump", from_dir=dumps)
    assert by_status(result) == {"refused": ["link"], "defined": ["rmsnorm_h256"]}


@pytest.mark.usefixtures("quick_gate")
def test_a_file_name_that_is_no_text_is_shown_escaped(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dumps = write_dumps(tmp_path / "dumps", scaled())
    (dumps / "a\udcff\x1b[2J.json").write_bytes(b"{}")
    command = ["define", "--path", "dump", "--from-dir", str(dumps), "--workspace", str(context.workspace.root)]
    assert main([*command, "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said
    assert "\\x1b[2J" in said
    assert main([*command, "--quiet", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["entries"]


def test_a_folder_without_a_dump_is_refused(context: Context, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no dump in it"):
        define_model(context, path="dump", from_dir=tmp_path / "empty")
    with pytest.raises(RequestError, match="there is no such folder"):
        define_model(context, path="dump", from_dir=tmp_path / "missing")
    with pytest.raises(RequestError, match="there is no such folder"):
        define_model(context, path="dump", from_dir=Path("a\0b"))
    with pytest.raises(RequestError, match="needs a model to serve, or the folder"):
        define_model(context, path="dump")


def test_a_model_name_that_can_be_no_tag_is_refused(context: Context, tmp_path: Path) -> None:
    dumps = write_dumps(tmp_path / "dumps", scaled())
    with pytest.raises(PathError, match="no file name"):
        define_model(context, "///", path="dump", from_dir=dumps)


@pytest.mark.usefixtures("quick_gate")
def test_a_model_that_no_registry_knows_is_tagged_by_its_name(
    context: Context,
    tmp_path: Path,
) -> None:
    define_model(context, "Some-Org/My Model", path="dump", from_dir=write_dumps(tmp_path / "dumps", scaled()))
    definition = context.dataset.find_definition("scaled_n8")
    assert definition is not None
    assert find_tag_values(definition.tags, "model") == ("my-model",)


def test_templates_need_a_model(context: Context) -> None:
    with pytest.raises(RequestError, match="no model given"):
        define_model(context)
