"""The rules a dataset must keep, one family a file."""

from __future__ import annotations
