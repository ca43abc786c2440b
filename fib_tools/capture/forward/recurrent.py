"""Recurrent layers: the gated delta rule and the convolution before it as calls of their kernels; other ones are counted.

A run so says what of it is not among its Workloads.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fib_tools.capture.forward.call import Call, Unmapped
from fib_tools.capture.forward.functions import name_dtype, tell_shapes
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Operator, Watch

if TYPE_CHECKING:
    import torch

__all__ = ["patch_recurrent"]

_FUNCTIONS = {
    "causal_conv1d_fn": "causal_conv1d_prefill",
    "causal_conv1d_update": "causal_conv1d_decode",
    "chunk_gated_delta_rule": "gdn_prefill",
    "mamba2_chunk_scan": "mamba_chunk_scan",
    "mamba2_selective_state_update": "mamba_ssu_decode",
    "mamba2_split_conv1d_scan_combined": "mamba_chunk_scan",
    "mamba_inner_fn": "",
    "mamba_selective_scan": "",
    "mamba_selective_state_update": "",
    "recurrent_gated_delta_rule": "gdn_decode",
    "rwkv_linear_attention": "",
}
"""Functions of modeling files, by what their names end with, and the kernel types that they would be."""
_DELTA_RULES = ("chunk_gated_delta_rule", "recurrent_gated_delta_rule")
"""Of those, the ones that take queries, keys, values, decay and strength, `[batch, tokens, heads]` and the size of a head."""
_CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update")
"""And those that filter each channel, `[batch, channels, tokens]`, by taps of its own."""
_ACTIVATIONS = {None: "none", "silu": "silu", "swish": "silu"}
_STATES = ("A_log", "time_decay", "recurrent_param", "slope_rate")
"""What a layer that keeps a state calls the decay of it: Mamba and all after it, RWKV, Griffin, lightning attention."""


def patch_recurrent(patches: Patches, watch: Watch, modules: Iterable[torch.nn.Module]) -> None:
    """Watch those functions where modeling files have them, and layers that keep a state where they have none."""
    kinds = {type(module): module for module in modules}
    for path in sorted({kind.__module__ for kind in kinds}):
        file = sys.modules.get(path)
        named = {} if file is None else {name: end for name in vars(file) if (end := _find_function(name))}
        for name, end in named.items():
            patches.wrap(file, name, partial(_wrap_function, watch, name, end))
        if all(end.startswith("causal_conv1d") for end in named.values()):
            for kind, module in kinds.items():
                if kind.__module__ == path and any(hasattr(module, name) for name in _STATES):
                    patches.wrap(kind, "forward", partial(watch.wrap, _make_layer(kind.__name__)))


def _find_function(name: str) -> str:
    return next((end for end in _FUNCTIONS if name in {end, f"torch_{end}"}), "")


def _wrap_function(watch: Watch, name: str, end: str, original: Callable[..., Any]) -> Callable[..., Any]:
    return watch.wrap(_make_function(name, end, tuple(inspect.signature(original).parameters)), original)


def _make_function(name: str, end: str, arguments: Sequence[str]) -> Operator:
    """Make what describes a function; what it calls its arguments tells which of them are given by position."""
    kernel = _FUNCTIONS[end]
    if end in _DELTA_RULES:
        delta_rule = partial(_key_delta_rule, arguments[4:])
        return Operator(name=name, key=delta_rule, describe=partial(_describe_delta_rule, name, kernel))
    if end in _CONVOLUTIONS:
        is_decode = end == _CONVOLUTIONS[1]
        key = _key_update if is_decode else partial(_key_convolution, arguments[3:])
        return Operator(name=name, key=key, describe=partial(_describe_convolution, name, kernel))
    found = Unmapped(what=name, kernel=kernel, reason="its calls are counted, not yet described")
    return Operator(name=name, key=tell_shapes, describe=lambda *_, **__: found)


def _key_delta_rule(
    names: Sequence[str],
    /,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    *more: Any,
    **options: Any,
) -> Hashable:
    options.update(zip(names, more, strict=False))
    is_packed = options.get("cu_seqlens") is not None
    has_state = options.get("initial_state") is not None
    is_normed = bool(options.get("use_qk_l2norm_in_kernel"))
    scale = options.get("scale")
    return query.shape, key.shape, value.shape, g.shape, query.dtype, is_normed, is_packed, has_state, scale


def _describe_delta_rule(name: str, kernel: str, kind: Any, /, *_: Any, **__: Any) -> Call | Unmapped:
    """Describe it with the gates before it, from which its kernels make decay and strength themselves."""
    query, keys, value, decay, dtype, is_normed, is_packed, has_state, scale = kind
    batch, tokens, heads, size = query
    is_decode = kernel == "gdn_decode"
    if keys != query or value[-1] != size or decay != value[:-1]:
        return Unmapped(
            what=name, kernel=kernel, reason="its heads have other sizes than one for all, or many decays each"
        )
    if is_packed or (is_decode and (tokens != 1 or not has_state)):
        reason = "its sequences are packed into one" if is_packed else "it is not of one token with a state before it"
        return Unmapped(what=name, kernel=kernel, reason=reason)
    call = Call(
        kernel=kernel,
        parameters={
            "num_q_heads": heads,
            "num_v_heads": value[2],
            "head_size": size,
            "use_qk_l2norm": is_normed,
            "dtype": name_dtype(dtype),
        },
        axes={"batch_size": batch},
        scalars={"scale": size**-0.5 if scale is None else float(scale)},
    )
    if is_decode:
        return call
    starts = tuple(range(0, (batch + 1) * tokens, tokens))
    axes = {"total_seq_len": batch * tokens, "num_seqs": batch, "len_cu_seqlens": batch + 1}
    return replace(call, axes=axes, given={"cu_seqlens": starts}, rows=(batch, tokens))


def _key_update(
    hidden_states: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **options: Any,
) -> Hashable:
    is_plain = conv_state.dim() == 3 and conv_state.shape[-1] >= weight.shape[-1] - 1 and not _is_set(options)
    kind = (hidden_states.dtype, weight.dtype, bias is not None, activation)
    return hidden_states.shape, weight.shape, *kind, is_plain, False


def _key_convolution(
    names: Sequence[str],
    /,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *more: Any,
    **options: Any,
) -> Hashable:
    options.update(zip(names, more, strict=False))
    has_state = options.pop("initial_states", None) is not None
    kind = (hidden_states.dtype, weight.dtype, bias is not None, options.get("activation"))
    return hidden_states.shape, weight.shape, *kind, not _is_set(options), has_state


def _is_set(options: Mapping[str, Any]) -> bool:
    """Tell whether something is asked for that transformers' own function does not know: packed sequences, for instance."""
    return any(value is not None for value in options.values() if hasattr(value, "untyped_storage"))


