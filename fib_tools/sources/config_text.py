"""A model's `config.json` as text: strict JSON, with the one infinity that published configs hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fib_tools.errors import ConfigError, FormatError
from fib_tools.model.canonical import load_json

__all__ = ["parse_config"]

# Mamba-2 configs write `"time_step_limit": [0.0, Infinity]` for "no upper limit".
_MAY_BE_INFINITE = "time_step_limit"


def parse_config(text: bytes, *, where: str) -> dict[str, Any]:
    """Parse a config and refuse what no config can mean.

    Raises:
        ConfigError: not UTF-8 JSON, not an object, a key twice, nested too deeply, or a number that is none.
    """
    try:
        config = load_json(text, where=where)
    except FormatError as error:
        raise ConfigError(error.what, where=error.where, todo="pass the repository's own config.json") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"a config is a JSON object, this is a {type(config).__name__}",
            where=where,
            todo="pass the repository's own config.json",
        )
    for field, value in _numbers(config):
        allowed = math.isfinite(value) or (_MAY_BE_INFINITE in field and not math.isnan(value))
        if not allowed:
            raise ConfigError(f"{value!r} is not a number a config can mean", where=f"{where}: {field}")
    return config


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, float]]:
    pending: list[tuple[str, Any]] = list(config.items())
    for field, value in pending:
        if isinstance(value, float):
            yield field, value
        elif isinstance(value, dict):
            pending.extend((f"{field}.{key}", item) for key, item in value.items())
        elif isinstance(value, list):
            pending.extend((f"{field}.{index}", item) for index, item in enumerate(value))
