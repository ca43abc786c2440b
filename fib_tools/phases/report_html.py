"""A validation report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fib_tools.model.report import Finding, Severity

__all__ = ["format_html"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;
vertical-align:top;overflow-wrap:anywhere}.error{color:#b00020;font-weight:600}.warning{color:#8a5a00}.note{color:#555}
code{font-size:.9em}@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}th,td{border-color:#333}
.error{color:#ff8a80}.warning{color:#ffcc66}.note{color:#aaa}}
"""


def format_html(subject: str, counts: Mapping[str, int], findings: Sequence[Finding]) -> str:
    """Write the report; everything from the dataset is escaped."""
    totals = {severity: sum(f.severity is severity for f in findings) for severity in Severity}
    head = ", ".join(f"{count} {escape(kind)}" for kind, count in counts.items())
    said = ", ".join(f'<span class="{s.value}">{n} {s.value}s</span>' for s, n in totals.items())
    rows = "\n".join(_row(finding) for finding in findings)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Validation of {escape(subject)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>Validation of {escape(subject)}</h1>\n<p>{head}</p>\n<p>{said}</p>\n"
        "<table><thead><tr><th>severity</th><th>check</th><th>where</th><th>message</th><th>next</th></tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></body></html>\n"
    )


def _row(finding: Finding) -> str:
    kind = finding.severity.value
    cells = (f"<code>{escape(finding.check)}</code>", f"<code>{escape(finding.where)}</code>")
    texts = (escape(finding.message), escape(finding.todo or ""))
    return f'<tr><td class="{kind}">{kind}</td>' + "".join(f"<td>{cell}</td>" for cell in (*cells, *texts)) + "</tr>"
