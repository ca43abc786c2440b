"""Routing by sigmoid with a bias over one group: a warp a token, which finds the best score and the lowest expert that has it.

Scores are compared as integers that sort like them, for which a warp has an instruction.
From Hopper on blocks that find room at once are launched while the kernel before them ends, and wait for that end before
they read; of more blocks those that wait only stand in the way.
"""

import torch
import triton
import triton.language as tl

TOP_K = 8
EARLY_BLOCKS = 528
"""Four on each multiprocessor of an H200."""


@triton.jit
def _kernel(
    logits, bias, scaling, weights, ids, E: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr, EARLY: tl.constexpr
):
    if EARLY:
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    inside = expert < E
    logit = tl.load(logits + token * E + expert, mask=inside, other=0.0)
    score = 1.0 / (1.0 + tl.exp(-logit))
    biased = score + tl.load(bias + expert, mask=inside, other=0.0)
    bits = biased.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(inside, key, -2147483648)
    place = tl.arange(0, K)
    chosen = tl.zeros((K,), dtype=tl.int32)
    for number in tl.static_range(K):
        best = tl.max(key, axis=0)
        which = tl.min(tl.where(key == best, expert, BLOCK), axis=0)
        chosen = tl.where(place == number, which, chosen)
        key = tl.where(expert == which, -2147483648, key)
    value = 1.0 / (1.0 + tl.exp(-tl.load(logits + token * E + chosen)))
    total = tl.sum(value, axis=0) + 1e-20
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(weights + token * K + place, value / total * scaling)
    tl.store(ids + token * K + place, chosen)


def run(routing_logits, routing_bias, routed_scaling_factor, topk_weights, topk_ids):
    tokens, experts = routing_logits.shape
    device = routing_logits.device
    early = tokens <= EARLY_BLOCKS and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    options = {"launch_pdl": True} if early else {}
    _kernel[(tokens,)](
        routing_logits, routing_bias, routed_scaling_factor, topk_weights, topk_ids, experts,
        triton.next_power_of_2(experts), TOP_K, early, num_warps=1, **options,
    )
