"""From the best Solutions to the folder that FlashInfer's trace_apply loads."""

from __future__ import annotations
