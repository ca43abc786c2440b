"""What becomes of every trace template of the installed FlashInfer, and of a folder of raw dumps, at the gate.

python benchmarks/templates_and_dumps.py [--dumps DIR] [--json FILE] [--verbose]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fib_tools.gate.execute import open_sandbox
from fib_tools.gate.gate import AdmissionStatus, Candidate, admit, to_candidate
from fib_tools.gate.normalise import normalise
from fib_tools.gate.templates import TemplateResult, enumerate_templates
from fib_tools.model.report import Finding
from fib_tools.sources.dumps import load_raw_dumps


class Row(NamedTuple):
    kind: str
    name: str
    outcome: str
    reason: str


def _sources(
    dumps: Path | None,
) -> Iterator[tuple[str, str, dict[str, Any], TemplateResult | None, list[dict[str, Any]]]]:
    for result in enumerate_templates():
        if result.raw is not None:
            yield "template", result.raw["name"], result.raw, result, []
    folders: dict[Path, list[tuple[Path, dict[str, Any]]]] = {}
    for dump in load_raw_dumps(dumps) if dumps else ():
        if not isinstance(dump, Finding):
            path = Path(dump.path)
            folders.setdefault(path.parent, []).append((path, dump.data))
    for folder, members in sorted(folders.items()):
        siblings = [data for _, data in members]
        for path, data in members:
            yield "dump", f"{folder.name}/{path.name}", data, None, siblings


def judge(dumps: Path | None) -> list[Row]:
    rows: list[Row] = []
    candidates: list[Candidate] = []
    origin: dict[str, tuple[str, str, bool]] = {}
    for number, (kind, name, raw, call, siblings) in enumerate(_sources(dumps)):
        found = normalise(raw, call=call, siblings=siblings)
        if found.definition is None:
            has_reference = bool(raw.get("reference"))
            rows.append(Row(kind, name, "refused" if has_reference else "no reference", found.refused or ""))
            continue
        candidate = to_candidate(found)
        # every item runs, duplicates too: the serial number keeps identity out of this count
        unique = f"i{number}_{candidate.definition.name}"[:150]
        origin[unique] = (kind, name, found.is_canonical)
        definition = candidate.definition.model_copy(update={"name": unique})
        candidates.append(
            Candidate(definition=definition, is_foreign=candidate.is_foreign, fallback=candidate.fallback)
        )
    with open_sandbox() as sandbox:
        for candidate in candidates:
            for admission in admit([candidate], index={}, stage=lambda _: None, sandbox=sandbox):
                kind, name, is_canonical = origin[admission.name]
                accepted = admission.status is not AdmissionStatus.REFUSED
                reason = "" if accepted else "; ".join(finding.message for finding in admission.findings)
                is_ours = is_canonical or any(finding.check == "gate.replaced" for finding in admission.findings)
                outcome = ("written anew, executes" if is_ours else "executes") if accepted else "fails"
                rows.append(Row(kind, name, outcome, reason))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dumps", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    rows = judge(options.dumps)
    for kind in ("template", "dump"):
        counts = Counter(row.outcome for row in rows if row.kind == kind)
        if not counts:
            continue
        tried = sum(count for outcome, count in counts.items() if "executes" in outcome or outcome == "fails")
        passed = tried - counts["fails"]
        print(
            f"{kind}s: {sum(counts.values())}",
            *(f"{outcome} {count}" for outcome, count in sorted(counts.items())),
            sep="  ",
        )
        print(f"  of {tried} with a reference and a possible shape {passed} execute: {passed / max(tried, 1):.1%}")
    reasons = Counter((row.outcome, row.reason[:90]) for row in rows if row.outcome in {"refused", "fails"})
    for (outcome, reason), count in sorted(reasons.items(), key=lambda item: (item[0][0], -item[1])):
        print(f"{count:4}  {outcome}: {reason}")
    if options.verbose:
        for row in rows:
            if row.outcome in {"refused", "fails"}:
                print(f"{row.kind}\t{row.name}\t{row.outcome}\t{row.reason[:300]}")
    print(
        f"{time.perf_counter() - start:.1f} s, flashinfer-python {version('flashinfer-python')}, torch {version('torch')}"
    )
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
