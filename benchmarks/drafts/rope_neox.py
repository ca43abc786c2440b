"""RoPE (halves) of queries and keys in one launch: a block for some heads of a token, whose angles it reads once."""

import triton
import triton.language as tl

HEAD = 128


@triton.jit
def _turn(source, target, first, second, cos, sin, inside):
    a = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + second, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + first, (a * cos - b * sin).to(target.dtype.element_ty), mask=inside)
    tl.store(target + second, (b * cos + a * sin).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(q, k, table, positions, q_out, k_out, q_heads, k_heads, HEAD: tl.constexpr, HEADS: tl.constexpr):
    token = tl.program_id(1).to(tl.int64)
    piece = tl.program_id(0)
    half: tl.constexpr = HEAD // 2
    column = tl.arange(0, half)[None, :]
    angles = table + tl.load(positions + token) * HEAD
    cos, sin = tl.load(angles + column), tl.load(angles + half + column)
    pieces = tl.cdiv(q_heads, HEADS)
    if piece < pieces:
        head = piece * HEADS + tl.arange(0, HEADS)[:, None]
        at = (token * q_heads + head) * HEAD + column
        _turn(q, q_out, at, at + half, cos, sin, head < q_heads)
    else:
        head = (piece - pieces) * HEADS + tl.arange(0, HEADS)[:, None]
        at = (token * k_heads + head) * HEAD + column
        _turn(k, k_out, at, at + half, cos, sin, head < k_heads)


def run(q, k, cos_sin_cache, positions, q_out, k_out):
    tokens, q_heads, k_heads = q.shape[0], q.shape[1] // HEAD, k.shape[1] // HEAD
    heads = 4 if tokens <= 1024 else 8
    pieces = triton.cdiv(q_heads, heads) + triton.cdiv(k_heads, heads)
    for start in range(0, tokens, 65535):
        part = slice(start, start + 65535)
        _kernel[(pieces, min(65535, tokens - start))](
            q[part], k[part], cos_sin_cache, positions[part], q_out[part], k_out[part], q_heads, k_heads, HEAD, heads,
            num_warps=2 if heads == 4 else 4,
        )
