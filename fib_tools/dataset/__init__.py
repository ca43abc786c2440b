"""The dataset on disk: where each document lives, and the only code that writes there."""

from __future__ import annotations
