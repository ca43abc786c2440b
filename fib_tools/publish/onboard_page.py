"""What an onboarding came to, as one HTML page that needs nothing else: no network and no script.

Names, reasons and links come from strangers: text is escaped where it is written (`markup.tag`), and only what begins with
https:// becomes a link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fib_tools.evaluate.report.report_schema import DefinitionReport, Report
from fib_tools.model.manifest import Manifest, ManifestKernel, ManualDefinition
from fib_tools.model.progress import PhaseTime, Step, sum_times
from fib_tools.publish.markup import Html, breakable, tag
from fib_tools.publish.report_cells import draw_bar, make_card
from fib_tools.publish.report_scales import NOTHING, format_factor

__all__ = ["KernelView", "OnboardView", "RequestView", "format_onboard_page"]

_STYLES = tuple(Path(__file__).with_name(name) for name in ("page.css", "onboard_page.css"))
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_PHASES = {0: "refresh", 1: "discover", 2: "define", 3: "collect", 4: "submit"}
_STEPS: Mapping[Step, str] = {
    Step.TEST: "references against real kernels",
    Step.BASELINE: "real kernels as Solutions",
    Step.COLLECT: "Workloads of a served model",
    Step.SIZES: "Workloads of made-up sizes",
    Step.CALIBRATE: "tolerances",
    Step.BENCH: "measurement of the baselines",
}
_GOOD = frozenset({"passed", "verified", "written", "calibrated", "kept", "merged", "open"})
_BAD = frozenset({"failed", "not passed", "refused"})
_MOST_HELD = 60
_TERMS = (
    ("Definition", "a kernel of the model in one size, with a PyTorch reference that was executed."),
    ("Verified", "on a GPU the reference agreed with the real kernel at every size of its test."),
    ("real, dummy, synthetic", "Workloads of real weights and prompts; of made-up weights; of made-up sizes."),
    ("% of limit", "the time that the GPU's measured bandwidth and arithmetic allow, over the time a baseline took."),
    ("Unmapped", "seen in the model or asked for, and of no kernel type, or not to be drawn up."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelView:
    """One kernel, and what the dataset holds of it."""

    kernel: ManifestKernel
    is_verified: bool = False
    origins: Mapping[str, int] = field(default_factory=dict)
    """Workloads by origin."""
    baselines: int = 0

    @property
    def name(self) -> str:
        """Of its Definition."""
        return self.kernel.staged or self.kernel.name

    @property
    def workloads(self) -> int:
        """How many there are."""
        return sum(self.origins.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestView:
    """A pull request or issue of phase 4."""

    kind: str
    subject: str
    status: str
    url: str
    """A link, or the repository where it would be opened."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnboardView:
    """All that the page shows."""

    manifest: Manifest
    manifest_name: str
    kernels: Sequence[KernelView]
    report: Report
    """Of the Traces of these kernels."""
    requests: Sequence[RequestView] = ()
    held_back: Sequence[str] = ()
    """What the checklist of phase 4 found."""


def format_onboard_page(view: OnboardView) -> str:
    """Write the page of an onboarding."""
    title = view.manifest.repo_id or view.manifest.model
    parts = (
        _tiles(view),
        _times(view.manifest.times),
        _coverage(view),
        _kernels(view),
        *_traces(view),
        *_requests(view),
        *_gaps(view.manifest),
        _sources(view.manifest),
    )
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Onboarding of {title}"),
        *(tag("style", Html(path.read_text(encoding="utf-8"))) for path in _STYLES),
    )
    body = (_header(view, title), tag("main", *parts, id="main"), _footer())
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def _header(view: OnboardView, title: str) -> Html:
    about = " · ".join(filter(None, (view.manifest.architecture or "", view.manifest_name)))
    return tag(
        "header",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        tag("h1", f"Onboarding of {title}"),
        tag("p", about, class_="sub"),
    )


def _tiles(view: OnboardView) -> Html:
    kernels = view.kernels
    states = Counter(each.kernel.define_status.value for each in kernels)
    origins = _sum_origins(kernels)
    shares = sorted(
        solution.percent for each in view.report.definitions for solution in each.solutions if solution.percent
    )
    passed, attempted = _count_passed(view.report.definitions)
    tests = Counter(each.kernel.steps[Step.TEST].status for each in kernels if Step.TEST in each.kernel.steps)
    covered = sum(each.workloads > 0 for each in kernels)
    spent = sum(sum_times(view.manifest.times).values())
    tiles = (
        ("kernels", str(len(kernels)), _spell(states) or "none was found"),
        ("verified", str(sum(each.is_verified for each in kernels)), _spell(tests) or "no test was run"),
        ("Workloads", str(sum(origins.values())), _spell(origins) or "none yet"),
        ("Traces passed", f"{passed}/{attempted}" if attempted else "0", "evaluations of baselines"),
        ("% of limit", f"{shares[len(shares) // 2]:.0f}" if shares else NOTHING, "median over the baselines"),
        ("covered", f"{100 * covered / len(kernels):.0f}%" if kernels else NOTHING, "of the kernels have Workloads"),
        ("time", _seconds(spent), "all phases, all runs"),
    )
    return tag(
        "div",
        *(
            tag("div", tag("span", name), tag("strong", value), tag("span", note, class_="dim"), class_="tile")
            for name, value, note in tiles
        ),
        class_="tiles",
    )


