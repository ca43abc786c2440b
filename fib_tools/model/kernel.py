"""What a model needs: a kernel with its parameters, the serving configs that need it, and who witnessed it.

{"kernel": "rmsnorm", "parameters": {"hidden_size": 7168, "eps": 1e-06}, "tp": [8], "ep": [1, 4],
 "witnesses": [{"source": "config", "detail": "hidden_size=7168"}, ...]}
"""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from fib_tools.model.base import Model, NonEmpty

__all__ = ["Disagreement", "KernelNeed", "ParameterValue", "Unexplained", "Witness", "WitnessSource"]

ParameterValue = int | float | str | bool | None


class WitnessSource(str, Enum):
    """Where a fact was read."""

    CONFIG = "config"
    """A field of the model's config.json."""
    TRACE = "trace"
    """A call in the transformers model, run on the meta device."""
    SGLANG = "sglang"
    """A line of SGLang."""
    FLASHINFER = "flashinfer"
    """A traced API of FlashInfer."""
    COOKBOOK = "cookbook"
    """A serving configuration of the sgl-cookbook."""
    ENGINE = "engine"
    """Knowledge of what serving adds that no model file shows, such as sampling or paged KV."""
    DUMP = "dump"
    """A call in a running engine."""


class Witness(Model):
    """One piece of evidence for a kernel."""

    source: WitnessSource
    detail: NonEmpty
    """`num_attention_heads=64`, `model.layers.3.self_attn.o_proj`, `sglang/srt/models/llama.py:182`."""


class KernelNeed(Model):
    """A kernel that a model calls, in one size."""

    kernel: NonEmpty
    """The id of a kernel type in `op_types`, such as `gqa_paged_decode`."""
    parameters: dict[str, ParameterValue]
    """The kernel type's parameters; those left out have its defaults."""
    places: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Where it is called, with `*` for layer numbers (`model.layers.*.self_attn.o_proj`), and in which layers."""
    tp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    page_sizes: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()
    """`prefill`, `decode`, or both; empty where there is no difference."""
    quantization: str | None = None
    """The scheme of the checkpoint that leads to this kernel, such as `fp8_block`; None for unquantised."""
    witnesses: tuple[Witness, ...] = Field(min_length=1)

    @property
    def module(self) -> str:
        """The modules that call it, in one line."""
        return ", ".join(module for module in self.places if module)

    @property
    def layers(self) -> int:
        """How many layers call it; 0 where it is not in a layer."""
        return len({layer for layers in self.places.values() for layer in layers})


class Disagreement(Model):
    """Two witnesses that do not say the same."""

    subject: NonEmpty
    """What they speak of, such as `head_dim`."""
    statements: tuple[Witness, ...] = Field(min_length=2)
    chosen: str
    """The statement the inventory goes by, and why."""


class Unexplained(Model):
    """Something seen that no witness explains; it is listed, never dropped."""

    operation: NonEmpty
    """The aten operation, such as `aten.bmm.default`."""
    module: NonEmpty
    detail: str = ""
