"""The fixes that turn a raw FlashInfer dump into a Definition, one family a file."""

from __future__ import annotations
