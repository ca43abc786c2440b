"""The integrity rules, and those that are checked by reading a Solution's sources."""

from __future__ import annotations
