"""What SGLang's source says: where it calls FlashInfer, which architectures it serves, which projections it fuses.

Without SGLang at hand a bundled digest of one version answers, with at most a few call sites an API.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from fib_tools.errors import SourceError
from fib_tools.model.base import Model
from fib_tools.sources._call_sites import find_call_sites
from fib_tools.sources._exports import ExportGraph
from fib_tools.sources._model_files import ModelFile, read_model_files
from fib_tools.sources.cache import load_or_build
from fib_tools.sources.flashinfer import TracedApis, get_package, load_traced_apis
from fib_tools.sources.packages import Package, find_package

__all__ = ["LinearFact", "SglangFacts", "StackedParam", "load_bundled_sglang", "load_sglang"]

# Raised whenever the analysis finds more or other things in the same source.
_ANALYSIS = 1
_DIGEST = Path(__file__).with_name("sglang_digest.json")


class LinearFact(Model):
    """A linear layer that a class of a model file builds."""

    file: str
    line: int
    class_name: str
    attribute: str
    """The attribute that holds it, such as `qkv_proj`."""
    linear: str
    """Its class, such as `QKVParallelLinear`."""


class StackedParam(Model):
    """A weight of the checkpoint that SGLang loads into a part of a fused parameter."""

    file: str
    line: int
    parameter: str
    """The fused parameter, such as `qkv_proj`."""
    weight: str
    """The checkpoint's name, such as `q_proj`."""
    shard: str
    """Which part it fills: `q`, `k`, `v` or a number."""


class SglangFacts(Model):
    """What one version of SGLang does with FlashInfer and with models."""

    version: str
    origin: str
    """`bundled`, `installed`, or the folder it was read from."""
    flashinfer_version: str
    """The FlashInfer whose APIs were looked for."""
    call_sites: dict[str, tuple[str, ...]]
    """By fi_api: the `file:line` of each call."""
    sgl_kernel_sites: dict[str, tuple[str, ...]]
    """By fi_api: calls of the same kernel as sgl-kernel compiles it from FlashInfer's headers."""
    model_files: tuple[ModelFile, ...]

    def find_call_sites(self, fi_api: str) -> tuple[str, ...]:
        """Where SGLang calls an API, directly or as sgl-kernel's build of it; empty when it does not."""
        return (*self.call_sites.get(fi_api, ()), *self.sgl_kernel_sites.get(fi_api, ()))

    @property
    def implementations(self) -> dict[str, str]:
        """By architecture, as configs name it: the `file:line` of its class."""
        return {name: f"{file.path}:{line}" for file in reversed(self.model_files) for name, line in file.architectures}

    def find_model_implementation(self, architectures: Iterable[str]) -> str | None:
        """Find the `file:line` of the class that serves the first of the architectures SGLang knows."""
        implementations = self.implementations
        return next((implementations[name] for name in architectures if name in implementations), None)

    def find_linears(self, architecture: str) -> tuple[LinearFact, ...]:
        """The linear layers of the model file that serves an architecture and of the model files it imports from."""
        return tuple(
            LinearFact(file=file.path, **linear._asdict())
            for file in self._find_files(architecture)
            for linear in file.linears
        )

    def find_stacked(self, architecture: str) -> tuple[StackedParam, ...]:
        """The fused parameters of the same files."""
        return tuple(
            StackedParam(file=file.path, **stacked._asdict())
            for file in self._find_files(architecture)
            for stacked in file.stacked
        )

    def _find_files(self, architecture: str) -> list[ModelFile]:
        """The architecture's own file first, then those it imports from, near ones before far ones."""
        files = {file.path: file for file in self.model_files}
        pending = [self.implementations.get(architecture, "").rpartition(":")[0]]
        found: dict[str, ModelFile] = {}
        for path in pending:
            if path in files and path not in found:
                found[path] = files[path]
                pending.extend(files[path].imports)
        return list(found.values())


def load_sglang(
    root: Path | None = None,
    *,
    cache_dir: Path | None = None,
    traced: TracedApis | None = None,
    flashinfer_root: Path | None = None,
) -> SglangFacts:
    """Read SGLang from a folder (its package, a clone, an unpacked wheel), else the installed one, else the bundled digest.

    Raises:
        SourceError: the folder holds no SGLang.
        MissingDependencyError: there is an SGLang to read, but no FlashInfer to look for in it.
    """
    package = find_package("sglang", root)
    if package is None and root is None:
        return load_bundled_sglang()
    if package is None:
        raise SourceError(
            "no sglang package here", where=str(root), todo="name the package's folder, a clone or an unpacked wheel"
        )
    flashinfer = get_package(flashinfer_root)
    apis = traced or load_traced_apis(flashinfer_root, cache_dir=cache_dir)
    path = None
    if cache_dir is not None:
        key = f"{package.version}-{package.fingerprint[:16]}-{flashinfer.fingerprint[:16]}-{_ANALYSIS}"
        path = cache_dir / f"sglang-{key}.json"
    facts = load_or_build(SglangFacts, path, lambda: _scan(package, flashinfer, apis))
    return facts.model_copy(update={"origin": "installed" if root is None else str(root)})


@functools.cache
def load_bundled_sglang() -> SglangFacts:
    """The digest of one version that comes with this package; `_digest.py` writes it."""
    return SglangFacts.model_validate_json(_DIGEST.read_bytes())


def _scan(package: Package, flashinfer: Package, traced: TracedApis) -> SglangFacts:
    sites = find_call_sites(package, ExportGraph(flashinfer), traced)
    return SglangFacts(
        version=package.version,
        origin=str(package.folder),
        flashinfer_version=flashinfer.version,
        call_sites=_format_sites(sites.direct),
        sgl_kernel_sites=_format_sites(sites.through_sgl_kernel),
        model_files=tuple(read_model_files(package)),
    )


def _format_sites(sites: dict[str, set[tuple[str, int]]]) -> dict[str, tuple[str, ...]]:
    return {api: tuple(f"{file}:{line}" for file, line in sorted(sites[api])) for api in sorted(sites)}
