"""From a newly released LLM to verified, benchmarked GPU kernels in the FlashInfer-Bench ecosystem."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
