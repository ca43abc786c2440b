from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fib_tools.errors import (
    DocumentTooLargeError,
    FibError,
    FormatError,
    LockedError,
    PathError,
    RequestError,
    SourceError,
)
from fib_tools.gate import gate
from fib_tools.gate.execute import execute_many, open_sandbox
from fib_tools.host.locks import hold
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.base import to_document
from fib_tools.model.manifest import Manifest, ManualDefinition
from fib_tools.op_types.registry import get_kernel_type
from fib_tools.phases import submission
from fib_tools.phases.admissions import stage
from fib_tools.phases.admit import AdmitResult, submit_definition
from fib_tools.phases.context import Context
from fib_tools.phases.inventory import workspace_lock
from fib_tools.phases.manifests import find_manifest, merge_manifests, save_manifest

_GOOD: dict[str, Any] = {
    "name": "gelu_tanh_h96",
    "op_type": "activation",
    "description": "GELU in its tanh form.",
    "axes": {"num_tokens": {"type": "var"}, "hidden_size": {"type": "const", "value": 96}},
    "inputs": {"x": {"shape": ["num_tokens", "hidden_size"], "dtype": "bfloat16"}},
    "outputs": {"y": {"shape": ["num_tokens", "hidden_size"], "dtype": "bfloat16"}},
    "reference": "import torch\n\n\ndef run(x):\n"
    "    return torch.nn.functional.gelu(x.float(), approximate='tanh').to(torch.bfloat16)\n",
}


@pytest.fixture(scope="module")
def sglang_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked wheel of a package that is called sglang."""
    root = tmp_path_factory.mktemp("unpacked")
    layer = "import torch\n\n\nclass Gelu:\n    def forward_native(self, x):\n        return torch.nn.functional.gelu(x, approximate='tanh')\n"
    files = {
        "__init__.py": "",
        "version.py": '__version__ = "0.5.23"\n',
        "layer.py": layer,
        "needy.py": "import not_there\n",
    }
    (root / "sglang").mkdir()
    for name, text in files.items():
        (root / "sglang" / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def opened(sglang_root: Path) -> Iterator[Sandbox]:
    with open_sandbox((sglang_root,)) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def _shared_sandbox(opened: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sandbox for all, which would take a second each time."""
    monkeypatch.setattr(submission, "open_sandbox", lambda *_: nullcontext(opened))
    monkeypatch.setattr(gate, "execute_many", partial(execute_many, limits=Limits(wall_seconds=2)))


def _admit(context: Context, document: Any = None, **options: Any) -> AdmitResult:
    return submit_definition(context, json.dumps(_GOOD if document is None else document), **options)


def _with(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(_GOOD), **changes}


def _reference(body: str) -> dict[str, Any]:
    return _with(reference=f"import os\nimport torch\n\n\ndef run(x):\n    {body}\n")


def _files(context: Context) -> list[str]:
    root = context.dataset.root
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.json")) if root.exists() else []


def test_a_good_definition_is_staged_with_its_tags(context: Context) -> None:
    done = _admit(context, model="kimi-k2")
    assert (done.status, done.problems, done.executed) == ("defined", (), True)
    assert _files(context) == ["definitions/activation/gelu_tanh_h96.json"]
    assert done.path is not None
    staged = json.loads(Path(done.path).read_text(encoding="utf-8"))
    assert staged["tags"] == ["model:kimi-k2", "status:unverified", "provenance:manual"]
    assert {**staged, "tags": None} == {**_GOOD, "tags": None}
    assert done.compared == "not compared with SGLang: no sglang_forward was given"
    assert done.summary().lines[-1].startswith("gelu_tanh_h96: defined in")


def test_a_dry_run_judges_and_writes_nothing(context: Context) -> None:
    assert _admit(context, dry_run=True).status == "would define"
    assert _admit(context, _with(extra=1), dry_run=True).status == "refused"
    assert not context.workspace.root.exists()


def test_what_was_submitted_before_is_existing_and_stays_as_it_is(context: Context) -> None:
    path = Path(_admit(context).path or "")
    before = path.read_bytes()
    again = _admit(context, _with(description="Something else."))
    assert (again.status, again.existing, again.has_errors) == ("existing", "gelu_tanh_h96", False)
    assert "nothing was written" in again.summary().lines[-1]
    assert path.read_bytes() == before


def test_the_same_kernel_under_another_name_is_existing(context: Context) -> None:
    _admit(context)
    renamed = _with(name="activation_smooth_h96", op_type="smooth")
    renamed["inputs"] = {"z": renamed["inputs"]["x"]}
    renamed["reference"] = renamed["reference"].replace("run(x)", "run(z)").replace("x.float", "z.float")
    renamed["name"] = "smooth_h96"
    done = _admit(context, renamed)
    assert (done.status, done.existing) == ("existing", "gelu_tanh_h96")
    assert len(_files(context)) == 1


