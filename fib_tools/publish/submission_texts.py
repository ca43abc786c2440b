"""What reviewers read: titles and descriptions of pull requests and issues, and the provenance of a Definition.

Every text begins with a marker that no reader sees; by it a later run finds what an earlier one opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.manifest import Manifest, ManifestKernel
from fib_tools.model.workload import Workload
from fib_tools.publish.checklist import CHECKS
from fib_tools.publish.dossier import Dossier, Group

__all__ = [
    "Text",
    "link_model",
    "make_marker",
    "write_coverage_text",
    "write_dataset_text",
    "write_integration_text",
    "write_kernel_request",
    "write_provenance",
    "write_template_request",
]

_HUB = "https://huggingface.co"
_ROWS = 150
"""Definitions in the table of a description; a comment has room for some 65,000 characters."""
_CALL_SITES = 3
_CELL = 200
"""Characters of a text from outside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A title with what stands under it."""

    title: str
    body: str


def make_marker(model: str, what: str) -> str:
    """Make the line by which a request is found again."""
    return f"<!-- fib submit: {model} {what} -->"


def link_model(manifest: Manifest) -> str:
    """Link a model's repository; the bare name of one that has none."""
    return f"[{manifest.repo_id}]({_HUB}/{manifest.repo_id})" if manifest.repo_id else manifest.model


def write_dataset_text(manifest: Manifest, group: Group, marker: str) -> Text:
    """Describe the pull request of the dataset."""
    count = len(group.dossiers)
    kernels = f"{count} {_plural('Definition', count)}"
    rows = [_dataset_row(dossier) for dossier in group.dossiers[:_ROWS]]
    more = [f"... and {count - _ROWS} more."] if count > _ROWS else []
    lines = [
        marker,
        f"{kernels} of {link_model(manifest)}{_of(group)}, each with its reference test, Workloads, baselines and Traces.",
        "",
        "| Definition | Workloads | reference test | fastest baseline |",
        "| --- | --- | --- | --- |",
        *rows,
        *more,
        "",
        "## Checked before this was sent",
        "",
        *(f"- [x] {check.asks}" for check in CHECKS),
        "",
        "The full output of each reference test lies in `logs/`, every measurement in `evidence/`, and where a Definition",
        "comes from in `provenance/`.",
        "",
        *_describe_origins(group.dossiers),
        "## Sources",
        "",
        f"- config.json: SHA-256 `{manifest.config_sha256}`",
        *(f"- {name}: {_code(source.version)} ({source.origin})" for name, source in sorted(manifest.sources.items())),
        *(f"- served: {_code(way)}" for way in manifest.serving),
    ]
    return Text(title=f"Add {kernels} of {manifest.model}{_of(group)}", body=_join(lines))


def _dataset_row(dossier: Dossier) -> str:
    log = dossier.log
    test = ""
    if log is not None:
        test = f"{log.status}: {log.kernel} on {log.gpu}" if log.kernel else f"{log.status}: {log.reason}"
    fastest = dossier.find_fastest()
    speed = ""
    if fastest and fastest.evaluation and fastest.evaluation.performance:
        performance = fastest.evaluation.performance
        speed = f"{fastest.solution}: {performance.latency_ms:.4g} ms, {performance.speedup_factor:.3g}x the reference"
    return f"| `{dossier.name}` | {len(dossier.workloads)} | {_code(test)} | {_code(speed)} |"


def _describe_origins(dossiers: Iterable[Dossier]) -> list[str]:
    made_up = sum(_is_dummy(workload) for dossier in dossiers for workload in dossier.workloads)
    if not made_up:
        return []
    return [
        f"{made_up} Workloads were collected from an engine with made-up weights: their sizes and page tables are real,",
        "their values are not.",
        "",
    ]


def _is_dummy(workload: Workload) -> bool:
    return workload.origin == "dummy"


def write_coverage_text(manifest: Manifest, group: Group, marker: str, *, dataset_url: str) -> Text:
    """Describe the pull request of the coverage document."""
    lines = [
        marker,
        f"Brings the coverage of {link_model(manifest)}{_of(group)} up to date.",
        f"Definitions, tests, Workloads, baselines and Traces are in [this pull request of flashinfer-trace]({dataset_url}).",
        "Merge that one first.",
        "",
        "Only the coverage document changes, and in it only what stands between the marks of this model.",
        "",
        *(f"- `{name}`" for name in group.names[:_ROWS]),
    ]
    return Text(title=f"Coverage of {manifest.model}{_of(group)}", body=_join(lines))


