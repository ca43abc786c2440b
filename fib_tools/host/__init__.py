"""Every effect outside the dataset: environment, paths, files, locks, processes, git and untrusted code."""

from __future__ import annotations
