"""How near is near enough: bounds from errors of trusted kernels and of injected faults."""

from __future__ import annotations
