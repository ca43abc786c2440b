from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fib_tools.gate.execute import execute, execute_many, open_sandbox
from fib_tools.gate.gate import Admission, AdmissionStatus, Candidate, admit, to_candidate
from fib_tools.gate.normalise import normalise
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox() as opened:
        yield opened


def _toy(body: str, *, n: int = 8, **changes: Any) -> Definition:
    document: dict[str, Any] = {
        "name": f"toy_n{n}",
        "op_type": "toy",
        "axes": {"M": {"type": "var"}, "N": {"type": "const", "value": n}},
        "inputs": {"x": {"shape": ["M", "N"], "dtype": "float32"}},
        "outputs": {"y": {"shape": ["M", "N"], "dtype": "float32"}},
        "reference": f"import torch\n\n\n{body}",
    }
    return Definition.model_validate({**document, **changes}, extra="allow")


_GOOD = "def run(x):\n    return x * 2\n"


def test_a_reference_that_does_what_it_declares_is_executed(sandbox: Sandbox) -> None:
    done = execute(_toy(_GOOD), sandbox=sandbox)
    assert (done.executed, done.reason) == (True, None)
    assert done.axes["N"] == 8
    assert done.protections is not None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def run(x):\n    return x[:, :4]\n", "y has N = 4, elsewhere 8"),
        ("def run(x):\n    return x.sum()\n", "y has 0 dimensions"),
        ("def run(x):\n    return x.half()\n", "y has the dtype torch.float16, declared float32"),
        ("def run(x):\n    return x, x\n", "returns 2 values for 1 outputs"),
        ("def run(x):\n    return 3\n", "y is int, not a tensor"),
        ("def run(x):\n    return x * float('nan')\n", "y holds NaN"),
        ("def run(x):\n    return x * float('inf')\n", "y holds"),
        ("def run(x):\n    x.mul_(2)\n    return x * 1\n", "writes into its input x"),
        ("def run(x):\n    return helper(x)\n", "NameError"),
        ("def run(x, y):\n    return x\n", "TypeError"),
        ("calls = []\ndef run(x):\n    calls.append(1)\n    return x * len(calls)\n", "two runs"),
        ("assert False\ndef run(x):\n    return x\n", "cannot be loaded: AssertionError"),
        ("import os\ndef run(x):\n    os._exit(3)\n", "exit"),
        ("import socket\ndef run(x):\n    socket.socket()\n    return x\n", "Error"),
    ],
)
def test_a_reference_that_does_not_says_why(sandbox: Sandbox, body: str, words: str) -> None:
    done = execute(_toy(body), sandbox=sandbox)
    assert not done.executed
    assert words in str(done.reason)


def test_of_a_message_with_a_stack_trace_only_the_first_line_is_a_reason(sandbox: Sandbox) -> None:
    for body in ("def run(x):\n    {}\n", "{}\ndef run(x):\n    return x\n"):
        done = execute(_toy(body.format("raise ValueError('no rule' + '!' * 900 + '\\nframe #0')")), sandbox=sandbox)
        assert "ValueError: no rule!" in str(done.reason)
        assert "frame" not in str(done.reason)
        assert len(str(done.reason)) < 400


def test_an_answer_of_untrusted_code_is_cut_to_a_line_too(sandbox: Sandbox) -> None:
    body = "def run(x):\n    raise BaseException('odd' + '!' * 900 + '\\nframe #0')\n"
    reason = str(execute(_toy(body), sandbox=sandbox).reason)
    assert reason.startswith("BaseException: odd!")
    assert "frame" not in reason
    assert len(reason) < 700


@pytest.mark.parametrize("line", ["__import__('subprocess').run(['true'])", "open('/etc/passwd')"])
def test_what_the_isolation_refused_is_named_so(sandbox: Sandbox, line: str) -> None:
    done = execute(_toy(f"{line}\ndef run(x):\n    return x\n"), sandbox=sandbox)
    assert "refused by the isolation" in str(done.reason)


def test_a_reference_without_end_is_killed(sandbox: Sandbox) -> None:
    done = execute(
        _toy("def run(x):\n    while True:\n        pass\n"), limits=Limits(wall_seconds=0.5), sandbox=sandbox
    )
    assert "0.5 s" in str(done.reason)


