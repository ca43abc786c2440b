from __future__ import annotations

from pathlib import Path

import pytest

from bench_run import norm
from fib_tools.draft.attempt import Ask, AskKind, Attempt, ShapeResult, are_apart, sum_up
from fib_tools.draft.brief import BRIEF_BYTES, write_brief, write_contract
from fib_tools.draft.feedback import FEEDBACK_BYTES, write_feedback, write_history
from fib_tools.draft.memory import Memory
from fib_tools.draft.target import Shape, Target, format_axes
from fib_tools.evaluate.engines.items import Bound
from fib_tools.evaluate.inspection.exactness import Exactness
from fib_tools.evaluate.inspection.ncu import Profile
from fib_tools.evaluate.inspection.ncu_report import KernelCounters
from fib_tools.model.evidence import L2, Evidence, Gpu, Launch, Series, Subject, Timer
from fib_tools.model.solution import Language
from fib_tools.model.trace import EvaluationStatus
from fib_tools.op_types.registry import get_kernel_type
from kernel_examples import KERNEL_EXAMPLES


def target(**changes: object) -> Target:
    shape = Shape(
        workload="w",
        axes={"batch_size": 64},
        limit_ms=0.01,
        bound="memory",
        bytes=42_000_000,
        baseline_ms=0.02,
        reference_ms=0.1,
    )
    plain = {
        "definition": norm(),
        "language": Language.TRITON,
        "hardware": "NVIDIA H200",
        "capability": 90,
        "bounds": {"output": Bound(rtol=2**-7, atol=2**-14)},
        "shapes": (shape,),
        "baseline": "flashinfer_wrapper_0a1b2c",
        "bandwidth": 4.25e12,
        "versions": {"triton": "3.6.0"},
    }
    return Target.model_validate({**plain, **changes})


def wrong(number: int, detail: str, *, technique: str = "plain", rule: str = "wrong-values") -> Attempt:
    result = ShapeResult(
        workload="w", axes={"n": 1}, status=EvaluationStatus.INCORRECT_NUMERICAL, rule=rule, detail=detail
    )
    return Attempt(number=number, ask=Ask(kind=AskKind.FIRST), technique=technique, digest="d", results=(result,))


def test_a_brief_says_what_is_computed_where_and_what_has_to_be_beaten() -> None:
    brief = write_brief(target())
    for text in (
        "- hidden_states: bfloat16[batch_size, hidden_size]",
        "hidden_size = 64",
        "output must be within 6.1e-05 x its row's rms + 0.00781 x |value|",
        "def run(",
        "NVIDIA H200, sm_90 (triton 3.6.0)",
        "wgmma",
        "4.25 TB/s",
        "baseline (flashinfer_wrapper_0a1b2c)",
        "batch_size=64 | 100.0% | 42 | 0 | 10 memory | 20, 50% | 100",
    ):
        assert text in brief, text


@pytest.mark.parametrize("language", [language for language in Language if language is not Language.CPP])
def test_a_contract_names_the_arguments_in_their_order(language: Language) -> None:
    contract = write_contract(target(language=language))
    returns = language is Language.PYTHON
    assert ("run(hidden_states, weight)" if returns else "run(hidden_states, weight, output)") in contract
    assert "{" not in contract.replace("{ m.def", "").replace("&run); }", "")


def test_a_long_reference_is_cut_and_the_brief_stays_within_its_bytes() -> None:
    long = norm().model_copy(update={"reference": norm().reference + "\n# é" * 6000})
    brief = write_brief(target(definition=long))
    assert len(brief.encode()) <= BRIEF_BYTES
    assert "cut" in brief
    assert "baseline (flashinfer_wrapper_0a1b2c)" in brief


def shape(workload: str, count: int | None) -> Shape:
    return Shape(workload=workload, axes={"batch_size": int(workload)}, count=count, baseline_ms=0.02)


def test_a_brief_lists_sizes_by_how_often_they_occur() -> None:
    brief = write_brief(target(shapes=(shape("1", 10), shape("64", 30))))
    lines = brief.splitlines()
    assert "Weights are shares of what occurs" in lines[-4]
    assert [line.split(" | ")[:2] for line in lines[-2:]] == [["batch_size=64", "75.0%"], ["batch_size=1", "25.0%"]]