def test_a_kernel_type_of_ours_under_another_name_is_refused_with_its_name(context: Context) -> None:
    built = get_kernel_type("rmsnorm").build({"hidden_size": 96})
    done = _admit(context, {**to_document(built), "name": "custom_thing_h96", "op_type": "custom", "tags": []})
    assert [item.field for item in done.problems] == ["name"]
    assert "rmsnorm_h96" in done.problems[0].expected
    assert _files(context) == []


def test_a_kernel_type_of_ours_has_to_agree_with_our_definition_of_it(context: Context) -> None:
    document = to_document(get_kernel_type("rmsnorm").build({"hidden_size": 96}))
    assert _admit(context, document, dry_run=True).status == "would define"
    wrong = {**document, "reference": document["reference"].replace(".mean(", ".sum(")}
    done = _admit(context, wrong)
    assert [item.field for item in done.problems] == ["reference"]
    assert "the reference has" in done.problems[0].found
    swapped = copy.deepcopy(document)
    swapped["inputs"]["weight"]["dtype"] = "float32"
    assert "inputs.weight" in _admit(context, swapped).problems[0].found


def test_a_name_of_another_kernel_is_refused_and_nothing_is_overwritten(context: Context) -> None:
    path = Path(_admit(context).path or "")
    before = path.read_bytes()
    axes = {**_GOOD["axes"], "page_size": {"type": "const", "value": 1}}
    other = _with(axes=axes, inputs={**_GOOD["inputs"], "o": {"shape": ["page_size"], "dtype": "float32"}})
    other["reference"] = "def run(x, o):\n    return x * 3\n"
    done = _admit(context, other)
    assert done.status == "refused"
    assert "another kernel" in done.problems[0].found
    assert path.read_bytes() == before


def test_a_file_in_the_place_that_holds_no_definition_is_left_alone(context: Context) -> None:
    path = context.dataset.root / "definitions/activation/gelu_tanh_h96.json"
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match="holds no Definition"):
        _admit(context)
    assert path.read_text(encoding="utf-8") == "mine"


def test_every_problem_of_a_document_comes_in_one_answer(context: Context) -> None:
    done = _admit(context, _with(name="gelu_h95", tags=["tp:x"], constraints=["hidden_size == 97"], extra=1))
    assert {item.field for item in done.problems} == {"extra", "name", "tags[0]"}
    done = _admit(context, _with(name="gelu_h95", tags=["tp:x"], reference=_reference("return x[:, :3]")["reference"]))
    assert {item.field for item in done.problems} == {"name", "tags[0]", "reference"}
    assert done.has_errors
    assert _files(context) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return x[:, :3]", "hidden_size = 3, elsewhere 96"),
        ("return x.float()", "dtype torch.float32, declared bfloat16"),
        ("return x, x", "returns 2 values"),
        ("return x * float('nan')", "NaN"),
        ("x.mul_(2)\n    return x", "writes into its input x"),
        ("return torch.rand_like(x) + os.urandom(1)[0]", "two runs"),
        ("while True:\n        pass", "2 s"),
        ("return os.fork()", "refused by the isolation"),
        ("open('/etc/hosts', 'w')\n    return x", "refused by the isolation"),
        ("open(os.path.expanduser('~/../../../../etc/shadow'))\n    return x", "Error"),
        ("return os.environ['HF_TOKEN']", "KeyError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_reference_that_does_not_do_its_job_is_refused_with_what_it_did(
    context: Context, body: str, words: str
) -> None:
    done = _admit(context, _reference(body))
    assert done.status == "refused"
    assert [item.field for item in done.problems] == ["reference"]
    assert words in done.problems[0].found
    assert _files(context) == []


