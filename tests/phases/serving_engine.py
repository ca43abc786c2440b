"""A stand-in for the engine's child: answers its batches, and writes a call for each forward as FlashInfer does."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from level10 import Recording  # the path must be there first

request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
assert os.environ["FLASHINFER_LOGLEVEL"] == "10"
assert os.environ["FIB_DUMP_LIGHT"] == "1"
assert "FLASHINFER_TRACE_DUMP" not in os.environ
recording = Recording(Path(os.environ["FLASHINFER_DUMP_DIR"]))


def tell(**entry: Any) -> None:
    with Path(request["progress"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def length(sequence: dict[str, Any]) -> int:
    return len(sequence["tokens"]) + sum(each for _, each in sequence["pieces"])


tell(event="versions", versions={"sglang": "0.0"})
for batch in request["batches"]:
    tell(stage=batch["name"], event="begin")
    sequences = batch["sequences"]
    recording.rmsnorm(sum(map(length, sequences)))
    for step in range(max(each["max_new_tokens"] for each in sequences)):
        recording.plan_decode([length(each) + step + 1 for each in sequences])
        recording.run_decode(len(sequences))
    # what was written is taken away while this goes on
    deadline = time.monotonic() + 300
    while any(recording.folder.iterdir()):
        assert time.monotonic() < deadline, "nobody takes the calls"
        time.sleep(0.02)
    tell(stage=batch["name"], event="end", seconds=0.1)
if request["config"].get("behaviour") == "fail":
    sys.exit("ValueError: heads do not divide")
recording.rmsnorm(7)  # the last words of an engine that is ended
tell(event="done", failures=[])
