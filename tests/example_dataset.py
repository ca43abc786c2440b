"""A small dataset without a fault, to be broken in one place by each test."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

DEFINITION: dict[str, Any] = {
    "name": "copy_n4",
    "description": "Copies rows.",
    "op_type": "copy",
    "tags": ["status:unverified"],
    "axes": {
        "rows": {"type": "var", "description": "Rows."},
        "len_indptr": {"type": "var", "description": "Rows and one."},
        "n": {"type": "const", "value": 4, "description": "Columns."},
    },
    "constraints": ["len_indptr == rows + 1", "n % 2 == 0", "rows == indptr[-1].item()"],
    "inputs": {
        "x": {"shape": ["rows", "n"], "dtype": "float32", "description": "Rows."},
        "indptr": {"shape": ["len_indptr"], "dtype": "int32", "description": "Offsets."},
        "scale": {"shape": None, "dtype": "float32", "description": "A factor."},
    },
    "outputs": {"y": {"shape": ["rows", "n"], "dtype": "float32", "description": "The copy."}},
    "reference": "def run(x, indptr, scale):\n    return x * scale\n",
}
BLOB = "blob/workloads/copy/copy_n4/one.safetensors"
WORKLOAD: dict[str, Any] = {
    "axes": {"rows": 2, "len_indptr": 3},
    "inputs": {
        "x": {"type": "random"},
        "indptr": {"type": "safetensors", "path": f"./{BLOB}", "tensor_key": "indptr"},
        "scale": {"type": "scalar", "value": 0.5},
    },
    "uuid": "one",
}
SOLUTION: dict[str, Any] = {
    "name": "wrapper",
    "definition": "copy_n4",
    "author": "baseline",
    "spec": {"language": "python", "target_hardware": ["H200"], "entry_point": "main.py::run"},
    "sources": [{"path": "main.py", "content": "def run(x, indptr, scale):\n    return x\n"}],
}
EVALUATION: dict[str, Any] = {
    "status": "PASSED",
    "environment": {"hardware": "H200", "libs": {}},
    "timestamp": "2026-11-21T00:00:00",
    "log": "",
    "correctness": {"max_relative_error": 0.0, "max_absolute_error": 0.0},
    "performance": {"latency_ms": 1.0, "reference_latency_ms": 2.0, "speedup_factor": 2.0},
}
FILES: dict[str, Any] = {
    "definitions/copy/copy_n4.json": DEFINITION,
    "workloads/copy/copy_n4.jsonl": [{"definition": "copy_n4", "workload": WORKLOAD}],
    "solutions/baseline/copy/copy_n4/wrapper.json": SOLUTION,
    "traces/baseline/copy/copy_n4.jsonl": [
        {"definition": "copy_n4", "workload": WORKLOAD, "solution": "wrapper", "evaluation": EVALUATION}
    ],
}


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def write(root: Path, path: str, content: Any) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        target.write_bytes(content)
    elif isinstance(content, list):
        target.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
