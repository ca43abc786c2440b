"""What leaves the workspace for people to read: pages."""

from __future__ import annotations
