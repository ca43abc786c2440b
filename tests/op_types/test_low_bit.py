from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest

from fib_tools.model.definition import Definition
from fib_tools.op_types.base import const, source, tensor
from fib_tools.op_types.input_request import InputRequest
from fib_tools.op_types.low_bit import (
    DECODE_E2M1,
    DECODE_E4M3,
    E2M1_RMS,
    INT4_RMS,
    count_blocks,
    exponent_bytes,
    packed_bytes,
    spread,
)


def _load(text: str, name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(source(dedent(text)), namespace)  # noqa: S102  # the source is what is under test
    return namespace[name]


def _request(dtype: str, *shape: int) -> InputRequest:
    import torch

    names = [f"n{index}" for index in range(len(shape))]
    spec = tensor(dtype, " ".join(names), "x")
    definition = Definition(
        name="x",
        op_type="x",
        axes={name: const(length, "n") for name, length in zip(names, shape, strict=True)},
        inputs={"x": spec},
        outputs={},
        reference="def run(x): ...",
    )
    return InputRequest(
        definition=definition,
        axes=definition.const_axes,
        name="x",
        spec=spec,
        made={},
        generator=torch.Generator().manual_seed(0),
    )


def test_every_e4m3_but_nan_decodes_as_torch_does() -> None:
    import torch

    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    decoded, expected = _load(DECODE_E4M3, "decode_e4m3")(codes), codes.to(torch.float32)
    numbers = ~expected.isnan()
    assert int(numbers.sum()) == 254
    assert torch.equal(decoded[numbers], expected[numbers])
    assert torch.equal(decoded[numbers].signbit(), expected[numbers].signbit())


def test_e2m1_decodes_to_the_values_of_its_specification() -> None:
    import torch

    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    decoded = _load(DECODE_E2M1, "decode_e2m1")(torch.arange(16, dtype=torch.int16))
    assert decoded.tolist() == [*table, *(-value for value in table)]
    assert decoded.square().mean().sqrt().item() == pytest.approx(E2M1_RMS, rel=0.01)
    assert torch.arange(-8.0, 8.0).square().mean().sqrt().item() == pytest.approx(INT4_RMS, rel=0.01)


def test_a_short_last_block_counts() -> None:
    assert [count_blocks(length, 128) for length in (1, 128, 129, 2112)] == [1, 1, 2, 17]


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("int32", -(2**31), 2**31 - 1)])
def test_packed_bits_reach_both_ends(dtype: str, low: int, high: int) -> None:
    made = packed_bytes(_request(dtype, 64, 256))
    assert made.min().item() < low * 0.99
    assert made.max().item() > high * 0.98


def test_a_large_input_shares_storage_and_keeps_its_shape() -> None:
    made = packed_bytes(_request("int8", 384, 4096, 3584))
    assert tuple(made.shape) == (384, 4096, 3584)
    assert made.untyped_storage().nbytes() <= 32 << 20
    assert made.stride()[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_scales_are_positive_and_within_the_bounds(dtype: str) -> None:
    made = spread(0.5, 1.5)(_request(dtype, 7, 33)).float()
    assert tuple(made.shape) == (7, 33)
    assert made.min().item() >= 0.5
    assert made.max().item() <= 1.5
    assert made.unique().numel() > 5


def test_exponent_bytes_lie_around_the_middle() -> None:
    import torch

    made = exponent_bytes(1 / 64)(_request("int8", 4, 100))
    assert torch.exp2(made.float() - 127).unique().tolist() == [1 / 128, 1 / 64, 1 / 32]
