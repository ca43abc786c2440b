"""What is looked up of a Solution for its author after the evaluation: nothing here enters a verdict or a Trace."""

from __future__ import annotations
