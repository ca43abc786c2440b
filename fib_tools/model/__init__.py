"""The documents of the dataset and of this tool, as frozen values with no I/O."""

from __future__ import annotations
