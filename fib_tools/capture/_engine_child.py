"""The child that starts SGLang's engine and sends it requests: `python _engine_child.py REQUEST.json`.

It runs in the engine's environment, which need not have what this package needs: nothing is imported here but the
standard library and SGLang, and the environment variables are those that the parent set before any import.
What it does is told line by line in the file that the request names:

{"stage": "import", "event": "begin"}, {"stage": "import", "event": "end", "seconds": 9.1}, {"event": "done", ...}
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGES = ("sglang", "flashinfer-python", "sglang-kernel", "sgl-kernel", "torch", "transformers", "triton")
_FIRST_PORT, _PORTS, _APART = 20000, 20000, 1009
"""Engines side by side must not meet: SGLang looks for free ports within a thousand from a number on."""
_WORD, _STEP = 7919, 104729
"""Primes, for tokens that look mixed and are the same each time."""


class Progress:
    """Tells the parent how far it is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tell(self, **entry: Any) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell of the beginning and the end of a stage, or of its failure."""
        self.tell(stage=name, event="begin")
        start = time.monotonic()
        try:
            yield
        except BaseException as error:
            seconds = round(time.monotonic() - start, 2)
            text = f"{type(error).__name__}: {error}"
            self.tell(stage=name, event="failed", seconds=seconds, error=text[:4000])
            raise
        self.tell(stage=name, event="end", seconds=round(time.monotonic() - start, 2))


def make_tokens(pieces: list[list[int]], vocab_size: int) -> list[int]:
    """Make up the tokens of a prompt; equal pieces give equal tokens. The first tokens of a vocabulary are special."""
    low = min(1000, vocab_size // 2)
    return [
        low + (seed * _STEP + place * _WORD) % (vocab_size - low) for seed, length in pieces for place in range(length)
    ]


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """Write a model folder that holds a config and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def choose_arguments(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Keep the arguments that this version of SGLang knows, and tell which were left out."""
    from sglang.srt.server_args import ServerArgs

    known = list_fields(ServerArgs)
    arguments = {**request["arguments"], "port": _FIRST_PORT + os.getpid() * _APART % _PORTS}
    if request["weights"] is None:
        arguments["model_path"] = str(write_model(Path(request["model_folder"]), request["config"]))
    else:
        arguments["model_path"] = request["weights"]
        if request["overrides"]:
            arguments["json_model_override_args"] = json.dumps(nest(request["overrides"]))
    left_out = sorted(set(arguments) - known) if known else []
    if left_out:
        progress.tell(event="note", text=f"this SGLang does not know {', '.join(left_out)}")
    return {name: value for name, value in arguments.items() if name not in left_out}


def list_fields(kind: Any) -> set[str]:
    """List the fields of a record class, whichever library made it; empty when it does not tell."""
    for attribute in ("__dataclass_fields__", "__struct_fields__", "model_fields"):
        fields = getattr(kind, attribute, None)
        if fields:
            return set(fields)
    return set()


def nest(overrides: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted paths into nested objects."""
    nested: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, field = path.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        target[field] = value
    return nested


def list_versions() -> dict[str, str]:
    """List the versions of what the dump depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def send(engine: Any, batch: dict[str, Any], vocab_size: int) -> int:
    """Send one batch and wait for its answers; return how many tokens came."""
    prompts = [[*make_tokens(sequence["pieces"], vocab_size), *sequence["tokens"]] for sequence in batch["sequences"]]
    common = {"ignore_eos": True, **batch["sampling"]}
    sampling = [
        {**common, "max_new_tokens": sequence["max_new_tokens"]} if sequence["max_new_tokens"] else common
        for sequence in batch["sequences"]
    ]
    answers = engine.generate(input_ids=prompts, sampling_params=sampling)
    return sum(len(answer.get("output_ids") or ()) for answer in answers)


def run(request: dict[str, Any], progress: Progress) -> None:
    """Go through the stages."""
    with progress.stage("import"):
        from sglang.srt.entrypoints.engine import Engine
    progress.tell(event="versions", versions=list_versions(), python=sys.version.split()[0])
    with progress.stage("start"):
        arguments = choose_arguments(request, progress)
        progress.tell(event="arguments", arguments={name: str(value) for name, value in arguments.items()})
        engine = Engine(**arguments)
    failures = []
    for batch in request["batches"]:
        try:
            with progress.stage(batch["name"]):
                count = send(engine, batch, request["vocab_size"])
            progress.tell(event="note", text=f"{batch['name']}: {count} tokens came back")
        except Exception as error:  # noqa: BLE001  # the other batches show other kernels
            traceback.print_exc()
            failures.append(f"{batch['name']}: {type(error).__name__}: {error}")
    progress.tell(event="done", failures=failures)
    with progress.stage("shutdown"):
        engine.shutdown()


def main() -> int:
    """Serve the request whose file is named on the command line."""
    # Python puts the script's folder first, where modules of this package would hide others of their names
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != own]
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    progress = Progress(Path(request["progress"]))
    progress.tell(event="started", pid=os.getpid())
    try:
        run(request, progress)
    except Exception as error:  # noqa: BLE001  # told to the parent, which raises it
        traceback.print_exc()
        progress.tell(event="crashed", error=f"{type(error).__name__}: {error}"[:4000])
        return 1
    return 0


if __name__ == "__main__":  # the engine's processes import this file again
    sys.exit(main())
