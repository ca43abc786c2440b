"""What a running engine shows: serving runs of SGLang on dummy weights, and the kernels they call."""

from __future__ import annotations
