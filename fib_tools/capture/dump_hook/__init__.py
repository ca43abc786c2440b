"""What is put into the processes of an engine: a hook on FlashInfer's traces, of the standard library and torch alone.

This folder stands on the PYTHONPATH of the engine, so that every Python process of it runs `sitecustomize`; nothing
here may import the rest of the package, whose dependencies the engine's environment need not have.
"""

from __future__ import annotations