def test_a_reference_that_needs_too_much_memory_is_named_so(sandbox: Sandbox) -> None:
    body = "def run(x):\n    return torch.ones(1 << 33).sum() * x\n"
    limits = Limits(memory_bytes=1 << 30)
    assert execute(_toy(body), limits=limits, sandbox=sandbox).reason == "not executed: needs more than 1 GB"


def test_chance_is_seeded(sandbox: Sandbox) -> None:
    assert execute(_toy("def run(x):\n    return x + torch.rand_like(x)\n"), sandbox=sandbox).executed


def test_minus_infinity_is_a_value_of_a_log_sum(sandbox: Sandbox) -> None:
    outputs = {"lse": {"shape": ["M", "N"], "dtype": "float32"}}
    assert execute(_toy("def run(x):\n    return x - float('inf')\n", outputs=outputs), sandbox=sandbox).executed


def test_the_init_of_a_dump_makes_inputs_that_rules_cannot(sandbox: Sandbox) -> None:
    body = "def run(x):\n    assert (x == 7).all()\n    return x\n"
    init = "import torch\ndef _init(*, M, N=8, device='cuda', seed=0):\n    return {'x': torch.full((M, N), 7.0, device=device)}\n"
    assert execute(_toy(body, init=init), sandbox=sandbox).executed


def test_full_size_weights_share_storage(sandbox: Sandbox) -> None:
    definition = _toy("def run(x):\n    return x.mean(dim=0)\n", n=1 << 24)
    definition = definition.model_copy(
        update={"outputs": {"y": definition.outputs["y"].model_copy(update={"shape": ["N"]})}}
    )
    done = execute(definition, sandbox=sandbox)
    assert (done.executed, done.shared_storage) == (True, True)


def test_many_references_run_in_any_order_and_one_crash_stops_no_other(sandbox: Sandbox) -> None:
    bad = _toy("import os\ndef run(x):\n    os.abort()\n", name="bad")
    found = dict(execute_many([_toy(_GOOD), bad, _toy(_GOOD, name="last")], sandbox=sandbox))
    assert {name: done.executed for name, done in found.items()} == {"toy_n8": True, "bad": False, "last": True}


def _admit(*candidates: Candidate, index: dict[str, Definition] | None = None, **options: Any) -> dict[str, Admission]:
    return {item.name: item for item in admit(candidates, index=index or {}, stage=lambda _: None, **options)}


def test_what_passes_is_staged_with_its_tags(sandbox: Sandbox) -> None:
    staged: list[Definition] = []
    candidate = Candidate(definition=_toy(_GOOD), tags=("model:kimi-k2",))
    (admission,) = admit([candidate], index={}, stage=staged.append, sandbox=sandbox)
    assert admission.status is AdmissionStatus.ACCEPTED
    assert admission.execution is not None
    assert [item.tags for item in staged] == [["model:kimi-k2"]]


def test_what_does_not_run_is_not_staged(sandbox: Sandbox) -> None:
    staged: list[Definition] = []
    candidates = [Candidate(definition=_toy("def run(x):\n    return x.nothing\n", name=name)) for name in ("a", "b")]
    admissions = list(admit(candidates, index={}, stage=staged.append, sandbox=sandbox))
    assert {item.status for item in admissions} == {AdmissionStatus.REFUSED}
    assert staged == []


def _norm(eps: float) -> Candidate:
    kernel = get_kernel_type("rmsnorm")
    parameters = kernel.parameters.model_validate({"hidden_size": 4096, "eps": eps})
    return Candidate(definition=kernel.define(parameters), qualifier=parameters.qualifier())


def test_a_kernel_the_dataset_has_is_existing_under_any_name() -> None:
    standing = _norm(1e-6).definition.model_copy(update={"name": "rmsnorm_h4096_of_llama"})
    admission = _admit(_norm(1e-6), index={standing.name: standing}, execute=False)["rmsnorm_h4096"]
    assert (admission.status, admission.existing) == (AdmissionStatus.EXISTING, "rmsnorm_h4096_of_llama")
    assert admission.findings[0].message == "the same kernel as rmsnorm_h4096_of_llama"


