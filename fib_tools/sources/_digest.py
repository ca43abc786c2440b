"""Writes the digest of SGLang that is bundled: `python -m fib_tools.sources._digest UNPACKED_WHEEL`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fib_tools.errors import SourceError
from fib_tools.host.files import write_atomically
from fib_tools.sources.sglang import SglangFacts, load_sglang

__all__ = ["shorten", "write_digest"]

_SITES_PER_API = 5
_DIGEST = Path(__file__).with_name("sglang_digest.json")


def write_digest(root: Path, target: Path = _DIGEST) -> SglangFacts:
    """Read an SGLang and write its digest, one model file a line, so that a new version gives a readable diff.

    Raises:
        SourceError: its version is unknown, so nobody could tell what the digest is of.
    """
    facts = shorten(load_sglang(root))
    if facts.version == "unknown":
        raise SourceError(
            "this SGLang does not say its version", where=str(root), todo="use a release's unpacked wheel"
        )
    document = facts.model_dump(mode="json")
    lines = [f" {json.dumps(key)}: {_format(value)}" for key, value in document.items()]
    write_atomically(target, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return facts


def shorten(facts: SglangFacts) -> SglangFacts:
    """Keep a few call sites an API: enough to find the place, and little to carry."""
    return facts.model_copy(
        update={
            "origin": "bundled",
            "call_sites": {api: sites[:_SITES_PER_API] for api, sites in facts.call_sites.items()},
            "sgl_kernel_sites": {api: sites[:_SITES_PER_API] for api, sites in facts.sgl_kernel_sites.items()},
        }
    )


def _format(value: object) -> str:
    if isinstance(value, list):
        return "[\n  " + ",\n  ".join(json.dumps(item, separators=(",", ":")) for item in value) + "\n ]"
    if isinstance(value, dict):
        return "{\n  " + ",\n  ".join(f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n }"
    return json.dumps(value)


if __name__ == "__main__":
    write_digest(Path(sys.argv[1]))