@pytest.mark.parametrize(
    ("counts", "said"),
    [((None, None), "no Workload says how often it occurs"), ((7, None), "only 1 of 2 Workloads say how often")],
)
def test_without_a_count_of_each_all_sizes_weigh_the_same_and_the_brief_says_so(
    counts: tuple[int | None, ...], said: str
) -> None:
    made = target(shapes=tuple(shape(str(number), count) for number, count in enumerate(counts, start=1)))
    assert made.weights == {"1": 0.5, "2": 0.5}
    assert f"All weigh the same, since {said}" in write_brief(made)


def test_a_brief_of_very_many_sizes_shows_the_heaviest_and_keeps_its_bytes() -> None:
    shapes = tuple(shape(str(number), number) for number in range(1, 400))
    brief = write_brief(target(shapes=shapes))
    assert len(brief.encode()) <= BRIEF_BYTES
    assert "batch_size=399 | 0.5%" in brief
    assert "batch_size=1 |" not in brief
    assert "... and 383 lighter ones" in brief


@pytest.mark.parametrize("kernel", KERNEL_EXAMPLES)
def test_the_brief_of_every_kernel_type_has_room_for_its_whole_reference(kernel: str) -> None:
    definition = get_kernel_type(kernel).build(KERNEL_EXAMPLES[kernel])
    axes = dict.fromkeys(definition.var_axes, 123456)
    figures = {"limit_ms": 0.1234, "bound": "memory", "baseline_ms": 0.1234, "reference_ms": 1.234}
    shapes = tuple(Shape(workload=str(n), axes=axes, bytes=10**9, flops=10**12, **figures) for n in range(20))
    row = f"{format_axes(axes)} | 123.4, 56% | 123.4, 56%"
    elsewhere = [f"## Measured on NVIDIA B200: best Solution (ana/{definition.name})", "axes | baseline", *[row] * 4]
    brief = write_brief(target(definition=definition, shapes=shapes), elsewhere)
    assert len(brief.encode()) <= BRIEF_BYTES
    assert definition.reference.strip() in brief
    assert brief.endswith(f"{row}\n")


def test_an_essay_in_a_definition_of_others_is_cut() -> None:
    brief = write_brief(target(definition=norm().model_copy(update={"description": "word " * 9000})))
    assert len(brief.encode()) <= BRIEF_BYTES
    assert norm().reference.strip() in brief


def test_feedback_says_the_rule_in_words_and_stays_within_its_bytes() -> None:
    feedback = write_feedback(wrong(0, "got 1, want 2 " * 500, rule="memory"))
    assert "by the rule `memory`: Is faster on contents that it has seen before." in feedback
    assert len(feedback.encode()) <= FEEDBACK_BYTES


def test_feedback_of_the_best_has_a_line_for_each_of_its_main_kernels() -> None:
    kernel = KernelCounters(
        name="k",
        microseconds=61.888,
        dram=81.42,
        l2=60.73,
        sm=22.04,
        occupancy=47.61,
        most_occupancy=50.0,
        limiter="registers",
        registers=64,
        shared_bytes=28672,
        stall="long scoreboard",
        stall_share=0.63,
    )
    profile = Profile(axes={"n": 1}, kernels=(kernel, KernelCounters(name="m", microseconds=2.0)), launches=5)
    times = {"milliseconds": 0.07, "low": 0.069, "high": 0.071}
    passed = ShapeResult(workload="w", axes={"n": 1}, status=EvaluationStatus.PASSED, speedup=1.5, **times)
    best = Attempt(number=0, ask=Ask(kind=AskKind.FIRST), technique="t", digest="d", results=(passed,), profile=profile)
    lines = write_feedback(best).splitlines()
    assert lines[0].startswith("Right everywhere; 1.500 times as fast")
    assert lines[1:4] == [
        "NCU, n=1, cold L2, 5 launches, the longest:",
        (
            "- k: 61.89 us, DRAM 81%, L2 61%, SM 22%, occupancy 48% of 50% (limit: registers), 64 registers, 28 KB shared,"
            " stalls most on long scoreboard (63%)"
        ),
        "- m: 2 us",
    ]


@pytest.mark.parametrize("problem", ["it is not installed here", "it is not installed here."])
def test_feedback_says_why_there_are_no_figures_with_one_full_stop(problem: str) -> None:
    best = right(0, 1.0).model_copy(
        update={
            "profile": Profile(axes={"n": 1}, problem=problem),
            "exactness": Exactness(axes={"n": 1}, problem=problem),
        }
    )
    said = write_feedback(best)
    assert "No counters of NCU: it is not installed here. What is said of the times below" in said
    assert "No error against FP64: it is not installed here.\n" in said


