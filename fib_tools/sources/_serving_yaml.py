"""The YAML files of sgl-cookbook that its serving configurations are generated into.

```yaml
vendor: moonshotai
families:
  - name: Kimi-K2
    models:
      - name: Kimi-K2-Instruct
        model_path: moonshotai/Kimi-K2-Instruct
        hardware:
          H200:
            configurations:
              - name: default
                attributes: {nodes: single, optimization: balanced, quantization: fp8}
                engine: {tp: 16, ep: 16, enable_dp_attention: true, extra_args: [--trust-remote-code]}
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited
from fib_tools.model.base import Model, NonEmpty

__all__ = ["CookbookFile", "Engine", "load_yaml_file"]

_LIMIT = 2 << 20
_MAX_DEPTH = 32
# libyaml is ten times as fast; wheels without it are rare, not unknown.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# No cluster serves one replica of a model with more ranks than this.
Degree = Annotated[int, Field(ge=1, le=4096)]


class Engine(Model):
    """How one engine, or one half of a prefill-decode pair, is started."""

    env_vars: dict[str, Any] | list[Any] | None = None
    tp: Degree | None = None
    dp: Degree | None = None
    ep: Degree | None = None
    enable_dp_attention: bool | None = None
    extra_args: list[str | int | float] | None = None


class ConfigurationAttributes(Model):
    """What a configuration is meant for."""

    nodes: str | None = None
    optimization: str | None = None
    quantization: str | None = None


class Configuration(Model):
    """One way to serve a model on one kind of GPU."""

    name: NonEmpty
    attributes: ConfigurationAttributes = ConfigurationAttributes()
    quantized_model_path: str | None = None
    engine: Engine | None = None
    prefill: Engine | None = None
    decode: Engine | None = None


class Hardware(Model):
    """The ways to serve a model on one kind of GPU."""

    configurations: tuple[Configuration, ...] = ()


class CookbookModel(Model):
    """One model of a family."""

    name: NonEmpty
    model_path: NonEmpty
    attributes: dict[str, Any] | None = None
    speculative_draft_model: str | None = None
    hardware: dict[str, Hardware] = Field(default_factory=dict)


class Family(Model):
    """Models of one name."""

    name: NonEmpty
    description: str | None = None
    models: tuple[CookbookModel, ...] = ()


class CookbookFile(Model):
    """One file: the families of one vendor."""

    vendor: NonEmpty
    families: tuple[Family, ...]


def load_yaml_file(path: Path) -> CookbookFile:
    """Read one file; fields this schema does not know are kept in `model_extra`.

    Raises:
        DocumentTooLargeError: over 2 MB.
        FormatError: with file and line.
    """
    try:
        text = read_limited(path, _LIMIT).decode()
        _refuse_bombs(text, path)
        root = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - the loader is a safe one
    except yaml.MarkedYAMLError as error:
        raise FormatError(f"not YAML: {error.problem}", where=f"{path}:{_line(error.problem_mark)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"not YAML: {error}", where=str(path)) from error
    try:
        return CookbookFile.model_validate(data, extra="allow")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"]) or "document"
        line = _line_of(root, first["loc"])
        raise FormatError(f"{field}: {first['msg']}", where=f"{path}:{line}") from error


def _refuse_bombs(text: str, path: Path) -> None:
    """Aliases can stand for more data than there are atoms; generated files need none."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise FormatError("YAML aliases are not read", where=f"{path}:{_line(event.start_mark)}")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise FormatError(f"nested deeper than {_MAX_DEPTH} levels", where=f"{path}:{_line(event.start_mark)}")


def _line_of(node: yaml.Node | None, steps: tuple[int | str, ...]) -> int:
    """The line of the deepest node that a path of keys and indices reaches."""
    if node is None:
        return 1
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            child = next((value for key, value in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            child = node.value[step]
        else:
            child = None
        if child is None:
            break
        node = child
    return _line(node.start_mark)


def _line(mark: Any) -> int:
    return int(mark.line) + 1 if mark else 1
