"""RoPE (halves) of queries and keys in one launch: a block for a token, or for some heads of one where tokens are few."""

import triton
import triton.language as tl

HEAD = 128


@triton.jit
def _turn(a, b, cos, sin, target, at, inside, HALF: tl.constexpr):
    a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(target + at, (a * cos - b * sin).to(target.dtype.element_ty), mask=inside)
    tl.store(target + at + HALF, (b * cos + a * sin).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _token_kernel(
    q, k, table, positions, q_out, k_out,
    QH: tl.constexpr, KH: tl.constexpr, HEAD: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
):
    """Turn all heads; all loads are asked for before the first is used."""
    token = tl.program_id(0).to(tl.int64)
    half: tl.constexpr = HEAD // 2
    column = tl.arange(0, half)[None, :]
    angles = table + tl.load(positions + token) * HEAD
    q_head, k_head = tl.arange(0, Q)[:, None], tl.arange(0, K)[:, None]
    q_in, k_in = (q_head < QH) | (Q == QH), (k_head < KH) | (K == KH)
    q_at, k_at = (token * QH + q_head) * HEAD + column, (token * KH + k_head) * HEAD + column
    qa, qb = tl.load(q + q_at, mask=q_in, other=0.0), tl.load(q + q_at + half, mask=q_in, other=0.0)
    ka, kb = tl.load(k + k_at, mask=k_in, other=0.0), tl.load(k + k_at + half, mask=k_in, other=0.0)
    cos, sin = tl.load(angles + column), tl.load(angles + half + column)
    _turn(qa, qb, cos, sin, q_out, q_at, q_in, half)
    _turn(ka, kb, cos, sin, k_out, k_at, k_in, half)


@triton.jit
def _heads_kernel(
    q, k, table, positions, q_out, k_out, QH: tl.constexpr, KH: tl.constexpr, HEAD: tl.constexpr, HEADS: tl.constexpr
):
    """Turn HEADS heads of the queries; the blocks after these turn those of the keys."""
    piece, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    half: tl.constexpr = HEAD // 2
    pieces: tl.constexpr = (QH + HEADS - 1) // HEADS
    column = tl.arange(0, half)[None, :]
    angles = table + tl.load(positions + token) * HEAD
    cos, sin = tl.load(angles + column), tl.load(angles + half + column)
    if piece < pieces:
        head = piece * HEADS + tl.arange(0, HEADS)[:, None]
        at, inside = (token * QH + head) * HEAD + column, head < QH
        a, b = tl.load(q + at, mask=inside, other=0.0), tl.load(q + at + half, mask=inside, other=0.0)
        _turn(a, b, cos, sin, q_out, at, inside, half)
    else:
        head = (piece - pieces) * HEADS + tl.arange(0, HEADS)[:, None]
        at, inside = (token * KH + head) * HEAD + column, head < KH
        a, b = tl.load(k + at, mask=inside, other=0.0), tl.load(k + at + half, mask=inside, other=0.0)
        _turn(a, b, cos, sin, k_out, at, inside, half)


def run(q, k, cos_sin_cache, positions, q_out, k_out):
    tokens, q_heads, k_heads = q.shape[0], q.shape[1] // HEAD, k.shape[1] // HEAD
    most = triton.next_power_of_2(max(q_heads, k_heads))
    if q.shape[1] % HEAD or k.shape[1] % HEAD or cos_sin_cache.shape[1] != HEAD or most > 128:
        raise ValueError(f"rows of {q.shape[1]} and {k.shape[1]} values, {cos_sin_cache.shape[1]} of a head turned")
    arguments = (q, k, cos_sin_cache, positions, q_out, k_out, q_heads, k_heads, HEAD)
    if tokens > 264:  # two blocks a multiprocessor of an H200
        sizes = (triton.next_power_of_2(q_heads), triton.next_power_of_2(k_heads))
        _token_kernel[(tokens,)](*arguments, *sizes, num_warps=max(1, most // 16))
    else:
        _heads_kernel[(triton.cdiv(q_heads, 8) + triton.cdiv(k_heads, 8), tokens)](*arguments, 8, num_warps=4)
