"""RoPE (neighbouring pairs) of queries and keys in one launch: a tile of rows (token and head) a block."""

import triton
import triton.language as tl

HEAD = 64


@triton.jit
def _turn(source, target, table, positions, start, rows, heads, HEAD: tl.constexpr, ROWS: tl.constexpr):
    half: tl.constexpr = HEAD // 2
    row = start + tl.arange(0, ROWS)
    inside = row < rows
    angles = tl.load(positions + row // heads, mask=inside, other=0)[:, None] * HEAD + tl.arange(0, half)[None, :]
    cos = tl.load(table + angles, mask=inside[:, None], other=0.0)
    sin = tl.load(table + half + angles, mask=inside[:, None], other=0.0)
    at = row.to(tl.int64)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    value = tl.load(source + at, mask=inside[:, None], other=0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(value, (ROWS, half, 2)))
    turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (ROWS, HEAD))
    tl.store(target + at, turned.to(target.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _kernel(q, k, table, positions, q_out, k_out, tokens, q_heads, k_heads, HEAD: tl.constexpr, ROWS: tl.constexpr):
    piece = tl.program_id(0)
    pieces = tl.cdiv(tokens * q_heads, ROWS)
    if piece < pieces:
        _turn(q, q_out, table, positions, piece * ROWS, tokens * q_heads, q_heads, HEAD, ROWS)
    else:
        _turn(k, k_out, table, positions, (piece - pieces) * ROWS, tokens * k_heads, k_heads, HEAD, ROWS)


def run(q, k, cos_sin_cache, positions, q_out, k_out):
    tokens, q_heads, k_heads = q.shape[0], q.shape[1] // HEAD, k.shape[1] // HEAD
    rows = 4 if tokens * q_heads <= 4096 else 16
    pieces = triton.cdiv(tokens * q_heads, rows) + triton.cdiv(tokens * k_heads, rows)
    _kernel[(pieces,)](
        q, k, cos_sin_cache, positions, q_out, k_out, tokens, q_heads, k_heads, HEAD, rows,
        num_warps=1 if rows == 4 else 4,
    )
