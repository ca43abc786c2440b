"""A model's config in the workspace, so that phases on another machine need neither the file nor the Hub."""

from __future__ import annotations

from fib_tools.host.files import storage_errors, write_atomically
from fib_tools.host.paths import confine
from fib_tools.model.canonical import canonical_bytes
from fib_tools.model.manifest import Manifest
from fib_tools.phases.context import Context
from fib_tools.phases.request import ModelOptions
from fib_tools.sources.huggingface import ConfigSource

__all__ = ["keep_config", "recall_options"]

_FOLDER = "configs"


def keep_config(context: Context, source: ConfigSource) -> None:
    """Write the config into the workspace, unless it comes with this package."""
    if source.origin == "registry":
        return
    path = confine(context.workspace.root, _FOLDER, f"{source.slug}.json")
    data = canonical_bytes(source.config)
    if path.is_file() and path.read_bytes() == data:
        return
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def recall_options(context: Context, manifest: Manifest, options: ModelOptions) -> ModelOptions:
    """Fill in what the manifest was drawn up for, where nothing else is asked for now."""
    asked = {} if manifest.asked is None else {name: value for name, value in manifest.asked if value is not None}
    now = {name for name in asked if getattr(options, name) is not None}
    recalled = {} if now - {"op_types"} else {name: value for name, value in asked.items() if name not in now}
    kept = confine(context.workspace.root, _FOLDER, f"{manifest.model}.json")
    if options.config is None and options.hf_repo_id is None and kept.is_file():
        recalled["config"] = kept
    return options.model_copy(update=recalled)
