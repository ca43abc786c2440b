"""Run Solutions on Workloads so that the numbers are true."""

from __future__ import annotations