def test_another_kernel_of_the_same_name_gets_its_qualifier_and_a_conflict() -> None:
    standing = _norm(1e-6).definition
    (admission,) = _admit(_norm(1e-5), index={standing.name: standing}, execute=False).values()
    assert admission.status is AdmissionStatus.CONFLICT
    assert admission.definition is not None
    assert admission.definition.name == "rmsnorm_h4096_eps1e-05"
    assert "belongs to another kernel" in admission.findings[0].message


def test_without_a_qualifier_the_name_gets_a_version() -> None:
    standing = _toy(_GOOD)
    second = standing.model_copy(update={"name": "toy_n8_v2", "op_type": "other"})
    candidate = Candidate(definition=_toy("SCALE = 3\ndef run(x):\n    return x * SCALE\n"))
    index = {standing.name: standing, second.name: second}
    (admission,) = _admit(candidate, index=index, execute=False).values()
    assert admission.definition is not None
    assert admission.definition.name == "toy_n8_v3"


def test_two_candidates_of_one_kernel_are_one_definition() -> None:
    twin = Candidate(definition=_norm(1e-6).definition.model_copy(update={"name": "rmsnorm_h4096_twin"}))
    found = _admit(_norm(1e-6), twin, execute=False)
    assert found["rmsnorm_h4096"].status is AdmissionStatus.ACCEPTED
    assert (found["rmsnorm_h4096_twin"].status, found["rmsnorm_h4096_twin"].existing) == (
        AdmissionStatus.EXISTING,
        "rmsnorm_h4096",
    )


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"name": "../toy"}, "gate.name"),
        ({"op_type": "a/b"}, "gate.name"),
        ({"constraints": ["N == 9"]}, "gate.constraint"),
        (
            {
                "axes": {
                    "M": {"type": "var"},
                    "N": {"type": "const", "value": 8},
                    "page_size": {"type": "const", "value": 576},
                }
            },
            "gate.shape",
        ),
    ],
)
def test_what_is_wrong_by_itself_is_refused_without_running(changes: dict[str, Any], check: str) -> None:
    (admission,) = _admit(Candidate(definition=_toy(_GOOD, **changes), is_foreign=True), execute=False).values()
    assert admission.status is AdmissionStatus.REFUSED
    assert admission.findings[0].check == check


def test_a_foreign_reference_is_repaired_by_what_its_run_shows(sandbox: Sandbox) -> None:
    body = "def run(x):\n    x.mul_(2)\n    return x.to(torch.float64)\n"
    outputs = {"y": {"shape": ["M", "N"], "dtype": "bfloat16"}}
    candidate = Candidate(definition=_toy(body, outputs=outputs), is_foreign=True)
    (admission,) = _admit(candidate, sandbox=sandbox).values()
    assert admission.status is AdmissionStatus.ACCEPTED
    assert admission.definition is not None
    assert "x.clone()" in admission.definition.reference
    assert ".to(torch.bfloat16)" in admission.definition.reference
    assert {finding.check for finding in admission.findings} == {"gate.adapted"}


def test_a_narrower_type_says_that_the_declaration_was_a_guess(sandbox: Sandbox) -> None:
    candidate = Candidate(definition=_toy("def run(x):\n    return x.to(torch.float8_e4m3fn)\n"), is_foreign=True)
    (admission,) = _admit(candidate, sandbox=sandbox).values()
    assert admission.definition is not None
    assert admission.definition.outputs["y"].dtype.value == "float8_e4m3fn"


def test_our_own_reference_is_never_bent_to_its_run(sandbox: Sandbox) -> None:
    (admission,) = _admit(Candidate(definition=_toy("def run(x):\n    return x.double()\n")), sandbox=sandbox).values()
    assert admission.status is AdmissionStatus.REFUSED


def test_a_known_kernel_whose_foreign_reference_fails_is_written_anew(sandbox: Sandbox) -> None:
    ours = get_kernel_type("rmsnorm").build({"hidden_size": 4096})
    broken = ours.model_copy(update={"reference": "EPS = 1e-06\ndef run(hidden_states, weight):\n    return missing\n"})
    (admission,) = _admit(Candidate(definition=broken, is_foreign=True, fallback=ours), sandbox=sandbox).values()
    assert admission.definition is not None
    assert admission.definition.reference == ours.reference
    assert [finding.check for finding in admission.findings] == ["gate.replaced"]


def test_a_refused_dump_is_no_candidate() -> None:
    with pytest.raises(ValueError, match="refused"):
        to_candidate(normalise({}))
