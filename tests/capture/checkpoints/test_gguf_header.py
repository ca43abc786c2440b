from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints.gguf_header import GgufTensor, read_header
from fib_tools.errors import FormatError

WHERE = Path("model.gguf")


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _header(pairs: bytes = b"", *, pair_count: int = 0, tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, pair_count) + pairs + tensors


def _pair(name: str, code: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", code) + value


def _tensor(name: str = "output.weight", dims: tuple[int, ...] = (64, 32), offset: int = 0) -> bytes:
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)


def _read(data: bytes) -> Any:
    return read_header(memoryview(data + b"\0" * 64), WHERE)


def test_numbers_strings_and_lists_are_read() -> None:
    pairs = [
        _pair("a.count", 4, struct.pack("<I", 7)),
        _pair("a.rate", 6, struct.pack("<f", 0.5)),
        _pair("a.name", 8, _string("tiny")),
        _pair("a.flag", 7, b"\1"),
        _pair("a.sizes", 9, struct.pack("<IQ3i", 5, 3, 4, -5, 6)),
        _pair("a.words", 9, struct.pack("<IQ", 8, 2) + _string("x") + _string("yz")),
    ]
    header = _read(_header(b"".join(pairs), pair_count=len(pairs)))
    assert header.metadata == {
        "a.count": 7,
        "a.rate": 0.5,
        "a.name": "tiny",
        "a.flag": True,
        "a.sizes": [4, -5, 6],
        "a.words": ["x", "yz"],
    }


def test_of_a_vocabulary_only_the_length_is_kept() -> None:
    words = struct.pack("<IQ", 8, 5000) + _string("x") * 5000
    scores = struct.pack("<IQ5000f", 6, 5000, *range(5000))
    header = _read(_header(_pair("words", 9, words) + _pair("scores", 9, scores), pair_count=2))
    assert header.metadata == {"words": range(5000), "scores": range(5000)}


def test_tensors_have_their_outermost_dimension_first_and_lie_after_the_padding() -> None:
    data = _header(tensors=_tensor(offset=32), tensor_count=1)
    start = -(-len(data) // 32) * 32
    assert _read(data).tensors == (GgufTensor(name="output.weight", shape=(32, 64), type_code=0, offset=start + 32),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4" + b"\0" * 60, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not read"),
        (_header(pair_count=1 << 60), "a count of 1152921504606846976"),
        (_header(tensor_count=1 << 40), "a count of 1099511627776"),
        (_header(_pair("a", 9, struct.pack("<IQ", 0, 1 << 60)), pair_count=1), "a count of 1152921504606846976"),
        (_header(_pair("a", 9, struct.pack("<IQ", 8, 1 << 60)), pair_count=1), "a count of 1152921504606846976"),
        (_header(_pair("a", 9, struct.pack("<IQ", 9, 1)), pair_count=1), "an array of type 9"),
        (_header(_pair("a", 99, b""), pair_count=1), "metadata of type 99"),
        (_header(_pair("a", 8, struct.pack("<Q", 1 << 50)), pair_count=1), "a string of 1125899906842624 bytes"),
        (_header(_pair("a", 8, struct.pack("<Q", 1000)), pair_count=1), "runs past the end"),
        (_header(_pair("a", 7, b"\1") * 2, pair_count=2), "the metadata has 'a' twice"),
        (_header(_pair("general.alignment", 4, struct.pack("<I", 0)), pair_count=1), "general.alignment is 0"),
        (_header(tensors=_tensor(dims=(1,) * 5), tensor_count=1), "'output.weight' has 5 dimensions"),
        (_header(tensors=_tensor(offset=3), tensor_count=1), "'output.weight' lies at 3, off the alignment"),
    ],
)
def test_a_header_is_not_believed_beyond_its_file(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        _read(data)
