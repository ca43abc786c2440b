"""What the Traces of a dataset say together."""

from __future__ import annotations
