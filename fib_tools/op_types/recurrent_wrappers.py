"""The ground truth of the recurrent op_types: FlashInfer's delta rules and its state-space update.

Each kernel writes the new state over the old one, as an engine wants it; a wrapper gives it a copy.
Read off FlashInfer 0.7.2.post1: `gdn_decode.py`, `gdn_prefill.py`, `kda.py`, `mamba/selective_state_update.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fib_tools.op_types.ground_truth import AMPERE_ON, HOPPER_ON, GroundTruth, Wrapper, no_kernel

__all__ = ["gdn_ground_truth", "kda_decode_ground_truth", "kda_prefill_ground_truth", "mamba_ground_truth"]

_GDN_PREFILL = (90, 100, 103, 120, 121)
"""It is chosen by the major number: 9, 10 or 12."""
_KDA = (100, 103)
_HEAD_DIM = 128
"""The only width for which all of the delta rule's kernels are written."""

_GDN_RUN: Mapping[str, str] = {
    "gdn_decode": """
        @torch.no_grad()
        def run(q, k, v, state, A_log, a, dt_bias, b, scale):
            new_state = state.clone()
            output, _ = gated_delta_rule_decode_pretranspose(
                q, k, v, new_state, A_log, a, dt_bias, b, scale=scale, use_qk_l2norm=USE_QK_L2NORM
            )
            return output, new_state
    """,
    "gdn_prefill": """
        @torch.no_grad()
        def run(q, k, v, state, A_log, a, dt_bias, b, cu_seqlens, scale):
            # The kernel takes the gates finished: the decay itself, not its logarithm.
            rate = torch.exp(A_log) * torch.nn.functional.softplus(a.float() + dt_bias)
            return chunk_gated_delta_rule(
                q, k, v, torch.exp(-rate), torch.sigmoid(b.float()), scale=scale, initial_state=state,
                output_final_state=True, cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=USE_QK_L2NORM,
            )
    """,
    "gdn_mtp": """
        @torch.no_grad()
        def run(q, k, v, initial_state, initial_state_indices, A_log, a, dt_bias, b, scale):
            final_state = initial_state.clone()
            # Rows of padding are not written: zero is what they are to be.
            shape = (*v.shape, v.shape[-1])
            intermediate_states = torch.zeros(shape, dtype=initial_state.dtype, device=v.device)
            output, _ = gated_delta_rule_mtp(
                q, k, v, final_state, initial_state_indices, A_log, a, dt_bias, b, scale=scale,
                intermediate_states_buffer=intermediate_states, disable_state_update=False,
                use_qk_l2norm=USE_QK_L2NORM,
            )
            return output, final_state, intermediate_states
    """,
}


def gdn_ground_truth(form: str, api: str, *, head_size: int, dtype: str, use_qk_l2norm: bool) -> GroundTruth:
    """Call FlashInfer's gated delta rule; `form` is the kernel type's id."""
    if head_size != _HEAD_DIM:
        return no_kernel(f"FlashInfer's gated delta rule is written for heads of {_HEAD_DIM}, not of {head_size}")
    if dtype != "bfloat16":
        return no_kernel(f"FlashInfer's gated delta rule rounds its output to bfloat16, and this one's is {dtype}")
    capabilities = _GDN_PREFILL if form == "gdn_prefill" else HOPPER_ON
    return _flashinfer(api, _GDN_RUN[form], capabilities, USE_QK_L2NORM=use_qk_l2norm)


_KDA_DECODE = """
    @torch.no_grad()
    def run(q, k, v, g, beta, initial_state, scale):
        final_state = initial_state.clone()
        output, _ = recurrent_kda(
            q, k, v, g, beta, scale=scale, initial_state=final_state, output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return output, final_state
"""


def kda_decode_ground_truth(api: str, *, head_dim: int, dtypes: tuple[str, str]) -> GroundTruth:
    """Call FlashInfer's Kimi Delta Attention for one token; `dtypes` are those of the tokens and of the state."""
    if head_dim not in (64, _HEAD_DIM):
        return no_kernel(f"FlashInfer's recurrent_kda is written for heads of 64 and {_HEAD_DIM}, not of {head_dim}")
    if dtypes != ("bfloat16", "bfloat16"):
        return no_kernel("FlashInfer's recurrent_kda takes tokens and a state of bfloat16")
    found = _flashinfer(api, _KDA_DECODE, _KDA)
    return GroundTruth(wrappers=found.wrappers, reason="FlashInfer's recurrent_kda needs Blackwell (sm_100, sm_103)")


def kda_prefill_ground_truth() -> GroundTruth:
    """Say why FlashInfer's prefill kernels do not compute this Definition."""
    what = "FlashInfer's prefill of recurrent_kda makes the gates itself (use_gate_in_kernel with a lower bound)"
    return no_kernel(f"{what}; this Definition has them finished")


_MAMBA = """
    def spread(values, shape):
        # The kernel wants one value a head, spread over its elements without memory (stride 0), as an engine has it.
        return values.contiguous().reshape(*values.shape, *(1 for _ in shape[values.dim():])).expand(shape)


    @torch.no_grad()
    def run(state, x, dt, A, B, C, D, dt_bias, state_batch_indices):
        new_state = state.clone()
        output = selective_state_update(
            new_state, x, spread(dt[:, :, 0], dt.shape), spread(A[:, 0, 0], A.shape), B, C,
            spread(D[:, 0], D.shape), dt_bias=spread(dt_bias[:, 0], dt_bias.shape), dt_softplus=True,
            state_batch_indices=state_batch_indices, pad_slot_id=-1,
        )
        # It reads padding out too, from a state of zeros; the Definition has 0 there.
        return output.masked_fill_((state_batch_indices < 0)[:, None, None], 0.0), new_state
"""
_RATIOS = (1, 2, 4, 8, 16, 32, 64)
"""Heads a group for which the kernels are instantiated."""


def mamba_ground_truth(api: str, *, head_dim: int, d_state: int, heads_a_group: int) -> GroundTruth:
    """Call FlashInfer's selective state update for one token."""
    if head_dim not in (64, 128) or d_state not in (64, 128, 256):
        what = "FlashInfer's kernel is known to take heads of 64 and 128 and states of 64, 128 and 256"
        return no_kernel(f"{what}, not {head_dim} and {d_state}")
    if heads_a_group not in _RATIOS:
        return no_kernel(f"FlashInfer's kernel takes {_RATIOS} heads a group, not {heads_a_group}")
    return _flashinfer(api, _MAMBA, AMPERE_ON)


def _flashinfer(api: str, body: str, capabilities: tuple[int, ...], **constants: Any) -> GroundTruth:
    module, _, name = api.rpartition(".")
    wrapper = Wrapper(
        kind="flashinfer",
        api=api,
        imports=(f"from {module} import {name}",),
        constants=constants,
        body=body,
        capabilities=capabilities,
    )
    return GroundTruth(wrappers=(wrapper,))
