"""The phases of an onboarding: refresh, discover, define, collect, submit."""

from __future__ import annotations
