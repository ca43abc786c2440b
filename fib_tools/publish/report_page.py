"""A report as one HTML page that needs nothing else: no network, and a script that only sorts, filters and shows evidence.

Names, logs and labels come from strangers.
They are escaped where they are written (`markup.tag`), the page's policy allows its own script alone (by hash), and the
script writes text only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fib_tools.evaluate.report.report_schema import Comparison, Report
from fib_tools.model.evidence import Evidence
from fib_tools.publish.markup import Html, embed_json, tag
from fib_tools.publish.report_cells import name_device
from fib_tools.publish.report_comparison import show_comparison
from fib_tools.publish.report_data import build_data
from fib_tools.publish.report_devices import show_device
from fib_tools.publish.report_marks import define_shapes

__all__ = ["format_page"]

_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")
_MOST_PROBLEMS = 50
_TERMS = (
    (
        "Time",
        "the mean of the middle half of the samples; fib-tools takes them with a cold L2 cache and new inputs at each call.",
    ),
    (
        "95% interval",
        "where the time lies, with 19 chances of 20, if it were measured again under the same conditions.",
    ),
    (
        "Speed-up",
        "the fastest baseline's time on the same workload, device and timer over this one; of several, the geometric mean.",
    ),
    (
        "fast_p",
        "the share of the workloads with a baseline that passed and ran at least p times as fast; one not tried did not pass.",
    ),
    ("% of limit", "the time that the device's measured bandwidth and arithmetic allow, over the time it took."),
    ("Rejected", "it broke an integrity rule: its figure would not have been its own."),
)


def format_page(
    report: Report,
    evidence: Mapping[str, Evidence],
    *,
    subject: str,
    comparison: Comparison | None = None,
    problems: Sequence[str] = (),
) -> str:
    """Write the page of a report."""
    labels = {(d.definition, w.uuid): w.label for d in report.definitions for w in d.workloads}
    script = _SCRIPT.read_text(encoding="utf-8")
    sections = [show_device(place, device, report, evidence) for place, device in enumerate(report.devices)]
    body = [
        define_shapes(),
        _header(report, subject),
        tag("main", *_problems(problems), *show_comparison(comparison), *sections, id="main"),
        _footer(),
        tag("dialog", id="evidence", aria_labelledby="evidence-title"),
        tag(
            "script", embed_json(build_data(report.measurements, labels, evidence)), type="application/json", id="data"
        ),
        tag("script", Html(script)),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Kernel benchmarks: {subject}"),
        tag("style", Html(_STYLE.read_text(encoding="utf-8"))),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _header(report: Report, subject: str) -> Html:
    links = [tag("a", name_device(device), href=f"#device-{place}") for place, device in enumerate(report.devices)]
    newest = max((device.newest for device in report.devices), default="")
    return tag(
        "header",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        tag("h1", "Kernel benchmarks"),
        tag("p", tag("code", subject), *([f" · newest evaluation {newest}"] if newest else []), class_="sub"),
        *([tag("nav", *links, aria_label="Devices")] if len(links) > 1 else []),
    )


def _problems(problems: Sequence[str]) -> list[Html]:
    if not problems:
        return []
    items = [tag("li", problem) for problem in problems[:_MOST_PROBLEMS]]
    more = [tag("li", f"and {len(problems) - _MOST_PROBLEMS} more")] if len(problems) > _MOST_PROBLEMS else []
    head = tag("h2", "Not to be trusted")
    said = tag("p", "These traces could not be read, or their evidence contradicts them:")
    return [tag("section", head, said, tag("ul", *items, *more), class_="card alarm")]


def _footer() -> Html:
    items = (tag("div", tag("dt", name), tag("dd", text), class_="term") for name, text in _TERMS)
    return tag("footer", tag("h2", "What the figures mean"), tag("dl", *items))
