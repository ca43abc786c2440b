"""One file per op_type: axes, names, references, FlashInfer templates and inputs."""

from __future__ import annotations
