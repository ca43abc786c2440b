"""The one way into the dataset: shapes checked, dumps normalised, identity settled, references executed."""

from __future__ import annotations
