"""A dataset as pages of a web site: from a server that reads as it is asked, or as files."""

from __future__ import annotations
