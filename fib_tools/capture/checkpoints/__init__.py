"""Real weights of a model, cut to the layers that are needed: Hugging Face safetensors, Meta's `.pth` shards, GGUF.

`open_checkpoint` in `opening.py` finds out which of the three it is and reads names and shapes;
`load_model` in `loading.py` makes a transformers model of the first layers, and reads their tensors only.
"""

from __future__ import annotations
