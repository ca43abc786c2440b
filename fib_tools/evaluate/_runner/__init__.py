"""What runs in a runner's process, beside the Solution: it is not trusted, and holds no reference output."""

from __future__ import annotations
