"""Which scheme each weight of a checkpoint is stored in."""

from __future__ import annotations

import re
from enum import Enum

from fib_tools.model.base import Model

__all__ = ["QuantizationFacts", "QuantizationScheme", "QuantizationWitness"]


class QuantizationScheme(str, Enum):
    """How weights, and with them activations, are stored."""

    NONE = "none"
    FP8_BLOCK = "fp8_block"
    """128x128 weight blocks, activations in groups of 128."""
    FP8_TENSOR = "fp8_tensor"
    FP8_CHANNEL = "fp8_channel"
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    MXFP8 = "mxfp8"
    W4A16 = "w4a16"
    """Integer weights of 4 bits, in groups; activations as they are."""
    INT8 = "int8"
    UNKNOWN = "unknown"
    """A scheme the config names and this project does not know."""


class QuantizationWitness(str, Enum):
    """Who says that the checkpoint is quantised."""

    NONE = "none"
    """Nobody: there is no quantisation."""
    CONFIG = "quantization_config"
    HF_QUANT_CONFIG = "hf_quant_config.json"
    NAME = "repository name"
    """A weak witness: the name alone, such as `-NVFP4`; the excluded modules are unknown."""


class QuantizationFacts(Model):
    """The scheme of every weight."""

    scheme: QuantizationScheme = QuantizationScheme.NONE
    """The scheme of linear layers that no pattern excludes."""
    expert_scheme: QuantizationScheme | None = None
    """The scheme of routed experts where it is another; None: as `scheme`."""
    group_size: int | None = None
    """Values that share a scale along k; for `fp8_block` the block is group_size x group_size."""
    is_dynamic: bool = True
    """Activations are scaled at run time; False: by a constant of the checkpoint."""
    excluded: tuple[str, ...] = ()
    """Regular expressions, matched against a module path from its start; matching modules are not quantised."""
    kv_cache: str | None = None
    witness: QuantizationWitness = QuantizationWitness.NONE

    def get_scheme(self, module: str, *, is_expert: bool = False) -> QuantizationScheme:
        """Tell the scheme of a module by its path, such as `model.layers.3.mlp.gate`."""
        if any(re.match(pattern, module) for pattern in self.excluded):
            return QuantizationScheme.NONE
        return self.expert_scheme if is_expert and self.expert_scheme else self.scheme