def right(number: int, milliseconds: float, *, width: float = 0.01) -> Attempt:
    times = {"milliseconds": milliseconds, "low": milliseconds * (1 - width), "high": milliseconds * (1 + width)}
    result = ShapeResult(
        workload="w",
        axes={"n": 1},
        status=EvaluationStatus.PASSED,
        speedup=1 / milliseconds,
        against="reference",
        **times,
    )
    return Attempt(number=number, ask=Ask(kind=AskKind.FIRST), technique="t", digest="d", results=(result,))


def test_speeds_within_their_intervals_are_not_told_apart() -> None:
    assert are_apart(right(0, 1.0), right(1, 0.9))
    assert not are_apart(right(0, 1.0), right(1, 0.99))
    assert not are_apart(right(0, 1.0), right(1, 0.9, width=0.2))
    assert "0.995 times as fast as the reference, not told apart from it" in write_feedback(right(0, 1.005))
    assert "not told apart" not in write_feedback(right(0, 0.9))


def test_a_history_has_a_line_for_each_of_the_newest() -> None:
    history = write_history([wrong(number, "a\nb" * 200) for number in range(20)])
    lines = history.splitlines()
    assert lines[0] == "(6 older ones)"
    assert len(lines) == 15
    assert all(len(line) < 160 for line in lines)


def test_a_memory_keeps_each_failure_once_and_forgets_none(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory", target())
    memory.note(wrong(0, "off by one"), "run1")
    memory.note(wrong(1, "off by one"), "run1")
    memory.note(wrong(2, "overflow", technique="other"), "run2")
    memory.note(wrong(3, "ModuleNotFoundError: No module named 'triton'", technique="third"), "run2")
    again = Memory(tmp_path / "memory", target())
    assert again.recall(besides="run2") == ["- plain: INCORRECT_NUMERICAL (wrong-values): off by one"]
    assert len(again.recall(besides="run3")) == 2
    for change in ({"language": Language.CUDA}, {"hardware": "NVIDIA B200"}):
        assert Memory(tmp_path / "memory", target(**change)).recall(besides="") == []


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("kernel", "kernel"),
        ("_ZN10flashinfer4norm13RMSNormKernelILj8E13__nv_bfloat16EEvPT0_", "RMSNormKernel"),
        (
            "_ZN2at6native29vectorized_elementwise_kernelILi8EZNS0_25bfloat16_copy_kernel_cudaERNS_18TensorIteratorBaseE",
            "bfloat16_copy_kernel_cuda",
        ),
        ("_ZN2at23_ActivationSiluKernel_cu_751192d7_1559511silu_kernelERNS_18TensorIteratorBaseE", "silu_kernel"),
        (f"_Z{'x' * 90}", f"_Z{'x' * 46}"),
    ],
)
def test_a_drafter_sees_short_names_of_kernels(name: str, short: str) -> None:
    series = Series(timer=Timer.GRAPH, l2=L2.COLD, milliseconds=0.1, low=0.1, high=0.1, samples=[0.1])
    warm = Series(
        timer=Timer.STOPWATCH, launch=Launch.GRAPH, l2=L2.WARM, milliseconds=0.05, low=0.05, high=0.05, samples=[0.05]
    )
    subject = Subject(
        definition="d",
        definition_hash="h",
        workload="w",
        workload_hash="h",
        solution="s",
        solution_hash="h",
        author="a",
        device="NVIDIA H200",
    )
    evidence = Evidence(
        subject=subject,
        status=EvaluationStatus.PASSED,
        axes={"n": 1},
        series=[series, warm],
        kernels=[name] * 9,
        gpu=Gpu(name="NVIDIA H200"),
    )
    (result,) = sum_up([evidence], {"w": 0.2}, {"w": 1.0})
    assert result.kernels == (short,) * 6
    attempt = Attempt(number=0, ask=Ask(kind=AskKind.FIRST), technique="t", digest="d", results=(result,))
    row = f"n=1: 100 us (100 to 100), 2.000 x, 50 us with a warm L2, 9 launches: {', '.join([short] * 6)}"
    assert row in write_feedback(attempt)
