"""How models are served in practice: the configurations of sgl-cookbook, bundled or from a clone."""

from __future__ import annotations

import csv
import functools
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fib_tools.errors import SourceError
from fib_tools.model.base import Model, find_unknown_fields
from fib_tools.model.report import Finding, Severity
from fib_tools.sources.registry import find_model, fold_name

if TYPE_CHECKING:
    from fib_tools.sources._serving_yaml import CookbookFile, CookbookModel, Engine

__all__ = [
    "Cookbook",
    "ServingConfig",
    "default_serving_config",
    "find_serving_configs",
    "load_bundled_cookbook",
    "load_cookbook",
]

_DIGEST = Path(__file__).with_name("cookbook_digest.tsv")
_FOLDER = "data/models/generated"
# The names NVIDIA gives its data centre and workstation GPUs; AMD's begin with MI.
_NVIDIA = re.compile(r"(?:A|B|DGX|GB|GH|H|L|RTX|V)[ _-]?\d+", re.IGNORECASE)
_SPECULATIVE = "--speculative-"


class ServingConfig(Model):
    """One way to serve one model on one kind of GPU."""

    model: str
    """The cookbook's name of the model."""
    repo_id: str
    quantized_repo_id: str | None = None
    """The repository of the quantised weights, where they are not the model's own."""
    hardware: str | None = None
    """The GPU, such as `H200`; none for the default configuration."""
    tp: int = 1
    ep: int = 1
    dp: int | None = None
    enable_dp_attention: bool = False
    """With it attention heads are cut by tp/dp."""
    quantization: str | None = None
    page_size: int | None = None
    kv_cache_dtype: str | None = None
    attention_backend: str | None = None
    speculative: dict[str, str] = Field(default_factory=dict)
    """The speculative decoding flags, without their prefix: `algorithm`, `num-steps`, `eagle-topk`, ..."""
    extra_args: tuple[str, ...] = ()
    """All flags beyond the degrees of parallelism, as given."""
    config_name: str = "default"
    phase: str = "engine"
    """`engine`, or `prefill` and `decode` where they run apart."""
    nodes: str | None = None
    optimization: str | None = None
    sglang_version: str | None = None
    vendor: str | None = None
    kind: str = "llm"
    source: str
    """Where it was read: commit and file, or `default`."""

    @property
    def is_nvidia(self) -> bool:
        """Tell whether it runs on an NVIDIA GPU."""
        return self.hardware is not None and _NVIDIA.match(self.hardware) is not None


class Cookbook(Model):
    """All serving configurations of one state of the cookbook."""

    source: str
    """The commit, or the folder."""
    configs: tuple[ServingConfig, ...]
    findings: tuple[Finding, ...] = ()
    """Fields of the files that are not understood here."""

    def models(self) -> tuple[str, ...]:
        """The repositories it knows how to serve, in its own order."""
        return tuple(dict.fromkeys(config.repo_id for config in self.configs))


def find_serving_configs(
    name: str, *, hardware: str | None = None, nvidia_only: bool = True, cookbook: Cookbook | None = None
) -> tuple[ServingConfig, ...]:
    """Find how a model (slug, alias or repository) is served; empty when the cookbook does not say.

    A model without an entry of its own takes those of its siblings of the same shapes; `repo_id` tells.
    Of several SGLang versions the newest counts.
    """
    configs = (cookbook or load_bundled_cookbook()).configs
    entry = find_model(name)
    own = [name, *((entry.repo_id, entry.slug, *entry.aliases) if entry else ())]
    found = _select(configs, own) or _select(configs, entry.siblings if entry else ())
    return tuple(
        config
        for config in found
        if (hardware is None or (config.hardware or "").casefold() == hardware.casefold())
        and (config.is_nvidia or not nvidia_only)
    )


def default_serving_config(name: str) -> ServingConfig:
    """The configuration of a model that the cookbook does not know: one GPU."""
    entry = find_model(name)
    return ServingConfig(
        model=entry.slug if entry else name, repo_id=entry.repo_id if entry else name, source="default"
    )


@functools.cache
def load_bundled_cookbook() -> Cookbook:
    """The digest that comes with this package."""
    lines = _DIGEST.read_text(encoding="utf-8").splitlines()
    source, folder = lines[0].removeprefix("# ").rsplit(" ", 1)
    rows = csv.DictReader(lines[1:], delimiter="\t")
    return Cookbook(source=source.replace(" ", "@"), configs=tuple(_from_row(row, source, folder) for row in rows))


