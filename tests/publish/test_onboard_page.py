"""The page of an onboarding, read as text and opened in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import chromium
from bench_dataset import CPU, HOSTILE, sample_cases, write_cases
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_reading import read_measurements
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.model.kernel import Disagreement, Unexplained, Witness, WitnessSource
from fib_tools.model.manifest import (
    DefineStatus,
    FiStatus,
    Manifest,
    ManifestKernel,
    ManualDefinition,
    Phase1Status,
    Refusal,
    SglStatus,
    SourceVersion,
)
from fib_tools.model.progress import PhaseTime, Step, StepRecord
from fib_tools.publish.onboard_page import KernelView, OnboardView, RequestView, format_onboard_page

WIDTHS = (390, 1280)


def kernel(name: str, op_type: str, **own: object) -> ManifestKernel:
    facts = {
        "name": name,
        "op_type": op_type,
        "kernel": op_type,
        "parameters": {},
        "tp": (1, 8),
        "phase1_status": Phase1Status.NEW,
        "fi_status": FiStatus.SUPPORTED,
        "fi_trace_template": True,
        "sgl_status": SglStatus.INTEGRATED,
        "define_status": DefineStatus.DEFINED,
    }
    return ManifestKernel.model_validate({**facts, **own})


def record(status: str) -> StepRecord:
    return StepRecord(status=status, detail=HOSTILE, basis="0a", machine="NVIDIA H200")


def make_view(root: Path) -> OnboardView:
    """Everything that a page can show, with hostile texts wherever they can come from."""
    cases = list(sample_cases(hostile=True))
    write_cases(root, cases)
    names = sorted({(case.definition, case.op_type) for case in cases})
    kernels = [kernel(name, op_type, steps={Step.TEST: record("passed")}) for name, op_type in names]
    kernels[0] = kernels[0].model_copy(update={"steps": {Step.TEST: record("failed")}})
    kernels.append(kernel("conv_x", "conv", define_status=DefineStatus.REFUSED, define_reason=HOSTILE))
    witness = Witness(source=WitnessSource.CONFIG, detail="head_dim=64")
    manifest = Manifest(
        model="tiny",
        repo_id=f"maker/{HOSTILE}",
        architecture="TinyForCausalLM",
        sources={"sglang": SourceVersion(origin="clone", version="0a" * 20)},
        serving=("tp8 on H200",),
        kernels=tuple(kernels),
        refused=(Refusal(subject="tp3", reason=HOSTILE),),
        disagreements=(Disagreement(subject="head_dim", statements=(witness, witness), chosen="64, by the config"),),
        unexplained=(Unexplained(operation="aten.conv1d", module="model.conv", detail=HOSTILE),),
        manual=(
            ManualDefinition(
                name="by_hand", op_type="conv", executed=True, compared="equal", steps={Step.TEST: record("passed")}
            ),
        ),
        notes=(HOSTILE,),
        times=(
            PhaseTime(phase=1, seconds=3.0, machine="a laptop"),
            PhaseTime(phase=3, step=Step.TEST, seconds=150.0, machine="NVIDIA H200"),
            PhaseTime(phase=3, step=Step.BENCH, seconds=30.0, machine="NVIDIA H200"),
        ),
    )
    views = tuple(
        KernelView(kernel=each, is_verified=place > 0, origins={"dummy": 2, "synthetic": place}, baselines=1)
        for place, each in enumerate(kernels[:-1])
    )
    requests = (
        RequestView(kind="dataset", subject=HOSTILE, status="open", url="https://huggingface.co/d/1"),
        RequestView(kind="coverage", subject="model", status="would open", url="javascript:alert(1)", note=HOSTILE),
    )
    return OnboardView(
        manifest=manifest,
        manifest_name="onboard_tiny_2026-11-22.json",
        kernels=(*views, KernelView(kernel=kernels[-1])),
        report=build_report(read_measurements(Dataset(root))),
        requests=requests,
        held_back=(HOSTILE,) * 70,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    path = root / "onboard.html"
    path.write_text(format_onboard_page(make_view(root / "data")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    binary = chromium.find_chromium()
    if binary is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with chromium.start_chromium(binary, tmp_path_factory.mktemp("chromium") / "profile") as started:
        yield started


def plain(text: str) -> str:
    return re.sub(r"<wbr>", "", text)


def test_every_part_is_on_the_page(text: str) -> None:
    for title in (
        *("Phases", "Coverage", "Kernels", "Baselines on NVIDIA H200", "Pull requests and issues"),
        *("Held back by the checklist (70)", "Failed in phase 3 (1)", "Refused (2)", "Unmapped (1)"),
        *("Disagreements (1)", "By hand (1)", "Notes (1)", "Sources"),
    ):
        assert f"<h3>{title}</h3>" in text
    assert "6 defined, 1 refused" in text
    assert "12 dummy, 15 synthetic" in text
    assert "2 more are refused or unmapped, with reasons below." in text
    assert "and 10 more: fib submit shows them" in text
    assert "aten.conv1d in model.conv" in text
    assert "equal; test: passed" in text


def test_times_are_summed_up_by_phase_with_the_machine(text: str) -> None:
    rows = re.findall(
        r"<tr><th scope=\"row\"><(?:strong|span)[^>]*>([^<]+)</(?:strong|span)></th><td class=\"n\">([^<]+)</td>", text
    )
    assert rows[:4] == [
        ("1 discover", "3.0 s"),
        ("3 collect", "3.0 min"),
        ("test: references against real kernels", "2.5 min"),
        ("bench: measurement of the baselines", "30.0 s"),
    ]


def test_texts_of_strangers_are_no_markup_and_only_web_addresses_are_links(text: str) -> None:
    assert HOSTILE not in text
    assert "<script" not in text
    assert re.findall(r'href="([^"]+)"', text) == ["#main", "https://huggingface.co/d/1"]


def test_an_onboarding_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    report = build_report(read_measurements(Dataset(tmp_path)))
    view = OnboardView(manifest=Manifest(model="tiny"), manifest_name="m.json", kernels=(), report=report)
    text = format_onboard_page(view)
    assert "no phase has taken time yet" in text
    assert "none was found" in text
    assert "Baselines" not in text


def test_figures_of_a_cpu_say_that_they_are(tmp_path: Path) -> None:
    cases = [case for case in sample_cases() if case.author == "baseline"][:2]
    write_cases(tmp_path, [type(case)(**{**vars(case), "gpu": CPU}) for case in cases])
    report = build_report(read_measurements(Dataset(tmp_path)))
    view = OnboardView(manifest=Manifest(model="tiny"), manifest_name="m.json", kernels=(), report=report)
    assert "A CPU: these are no figures of a GPU." in format_onboard_page(view)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_trouble_and_within_its_width(
    browser: chromium.Browser, page: Path, width: int, *, dark: bool
) -> None:
    browser.resize(width, 900, dark=dark)
    browser.open(page)
    assert browser.list_trouble() == []
    assert browser.list_requests() == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("document.title").startswith("Onboarding of maker/")
    narrow = "[...document.querySelectorAll('.tile, .card')].filter((e) => e.getBoundingClientRect().right > innerWidth).length"
    assert browser.evaluate(narrow) == 0


def test_every_table_can_be_reached_by_keyboard_and_has_a_name(browser: chromium.Browser, page: Path) -> None:
    browser.resize(390, 900)
    browser.open(page)
    wrong = "[...document.querySelectorAll('table')].filter((t) => !t.ariaLabel || t.parentNode.tabIndex !== 0).length"
    assert browser.evaluate(wrong) == 0
    assert browser.evaluate("[...document.querySelectorAll('th')].filter((h) => !h.textContent.trim()).length") == 0
