"""Loading the first layers of a made-up Llama, Llama-3.2-1B's shape, from each format: seconds and memory.

python benchmarks/load_weights.py [--layers 16] [--cut 2] [--folder DIR]

Memory is the process's own beyond what it had before (RssAnon), at its peak; mapped files are not in it.
`transformers` is its own `from_pretrained` on the same files, which has no way to cut.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import describe_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
FILES = {
    "safetensors": "hf",
    "pth, 2 ranks": "pth",
    "GGUF F16": "F16.gguf",
    "GGUF Q8_0": "Q8_0.gguf",
    "GGUF Q4_K": "Q4_K.gguf",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--cut", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    print(f"# {describe_machine(('torch', 'transformers', 'safetensors', 'gguf'))}; files in the page cache")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        write(Path(name), options.layers)
        print("format        reader        layers  open s  load s  forward s  model MiB  peak own MiB")
        for kind, file in FILES.items():
            for reader, layers in (
                ("fib-tools", options.cut),
                ("fib-tools", options.layers),
                ("transformers", options.layers),
            ):
                if reader == "fib-tools" or file != "pth":
                    report(kind, reader, layers, Path(name) / file)


def write(folder: Path, layers: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    import tiny_checkpoints as tiny

    config = CONFIG_MAPPING["llama"].from_dict({**tiny.LLAMA, **SHAPE, "num_hidden_layers": layers})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tiny.write_safetensors(model, folder / "hf", shard="1GB")
    tiny.write_meta(model, folder / "pth", ranks=2)
    params = json.loads((folder / "pth" / "params.json").read_text(encoding="utf-8")) | {"ffn_dim_multiplier": 1.5}
    (folder / "pth" / "params.json").write_text(json.dumps(params), encoding="utf-8")
    model = model.float()
    for kind in ("F16", "Q8_0", "Q4_K"):
        tiny.write_gguf(model, folder / f"{kind}.gguf", kind)


def report(kind: str, reader: str, layers: int, path: Path) -> None:
    command = [sys.executable, __file__, "--child", str(path), reader, str(layers)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if ran.returncode:
        print(f"{kind:13s} {reader:12s} {layers:7d}  failed: {ran.stderr.strip().splitlines()[-1][:100]}")
        return
    seen = json.loads(ran.stdout.splitlines()[-1])
    print(
        f"{kind:13s} {reader:12s} {layers:7d} {seen['open']:7.2f} {seen['load']:7.2f} {seen['forward']:10.2f}"
        f" {seen['model']:10.0f} {seen['peak']:13.0f}"
    )


def measure(path: str, reader: str, layers: str) -> dict[str, float]:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from fib_tools.capture.checkpoints.loading import load_model
    from fib_tools.capture.checkpoints.opening import open_checkpoint

    before, peak, done = own_memory(), [0.0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done), daemon=True)
    watcher.start()
    began = time.perf_counter()
    checkpoint = open_checkpoint(path) if reader == "fib-tools" else None
    opened = time.perf_counter()
    model = load_model(checkpoint, layers=int(layers)) if checkpoint else load_with_transformers(Path(path))
    loaded = time.perf_counter()
    most = max(peak[0], own_memory())
    with torch.no_grad():
        model(input_ids=torch.arange(3, 35)[None])
    ended = time.perf_counter()
    done.set()
    watcher.join()
    size = sum({id(value): value.nbytes for value in model.parameters()}.values()) / 2**20
    seconds = {"open": opened - began, "load": loaded - opened, "forward": ended - loaded}
    return {**seconds, "model": size, "peak": most - before}


def load_with_transformers(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if path.suffix == ".gguf" else path
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def own_memory() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def watch(peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.005):
        peak[0] = max(peak[0], own_memory())


if __name__ == "__main__":
    main()
