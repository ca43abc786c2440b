"""What stands behind a page's numbers, as JSON for its script: measurements, and the evidence of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fib_tools.evaluate.report.report_schema import Measurement
from fib_tools.model.base import to_document
from fib_tools.model.evidence import Evidence

__all__ = ["MOST_SAMPLES", "build_data"]

MOST_SAMPLES = 400
"""Of a series; more do not show in a small plot."""
MOST_EVIDENCE = 4000
"""Of a page: some 12 MB; the rest is named by its address."""


def build_data(
    measurements: Sequence[Measurement], labels: Mapping[tuple[str, str], str], evidence: Mapping[str, Evidence]
) -> dict[str, Any]:
    """Build the script's data: `rows` in the order of the measurements, `evidence` by address."""
    shown = list(dict.fromkeys(m.evidence for m in measurements if m.evidence))[:MOST_EVIDENCE]
    return {
        "rows": [_row(m, labels[m.definition, m.workload]) for m in measurements],
        "evidence": {key: _evidence(evidence[key]) for key in shown if key in evidence},
    }


def _row(m: Measurement, label: str) -> dict[str, Any]:
    document = _finite(to_document(m))
    return {**document, "label": label}


def _evidence(evidence: Evidence) -> dict[str, Any]:
    document = to_document(evidence)
    for series in document.get("series", ()):
        series["taken"] = len(series["samples"])
        series["samples"] = [
            float(f"{value:.6g}") for value in series["samples"][:MOST_SAMPLES] if math.isfinite(value)
        ]
    # JavaScript's numbers hold 53 bits
    document["seed"] = str(evidence.seed)
    finite: dict[str, Any] = _finite(document)
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
