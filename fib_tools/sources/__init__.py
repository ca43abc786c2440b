"""Read-only sources of facts: model configs, serving configurations, FlashInfer's and SGLang's code, dumps, clones."""

from __future__ import annotations
