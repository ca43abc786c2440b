"""Drafting kernels: a model proposes, the evaluator decides, and what was tried is kept."""

from __future__ import annotations