def load_cookbook(clone_dir: Path) -> Cookbook:
    """Read the cookbook from a clone.

    Raises:
        SourceError: the folder holds no cookbook.
        FormatError: a file is malformed; it names file and line.
    """
    paths = sorted(path for path in (clone_dir / _FOLDER).glob("*/*.y*ml") if not path.is_symlink())
    if not paths:
        raise SourceError(f"no {_FOLDER}/*/*.yaml here", where=str(clone_dir), todo="name a clone of sgl-cookbook")
    from fib_tools.sources._serving_yaml import load_yaml_file

    configs: list[ServingConfig] = []
    findings: list[Finding] = []
    for path in paths:
        document = load_yaml_file(path)
        where = path.relative_to(clone_dir).as_posix()
        configs += _from_file(document, version=path.parent.name, source=where)
        findings += [_unknown_field(field, where) for field in find_unknown_fields(document)]
    return Cookbook(source=str(clone_dir), configs=tuple(configs), findings=tuple(findings))


def _select(configs: Iterable[ServingConfig], names: Iterable[str]) -> list[ServingConfig]:
    wanted = {fold_name(name) for name in names}
    found = [
        config
        for config in configs
        if not wanted.isdisjoint(
            {fold_name(config.repo_id), fold_name(config.model), fold_name(config.quantized_repo_id or config.repo_id)}
        )
    ]
    newest = max((_version_key(config.sglang_version) for config in found), default=())
    return [config for config in found if _version_key(config.sglang_version) == newest]


def _version_key(version: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version or ""))


def _from_row(row: dict[str, str], source: str, folder: str) -> ServingConfig:
    return ServingConfig(
        model=row["model"],
        repo_id=row["hf_path"],
        hardware=row["hardware"],
        tp=int(row["tp"]),
        ep=int(row["ep"] or 1),
        dp=int(row["dp"]) if row["dp"] else None,
        enable_dp_attention=row["enable_dp_attention"] == "1",
        quantization=row["quantization"] or None,
        config_name=row["config_name"],
        optimization=row["optimization"] or None,
        sglang_version=row["sglang_version"],
        vendor=row["vendor"],
        kind=row["kind"],
        source=f"{source.replace(' ', '@')}:{folder}/{row['sglang_version']}/{row['source_file']}",
        **_read_flags(shlex.split(row["extra_flags"])),
    )


def _from_file(document: CookbookFile, *, version: str, source: str) -> Iterator[ServingConfig]:
    for family in document.families:
        for model in family.models:
            yield from _from_model(model, vendor=document.vendor, version=version, source=source)


def _from_model(model: CookbookModel, *, vendor: str, version: str, source: str) -> Iterator[ServingConfig]:
    for gpu, hardware in model.hardware.items():
        for configuration in hardware.configurations:
            engines = {phase: getattr(configuration, phase) for phase in ("engine", "prefill", "decode")}
            for phase, engine in engines.items():
                if engine is None:
                    continue
                yield ServingConfig(
                    model=model.name,
                    repo_id=model.model_path,
                    quantized_repo_id=configuration.quantized_model_path or None,
                    hardware=gpu,
                    config_name=configuration.name,
                    phase=phase,
                    sglang_version=version,
                    vendor=vendor,
                    kind="diffusion" if "diffusion" in (model.attributes or {}) else "llm",
                    source=source,
                    **configuration.attributes.model_dump(include={"nodes", "optimization", "quantization"}),
                    **_read_engine(engine),
                )


def _read_engine(engine: Engine) -> dict[str, Any]:
    return {
        "tp": engine.tp or 1,
        "ep": engine.ep or 1,
        "dp": engine.dp,
        "enable_dp_attention": bool(engine.enable_dp_attention),
        **_read_flags([part for argument in engine.extra_args or () for part in str(argument).split()]),
    }


def _read_flags(arguments: list[str]) -> dict[str, Any]:
    """Take the flags that change a kernel's shape or type out of a command line, which is kept whole beside them."""
    values = dict(_flag_values(arguments))
    page_size = values.get("--page-size", "")
    return {
        "page_size": int(page_size) if page_size.isdecimal() else None,
        "kv_cache_dtype": values.get("--kv-cache-dtype"),
        "attention_backend": values.get("--attention-backend"),
        "speculative": {
            "algorithm" if flag == "--speculative-algo" else flag.removeprefix(_SPECULATIVE): value
            for flag, value in values.items()
            if flag.startswith(_SPECULATIVE)
        },
        "extra_args": tuple(arguments),
    }


def _flag_values(arguments: list[str]) -> Iterator[tuple[str, str]]:
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        if argument.startswith("--"):
            flag, separator, value = argument.partition("=")
            yield flag, value if separator or following.startswith("--") else following


def _unknown_field(field: str, where: str) -> Finding:
    return Finding(
        severity=Severity.NOTE,
        check="cookbook.unknown_field",
        where=where,
        message=f"the field {field!r} is not understood",
    )
