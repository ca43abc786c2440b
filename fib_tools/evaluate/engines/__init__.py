"""Who evaluates where: items of work, local and Ray engines, the journal of a run, and its Traces."""

from __future__ import annotations