def write_kernel_request(
    manifest: Manifest, kernels: Sequence[ManifestKernel], marker: str, *, dataset_url: str
) -> Text:
    """Ask for a kernel that FlashInfer does not have, for all the sizes in which the model needs it."""
    first = kernels[0]
    lines = [
        marker,
        f"{link_model(manifest)} needs `{first.kernel}` ({first.op_type}), and FlashInfer has no kernel for it.",
        "",
        "| Definition | TP | EP | where |",
        "| --- | --- | --- | --- |",
        *(f"| `{kernel.definition or kernel.name}` | {_sizes(kernel.tp)} | {_sizes(kernel.ep)} | {_code(kernel.module)} |"
          for kernel in kernels),
        "",
        "Each of these Definitions has a reference in plain PyTorch, a test, and Workloads of a serving engine:",
        f"they are in [this pull request of flashinfer-trace]({dataset_url}).",
        "",
        "## What would show that it is done",
        "",
        "- A kernel that agrees with the reference in the Definition's own test.",
        "- `@flashinfer_api(trace=...)` on it, so that calls of a serving engine can be dumped and replaced.",
    ]  # fmt: skip
    return Text(title=f"Kernel request: {first.kernel} ({first.op_type})", body=_join(lines))


def write_template_request(
    manifest: Manifest, asked: Text, kernels: Sequence[ManifestKernel], marker: str, *, dataset_url: str
) -> Text:
    """Add to the text of a template request who needs it, and where its Definitions are."""
    names = ", ".join(f"`{kernel.definition or kernel.name}`" for kernel in kernels)
    lines = [
        marker,
        asked.body.strip(),
        "",
        "## Who needs it",
        "",
        f"{link_model(manifest)}, for {names}, in [this pull request of flashinfer-trace]({dataset_url}).",
    ]
    return Text(title=asked.title, body=_join(lines))


def write_integration_text(manifest: Manifest, kernels: Sequence[ManifestKernel], marker: str) -> Text:
    """Describe the pull request that lets SGLang call FlashInfer's kernels."""
    rows = [f"| `{kernel.definition or kernel.name}` | `{kernel.fi_api}` |" for kernel in kernels]
    table = ["", "| Definition | FlashInfer's API |", "| --- | --- |", *rows] if rows else []
    lines = [
        marker,
        f"Lets SGLang call FlashInfer's kernels for {link_model(manifest)}, where it does not yet.",
        *table,
    ]
    return Text(title=f"FlashInfer kernels for {manifest.model}", body=_join(lines))


def write_provenance(manifest: Manifest, dossier: Dossier) -> bytes:
    """Say where a Definition comes from: the model, its sources, and who says so."""
    kernel = dossier.kernel
    document: dict[str, object] = {
        "definition": dossier.name,
        "model": manifest.model,
        "repo_id": manifest.repo_id,
        "config_sha256": manifest.config_sha256,
        "sources": dict(sorted(manifest.sources.items())),
        "serving": list(manifest.serving),
    }
    if kernel is not None:
        sites: Mapping[str, object] = {"sgl_call_sites": list(kernel.sgl_call_sites[:_CALL_SITES])}
        document |= {
            "kernel": kernel.kernel,
            "parameters": kernel.parameters,
            "module": kernel.module,
            "tp": list(kernel.tp),
            "ep": list(kernel.ep),
            "page_sizes": list(kernel.page_sizes),
            "fi_api": kernel.fi_api,
            "fi_name": kernel.fi_name,
            "witnesses": list(kernel.witnesses),
            **sites,
        }
    if dossier.manual is not None:
        document["manual"] = dossier.manual
    return canonical_bytes({name: value for name, value in document.items() if value not in (None, [], "")})


def _of(group: Group) -> str:
    return f": {group.title}" if group.title else ""


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _sizes(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))


def _code(text: str) -> str:
    """Keep a text from outside from being markup, a mention or the end of a cell."""
    plain = " ".join(text.replace("|", "/").replace("`", "'").split())[:_CELL]
    return f"`{plain}`" if plain else ""


def _join(lines: Iterable[str]) -> str:
    return "\n".join(lines).strip() + "\n"
