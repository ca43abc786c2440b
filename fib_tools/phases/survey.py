"""Everything the sources say of one model: config, facts, structure, serving points, and the kernels that follow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fib_tools import __version__
from fib_tools.architecture.facts import read_facts
from fib_tools.architecture.facts_schema import ModelFacts
from fib_tools.architecture.inventory import Inventory, build_inventory, list_serving_points
from fib_tools.architecture.parallelism import ServingPoint
from fib_tools.architecture.structure import PRELOAD, trace_structure
from fib_tools.architecture.structure_schema import NotTraceable, Structure
from fib_tools.host.env import cache_dir
from fib_tools.model.base import Model
from fib_tools.model.manifest import SourceVersion
from fib_tools.phases.context import Context
from fib_tools.phases.request import ModelOptions, check_hardware
from fib_tools.sources.cache import load_or_build
from fib_tools.sources.cookbook import Cookbook, load_bundled_cookbook, load_cookbook
from fib_tools.sources.flashinfer import TracedApis, load_traced_apis
from fib_tools.sources.huggingface import ConfigSource, load_config
from fib_tools.sources.sglang import SglangFacts, load_sglang

__all__ = ["Survey", "survey_model"]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the sources said, and the inventory drawn from it."""

    config: ConfigSource
    facts: ModelFacts
    structure: Structure | NotTraceable
    traced: TracedApis
    sglang: SglangFacts
    inventory: Inventory
    versions: dict[str, SourceVersion]


class _Traced(Model):
    """A structural trace as it is kept in the cache."""

    outcome: Structure | NotTraceable


def survey_model(context: Context, model: str, options: ModelOptions) -> Survey:
    """Read every source and draw up the inventory.

    Raises:
        UnknownModelError, OfflineError, GatedError: the config cannot be had.
        ConfigError: the config does not make sense.
        ParallelismError: a TP or EP that was asked for cannot be.
    """
    context.progress("reading the model's config", 0, 0)
    config = load_config(
        options.hf_repo_id or model,
        config_file=options.config,
        offline=context.offline,
        inside=context.workspace.root if context.is_confined else None,
    )
    name = config.repo_id or config.slug
    facts = read_facts(config.config, name=name)
    cookbook = _read_cookbook(context)
    points = _list_points(options, name, cookbook)
    context.progress(f"tracing {name} on the meta device", 0, 0)
    structure = _trace(config)
    context.progress("reading FlashInfer and SGLang", 0, 0)
    traced = load_traced_apis(context.workspace.find_clone("flashinfer"), cache_dir=cache_dir())
    sglang = load_sglang(
        options.sglang_path or context.workspace.find_clone("sglang"), cache_dir=cache_dir(), traced=traced
    )
    context.progress("listing the kernels", 0, 0)
    inventory = build_inventory(
        facts, points, structure=structure, sglang=sglang, traced=traced, page_sizes=options.page_sizes or ()
    )
    return Survey(
        config=config,
        facts=facts,
        structure=structure,
        traced=traced,
        sglang=sglang,
        inventory=inventory,
        versions=_versions(context, config, (traced, sglang, cookbook)),
    )


def _read_cookbook(context: Context) -> Cookbook:
    clone = context.workspace.find_clone("sgl-cookbook")
    return load_bundled_cookbook() if clone is None else load_cookbook(clone)


def _list_points(options: ModelOptions, name: str, cookbook: Cookbook) -> Sequence[ServingPoint]:
    if options.tp_list is None and options.ep_list is None:
        check_hardware(options.hardware, cookbook, model=name)
        return list_serving_points(name, hardware=options.hardware, cookbook=cookbook)
    check_hardware(options.hardware, cookbook)
    return [
        ServingPoint(tp=tp, ep=ep, hardware=options.hardware, source="requested", requested=True)
        for tp in options.tp_list or (max(options.ep_list or (1,)),)
        for ep in options.ep_list or (1,)
    ]


def _trace(config: ConfigSource) -> Structure | NotTraceable:
    """Trace the structure in a child, or take it from the cache: it depends on the config and on transformers alone."""
    key = hashlib.sha256(f"{config.sha256}\n{version('transformers')}\n{version('torch')}\n{__version__}".encode())
    path = Path(cache_dir()) / "structures" / f"{key.hexdigest()}.json"
    return load_or_build(_Traced, path, lambda: _Traced(outcome=_trace_in_child(config))).outcome


def _trace_in_child(config: ConfigSource) -> Structure | NotTraceable:
    from fib_tools.host.sandbox import Limits, Sandbox

    limits = Limits(wall_seconds=180, memory_bytes=8 << 30)
    with Sandbox(preload=PRELOAD, limits=limits) as sandbox:
        return trace_structure(config.config, sandbox=sandbox)


def _versions(
    context: Context, config: ConfigSource, read: tuple[TracedApis, SglangFacts, Cookbook]
) -> dict[str, SourceVersion]:
    traced, sglang, cookbook = read
    origin = "clone" if context.workspace.find_clone("flashinfer") else "installed"
    return {
        "config": SourceVersion(origin=config.origin, version=config.revision or config.sha256),
        "flashinfer": SourceVersion(origin=origin, version=traced.version),
        "sglang": SourceVersion(origin=sglang.origin, version=sglang.version),
        "transformers": SourceVersion(origin="installed", version=version("transformers")),
        "sgl-cookbook": SourceVersion(
            origin="clone" if context.workspace.find_clone("sgl-cookbook") else "bundled", version=cookbook.source
        ),
    }