def _sum_origins(kernels: Iterable[KernelView]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in kernels:
        total.update(each.origins)
    return total


def _count_passed(reports: Iterable[DefinitionReport]) -> tuple[int, int]:
    solutions = [solution for report in reports for solution in report.solutions]
    return sum(each.passed for each in solutions), sum(each.attempted for each in solutions)


def _times(times: Sequence[PhaseTime]) -> Html:
    if not times:
        return make_card("Phases", tag("p", "no phase has taken time yet", class_="dim"))
    longest = max(time.seconds for time in times) or 1.0
    totals = sum_times(times)
    rows = []
    for phase, total in totals.items():
        own = [time for time in times if time.phase == phase]
        machines = ", ".join(dict.fromkeys(time.machine for time in own if time.machine))
        is_split = any(time.step for time in own)
        bar = "" if is_split else _bar(total, longest)
        rows.append((tag("strong", f"{phase} {_PHASES[phase]}"), _seconds(total), bar, machines))
        if is_split:
            rows += [
                (tag("span", f"{time.step.value}: {_STEPS[time.step]}", class_="sub-step"), _seconds(time.seconds),
                 _bar(time.seconds, longest), time.machine)
                for time in own if time.step
            ]  # fmt: skip
    table = _table(("phase", "time", "beside the longest", "machine"), rows, label="Time by phase", numbers={1})
    return make_card("Phases", table, note="Runs that found nothing to do take no time. Phase 0 is part of phase 1.")


def _bar(seconds: float, longest: float) -> Html:
    return tag(
        "span", tag("span", style=f"width:{100 * seconds / longest:.1f}%"), class_="bar time", aria_hidden="true"
    )


def _coverage(view: OnboardView) -> Html:
    unmapped = len(view.manifest.refused) + len(view.manifest.unexplained)
    rows = []
    for op_type in sorted({each.kernel.op_type for each in view.kernels}):
        own = [each for each in view.kernels if each.kernel.op_type == op_type]
        with_workloads = sum(each.workloads > 0 for each in own)
        missing = sum(each.kernel.staged is None for each in own)
        numbers = (len(own), with_workloads, len(own) - with_workloads - missing, missing)
        rows.append((tag("code", op_type), *(str(number or NOTHING) for number in numbers), _share(numbers)))
    columns = ("op_type", "kernels", "with Workloads", "Definition only", "missing", "share")
    note = (
        f"{unmapped} more {'is' if unmapped == 1 else 'are'} refused or unmapped, with reasons below."
        if unmapped
        else ""
    )
    return make_card("Coverage", _table(columns, rows, label="Coverage by op_type", numbers={1, 2, 3, 4}), note=note)


def _share(numbers: Sequence[int]) -> Html:
    total, workloads, definitions, _ = numbers
    parts = (("full", workloads), ("half", definitions))
    spans = (tag("span", style=f"width:{100 * part / total:.1f}%", class_=name) for name, part in parts if part)
    return tag("span", *spans, class_="bar share", aria_hidden="true")


def _kernels(view: OnboardView) -> Html:
    rows = [
        (
            tag("code", breakable(each.name)),
            _state(each.kernel.define_status.value),
            _test(each),
            _spell(each.origins) or NOTHING,
            str(each.baselines or NOTHING),
            _serve(each.kernel),
            "template" if each.kernel.fi_trace_template else each.kernel.fi_status.value,
            each.kernel.sgl_status.value,
        )
        for each in sorted(view.kernels, key=lambda each: (each.kernel.op_type, each.name))
    ]
    columns = ("definition", "dataset", "reference test", "Workloads", "baselines", "served as", "FlashInfer", "SGLang")
    note = "; ".join(view.manifest.serving)
    return make_card("Kernels", _table(columns, rows, label="Kernels", numbers={4}), note=note)


def _serve(kernel: ManifestKernel) -> str:
    sizes = (("tp", kernel.tp), ("ep", kernel.ep if kernel.ep != (1,) else ()), ("ps", kernel.page_sizes))
    return " ".join(f"{key}{','.join(map(str, values))}" for key, values in sizes if values)


def _test(each: KernelView) -> Html:
    record = each.kernel.steps.get(Step.TEST)
    if record is None:
        return _state("verified" if each.is_verified else NOTHING)
    return tag("span", _state(record.status), title=f"{record.machine}: {record.detail}"[:400])


def _state(status: str) -> Html:
    classes = "good" if status in _GOOD else "bad" if status in _BAD else "dim" if status == NOTHING else None
    return tag("span", status, class_=classes)


def _traces(view: OnboardView) -> Iterable[Html]:
    for device in view.report.devices:
        own = [
            each
            for each in view.report.definitions
            if (each.device, each.measured_by) == (device.device, device.measured_by)
        ]
        rows = [
            (
                tag("code", breakable(report.definition)),
                tag("span", f"{solution.author}/{solution.solution}"),
                tag(
                    "span",
                    f"{solution.passed}/{solution.attempted}",
                    class_="bad" if solution.passed < solution.attempted else None,
                ),
                draw_bar(solution.percent, classes="c0"),
                NOTHING if solution.reference_speedup is None else format_factor(solution.reference_speedup),
            )
            for report in sorted(own, key=lambda report: (report.op_type, report.definition))
            for solution in report.solutions
        ]
        columns = ("definition", "baseline", "passed", "% of limit", "over reference")
        note = "A CPU: these are no figures of a GPU." if device.is_cpu else f"Timed with {', '.join(device.timers)}."
        yield make_card(
            f"Baselines on {device.device}",
            _table(columns, rows, label=f"Baselines on {device.device}", numbers={2, 3, 4}),
            note=note,
        )


def _requests(view: OnboardView) -> Iterable[Html]:
    if view.requests:
        notes = any(each.note for each in view.requests)
        rows = [
            (each.kind, each.subject, _state(each.status), _link(each.url), *((each.note,) if notes else ()))
            for each in view.requests
        ]
        columns = ("kind", "about", "status", "where", *(("note",) if notes else ()))
        yield make_card("Pull requests and issues", _table(columns, rows, label="Pull requests and issues"))
    if view.held_back:
        items = (tag("li", text) for text in view.held_back[:_MOST_HELD])
        more = len(view.held_back) - _MOST_HELD
        rest = (tag("li", f"and {more} more: fib submit shows them"),) if more > 0 else ()
        yield make_card(
            f"Held back by the checklist ({len(view.held_back)})", tag("ul", *items, *rest, class_="reasons")
        )


def _link(url: str) -> Html:
    return tag("a", url, href=url, rel="noreferrer") if url.startswith("https://") else tag("span", url)


def _gaps(manifest: Manifest) -> Iterable[Html]:
    refused = [(each.subject, each.reason) for each in manifest.refused]
    refused += [
        (kernel.name, kernel.define_reason) for kernel in manifest.kernels if kernel.define_status.value == "refused"
    ]
    unmapped = [(f"{each.operation} in {each.module}", each.detail) for each in manifest.unexplained]
    failed = [
        (f"{kernel.staged or kernel.name}, {step.value}", f"{record.status} on {record.machine}: {record.detail}")
        for kernel in manifest.members
        for step, record in kernel.steps.items()
        if record.status in _BAD
    ]
    lists = (
        ("Failed in phase 3", failed),
        ("Refused", refused),
        ("Unmapped", unmapped),
        ("Disagreements", [(each.subject, each.chosen) for each in manifest.disagreements]),
        ("By hand", [(each.name, _tell_manual(each)) for each in manifest.manual]),
        ("Notes", [("", text) for text in manifest.notes]),
    )
    for title, entries in lists:
        if entries:
            items = (tag("li", *([tag("code", breakable(head)), " "] if head else []), text) for head, text in entries)
            yield make_card(f"{title} ({len(entries)})", tag("ul", *items, class_="reasons"))


def _tell_manual(item: ManualDefinition) -> str:
    steps = (f"{step.value}: {record.status}" for step, record in item.steps.items())
    return "; ".join(filter(None, (item.compared, *steps)))


def _sources(manifest: Manifest) -> Html:
    rows = [(name, entry.origin, tag("code", breakable(entry.version))) for name, entry in manifest.sources.items()]
    return make_card("Sources", _table(("source", "origin", "version"), rows, label="Sources"))


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    numbers: frozenset[int] | set[int] = frozenset(),
) -> Html:
    def classes(place: int) -> str | None:
        return "n" if place in numbers else None

    head = tag("tr", *(tag("th", name, scope="col", class_=classes(place)) for place, name in enumerate(columns)))
    body = (
        tag("tr", *(
            tag("td" if place else "th", cell, class_=classes(place), scope=None if place else "row")
            for place, cell in enumerate(row)
        ))
        for row in rows
    )  # fmt: skip
    table = tag("table", tag("thead", head), tag("tbody", *body), aria_label=label)
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _spell(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _footer() -> Html:
    items = (tag("div", tag("dt", name), tag("dd", text), class_="term") for name, text in _TERMS)
    return tag("footer", tag("h2", "What the words mean"), tag("dl", *items))
