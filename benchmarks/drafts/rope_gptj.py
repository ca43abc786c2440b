"""RoPE (neighbouring pairs) of queries and keys in one launch: a tile of rows (token and head) a block."""

import triton
import triton.language as tl

HEAD = 64
MANY = 1 << 18
"""Rows of queries from which on blocks take twice as many: at a million 79 us in place of 82, at few they are slower."""


@triton.jit
def _turn(
    source, target, table, positions, start, rows, HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr
):
    half: tl.constexpr = HEAD // 2
    row = start + tl.arange(0, ROWS)
    inside = row < rows
    angles = tl.load(positions + row // HEADS, mask=inside, other=0)[:, None] * HEAD + tl.arange(0, half)[None, :]
    at = row.to(tl.int64)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    value = tl.load(source + at, mask=inside[:, None], other=0.0)
    cos = tl.load(table + angles, mask=inside[:, None], other=0.0)
    sin = tl.load(table + half + angles, mask=inside[:, None], other=0.0)
    a, b = tl.split(tl.reshape(value.to(tl.float32), (ROWS, half, 2)))
    turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (ROWS, HEAD))
    tl.store(target + at, turned.to(target.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _kernel(
    q, k, table, positions, q_out, k_out, tokens, pieces,
    QH: tl.constexpr, KH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr,
):
    piece = tl.program_id(0)
    if piece < pieces:
        _turn(q, q_out, table, positions, piece * ROWS, tokens * QH, QH, HEAD, ROWS)
    else:
        _turn(k, k_out, table, positions, (piece - pieces) * ROWS, tokens * KH, KH, HEAD, ROWS)


def run(q, k, cos_sin_cache, positions, q_out, k_out):
    tokens, q_heads, k_heads = q.shape[0], q.shape[1] // HEAD, k.shape[1] // HEAD
    if q.shape[1] % HEAD or k.shape[1] % HEAD or cos_sin_cache.shape[1] != HEAD:
        raise ValueError(f"rows of {q.shape[1]} and {k.shape[1]} values, {cos_sin_cache.shape[1]} of a head turned")
    rows = 16 if tokens * q_heads < MANY else 32
    pieces = triton.cdiv(tokens * q_heads, rows)
    _kernel[(pieces + triton.cdiv(tokens * k_heads, rows),)](
        q, k, cos_sin_cache, positions, q_out, k_out, tokens, pieces, q_heads, k_heads, HEAD, rows, num_warps=4
    )
