"""What a model computes: facts of its config, the structure of its code, and the kernels that follow."""

from __future__ import annotations