def test_a_token_never_comes_back(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    body = "print(dict(os.environ), 'hf_0123456789abcdef')\n    raise KeyError('hf_0123456789abcdef ' + str(dict(os.environ)))"
    done = _admit(context, _reference(body))
    assert "hf_0123456789abcdef" not in done.model_dump_json()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"name": 1,}', FormatError, "not JSON"),
        ('{"name": "a", "name": "b"}', FormatError, "stands twice"),
        ("[" * 100 + "]" * 100, FormatError, "nested"),
        ('{"name": "' + "a" * (1 << 20) + '"}', DocumentTooLargeError, "more than"),
        ('{"name": "\\ud800"}', FormatError, "surrogate"),
        ("no such file.json", FormatError, "cannot read"),
        ("name: x\nop_type: y", RequestError, "neither a JSON object nor a path"),
    ],
)
def test_what_is_no_json_document_is_an_error_with_its_place(
    context: Context, text: str, error: type[FibError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        submit_definition(context, text)
    assert caught.value.where
    assert caught.value.todo
    assert len(str(caught.value)) < 500


def test_a_file_of_the_workspace_is_read_and_another_is_not_for_those_who_are_confined(context: Context) -> None:
    context.workspace.create()
    (context.workspace.root / "mine.json").write_text(json.dumps(_GOOD), encoding="utf-8")
    outside = context.workspace.root.parent / "outside.json"
    outside.write_text(json.dumps(_GOOD), encoding="utf-8")
    confined = replace(context, is_confined=True)
    assert submit_definition(confined, "mine.json", dry_run=True).status == "would define"
    for path in ("../outside.json", str(outside), "/etc/hostname"):
        with pytest.raises(PathError):
            submit_definition(confined, path)
    assert submit_definition(context, str(outside), dry_run=True).status == "would define"


def test_the_models_manifest_records_it_and_a_new_inventory_keeps_that(context: Context) -> None:
    context.workspace.create()
    save_manifest(context.workspace, "onboard_kimi-k2_2026-01-01.json", Manifest(model="kimi-k2"))
    done = _admit(context, model="moonshotai/Kimi-K2-Instruct", fills="gelu in model.layers.*.act")
    assert done.manifest == "onboard_kimi-k2_2026-01-01.json"
    found = find_manifest(context.workspace, "kimi-k2")
    assert found is not None
    assert found[1].manual == (
        ManualDefinition(
            name="gelu_tanh_h96",
            op_type="activation",
            fills="gelu in model.layers.*.act",
            executed=True,
            compared=done.compared,
        ),
    )
    assert merge_manifests(found[1], Manifest(model="kimi-k2")).manual == found[1].manual


def test_a_model_without_a_manifest_is_told_what_to_run(context: Context) -> None:
    assert "kimi-k2 has no manifest here" in " ".join(_admit(context, model="kimi-k2").notes)


def test_another_writer_of_the_workspace_is_waited_for_by_nobody(context: Context) -> None:
    context.workspace.create()
    with hold(workspace_lock(context), purpose="an onboarding"), pytest.raises(LockedError):
        _admit(context)
    assert _files(context) == []


_FORWARD = "def run_sglang(x):\n    from sglang.layer import Gelu\n    return Gelu().forward_native(x)\n"


def test_a_forward_of_sglang_that_says_the_same_is_reported(context: Context, sglang_root: Path) -> None:
    done = _admit(context, sglang_forward=_FORWARD, sglang_path=sglang_root)
    assert done.status == "defined"
    assert done.compared.startswith("agrees with SGLang 0.5.23: y differs by")


@pytest.mark.parametrize(
    ("forward", "field", "words"),
    [
        (_FORWARD.replace("native(x)", "native(x) + 1"), "reference", "the reference has"),
        (_FORWARD.replace("Gelu()", "Gelu(1)"), "reference", "TypeError"),
        ("def run_sglang(x):\n    return x\n", "sglang_forward", "no import of sglang"),
        ("def run_sglang(y):\n    import sglang\n    return y\n", "sglang_forward", "run_sglang(y)"),
        ("def run(x:\n", "sglang_forward, line 1", "("),
    ],
)
def test_a_forward_that_says_something_else_is_a_refusal(
    context: Context, sglang_root: Path, forward: str, field: str, words: str
) -> None:
    done = _admit(context, sglang_forward=forward, sglang_path=sglang_root)
    assert done.status == "refused"
    assert [item.field for item in done.problems] == [field]
    assert words in done.problems[0].found
    assert _files(context) == []


def test_a_forward_that_cannot_be_imported_is_said_and_stops_nothing(context: Context, sglang_root: Path) -> None:
    done = _admit(context, sglang_forward=_FORWARD.replace("layer", "needy"), sglang_path=sglang_root, dry_run=True)
    assert done.status == "would define"
    assert done.compared.startswith(
        "not compared with SGLang: sglang.needy cannot be imported here: ModuleNotFoundError"
    )
    assert "no SGLang source here" in _admit(context, sglang_forward=_FORWARD).compared


def test_a_folder_without_sglang_is_an_error(context: Context, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no sglang package here"):
        _admit(context, sglang_forward=_FORWARD, sglang_path=tmp_path)


def test_a_forward_is_read_from_a_file_too(context: Context, sglang_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "forward.py"
    path.write_text(_FORWARD, encoding="utf-8")
    assert "agrees" in _admit(context, sglang_forward=str(path), sglang_path=sglang_root, dry_run=True).compared


def test_an_answer_stays_within_what_an_agent_is_shown(context: Context) -> None:
    inputs = {f"x{place}": {"shape": ["Q" * 200], "dtype": "uint8", "more": "m" * 900} for place in range(60)}
    done = _admit(context, _with(inputs=inputs))
    assert len(json.dumps(to_document(done))) < 24_000
    assert len(done.problems) == 24


def test_new_op_types_and_missing_descriptions_are_remarked(context: Context) -> None:
    done = _admit(context, _with(op_type="activations", name="activations_gelu_h96"), dry_run=True)
    assert any("did you mean activation?" in text for text in done.notes)
    assert any("no description of x" in text for text in done.notes)


def test_staging_is_the_same_as_for_every_other_definition() -> None:
    assert submission.stage is stage
