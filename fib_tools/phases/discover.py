"""Phase 1, discover: which models are new in SGLang, the cookbook and on the Hub, and which of them are onboarded."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from fib_tools.errors import OfflineError, RequestError, SourceError
from fib_tools.host.env import cache_dir
from fib_tools.host.git import list_added_files
from fib_tools.model.summary import Result, Summary, Table
from fib_tools.phases.context import Context
from fib_tools.phases.manifests import list_manifests, manifest_model
from fib_tools.phases.request import check_hardware
from fib_tools.sources.cookbook import ServingConfig, load_bundled_cookbook, load_cookbook
from fib_tools.sources.registry import find_model
from fib_tools.sources.sglang import load_sglang
from fib_tools.sources.trending import list_trending

__all__ = ["SINCE", "DiscoverResult", "Discovery", "discover_models"]

SINCE = r"^\d{1,5}[dwm]$"
"""A span of time: `30d`, `6w`, `2m`."""
_SINCE = re.compile(r"(\d{1,5})([dwm])")
_DAYS = {"d": 1, "w": 7, "m": 30}
_MODELS = "python/sglang/srt/models"
_COOKBOOK_DATA = "data/models"
_POPULAR = 50
"""How many of the Hub's list are looked at."""


class Discovery(Result):
    """A model that could be onboarded."""

    model: str
    """A name that `fib onboard` takes; for a file of SGLang, the file."""
    source: Literal["cookbook", "sglang", "hub"]
    evidence: str
    """Version, commit date or file."""
    config_bundled: bool
    onboarded: bool


class DiscoverResult(Result):
    """What is new, and how far back was looked."""

    rows = "discoveries"

    discoveries: tuple[Discovery, ...]
    basis: tuple[str, ...]
    """What was looked at, and what could not be."""

    def summary(self) -> Summary:
        """List what is new, then on what basis."""
        rows = tuple(
            (
                entry.model,
                entry.source,
                entry.evidence,
                "yes" if entry.config_bundled else "from the Hub",
                "yes" if entry.onboarded else "no",
            )
            for entry in self.discoveries
        )
        columns = ("model", "source", "evidence", "config bundled", "onboarded")
        table = Table(title="models", columns=columns, rows=rows)
        return Summary(tables=(table,), lines=(*self.basis, f"{len(rows)} models; next: fib onboard MODEL"))


def discover_models(
    context: Context,
    *,
    since: Annotated[
        str, Field(description="How far back to look in the clones' history: 30d, 6w, 2m.", pattern=SINCE)
    ] = "30d",
    hardware: Annotated[str | None, Field(description="Only cookbook entries for this GPU, such as H200.")] = None,
    trending: Annotated[
        bool, Field(description="Ask the Hugging Face Hub for its trending list too; models that SGLang serves.")
    ] = False,
) -> DiscoverResult:
    """List models that are new in SGLang's history and in the sgl-cookbook.

    Without clones the newest version of the bundled cookbook is listed, and said so.
    """
    days = _parse_since(since)
    onboarded = {manifest_model(name) for name in list_manifests(context.workspace)}
    entries, basis = _from_cookbook(context, days, hardware)
    added, remark = _from_sglang(context, days)
    discoveries = [*(_discovery(name, "cookbook", evidence, onboarded) for name, evidence in entries)]
    discoveries += [_discovery(name, "sglang", evidence, onboarded) for name, evidence in added]
    notes = [basis, remark]
    if trending:
        popular, said = _from_hub(context)
        discoveries += [_discovery(name, "hub", evidence, onboarded) for name, evidence in popular]
        notes.append(said)
    return DiscoverResult(discoveries=tuple(discoveries), basis=tuple(notes))


def _parse_since(text: str) -> int:
    match = _SINCE.fullmatch(text)
    if match is None:
        raise RequestError(f"--since {text!r} is no span of time", todo="write 30d, 6w or 2m")
    return int(match[1]) * _DAYS[match[2]]


def _discovery(
    name: str, source: Literal["cookbook", "sglang", "hub"], evidence: str, onboarded: set[str]
) -> Discovery:
    entry = find_model(name)
    return Discovery(
        model=name,
        source=source,
        evidence=evidence,
        config_bundled=entry is not None and entry.config is not None,
        onboarded=entry is not None and entry.slug in onboarded,
    )


def _from_cookbook(context: Context, days: int, hardware: str | None) -> tuple[list[tuple[str, str]], str]:
    clone = context.workspace.find_clone("sgl-cookbook")
    if clone is None:
        cookbook = load_bundled_cookbook()
        newest = max((config.sglang_version or "" for config in cookbook.configs), key=_version_key, default="")
        configs = [config for config in cookbook.configs if config.sglang_version == newest]
        basis = f"cookbook: no clone, so the models of {newest} in the bundled digest ({cookbook.source})"
    else:
        cookbook = load_cookbook(clone)
        recent = {file.path for file in list_added_files(clone, _COOKBOOK_DATA, since_days=days)}
        configs = [config for config in cookbook.configs if config.source in recent]
        basis = f"cookbook: entries added in the last {days} days of the clone"
    check_hardware(hardware, cookbook)
    return _group(configs, hardware), basis


def _group(configs: list[ServingConfig], hardware: str | None) -> list[tuple[str, str]]:
    found: dict[str, list[ServingConfig]] = {}
    for config in configs:
        is_wanted = hardware is None or hardware.casefold() == (config.hardware or "").casefold()
        if config.is_nvidia and config.kind == "llm" and is_wanted:
            found.setdefault(config.repo_id, []).append(config)
    return [
        (repo_id, f"{group[0].sglang_version}: {', '.join(sorted({config.hardware or 'any' for config in group}))}")
        for repo_id, group in sorted(found.items())
    ]


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _from_sglang(context: Context, days: int) -> tuple[list[tuple[str, str]], str]:
    clone = context.workspace.find_clone("sglang")
    if clone is None:
        return [], "sglang: no clone, so no history; run: fib clone --only sglang"
    files = list_added_files(clone, _MODELS, since_days=days)
    return [(file.path, file.date) for file in files], f"sglang: model files added in the last {days} days of the clone"


def _from_hub(context: Context) -> tuple[list[tuple[str, str]], str]:
    """List what is popular on the Hub and SGLang serves; a Hub that cannot be asked is said."""
    if context.offline:
        return [], "hub: offline, so no trending list"
    try:
        popular = list_trending(_POPULAR)
    except (OfflineError, SourceError) as error:
        return [], f"hub: no trending list: {error}"
    sglang = load_sglang(context.workspace.find_clone("sglang"), cache_dir=cache_dir())
    served = [model for model in popular if sglang.find_model_implementation(model.architectures)]
    said = f"hub: {len(popular)} trending text models, of which SGLang {sglang.version} serves {len(served)}"
    return [
        (model.repo_id, f"{model.architectures[0]}, {model.likes} likes, of {model.created}") for model in served
    ], said
