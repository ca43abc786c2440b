"""The judge: stages Workloads, has runners make calls, compares what they left, and says what is true."""

from __future__ import annotations