def _describe_convolution(name: str, kernel: str, kind: Any, /, *_: Any, **__: Any) -> Call | Unmapped:
    """Describe it with a pool of states that has one for each sequence, in their order."""
    shape, taps, dtype, kept, has_bias, activation, is_plain, has_state = kind
    is_decode = kernel == "causal_conv1d_decode"
    if not is_plain or len(shape) != 3 or len(taps) != 2 or taps[0] != shape[1] or (is_decode and shape[2] != 1):
        return Unmapped(
            what=name, kernel=kernel, reason="it is not of one sequence in each row, by taps for each channel"
        )
    if has_state:
        return Unmapped(what=name, kernel=kernel, reason="it goes on from a state before it: a continued prefill")
    if activation not in _ACTIVATIONS or kept != dtype:
        return Unmapped(what=name, kernel=kernel, reason=f"no kernel type has {activation!r}, or its weights in {kept}")
    batch, channels, tokens = shape
    parameters = {"channels": channels, "width": taps[1], "activation": _ACTIVATIONS[activation]}
    parameters |= {"bias": has_bias, "dtype": name_dtype(dtype)}
    slots = tuple(range(batch))
    if is_decode:
        axes = {"batch_size": batch, "state_cache_size": batch}
        return Call(kernel=kernel, parameters=parameters, axes=axes, given={"conv_state_indices": slots})
    starts = tuple(range(0, (batch + 1) * tokens, tokens))
    axes = {"total_seq_len": batch * tokens, "num_seqs": batch, "len_query_start_loc": batch + 1}
    given = {"query_start_loc": starts, "cache_indices": slots, "has_initial_state": (0,) * batch}
    return Call(
        kernel=kernel,
        parameters=parameters,
        axes={**axes, "state_cache_size": batch},
        given=given,
        rows=(batch, tokens),
    )


def _make_layer(name: str) -> Operator:
    """Make what counts a layer; products inside it are seen too."""

    def key(module: Any, *inputs: Any, **options: Any) -> Hashable:
        del module
        return tell_shapes(*inputs, **options)

    def describe(key: Any, *_: Any, **__: Any) -> Unmapped:
        return Unmapped(what=name, reason="what it makes of its state is not seen", shapes=tuple(map(tuple, key)))

    return Operator(name=name, key=key, describe=describe, is_whole=False)
