"""What a damaged, incomplete or hostile checkpoint is refused with, by name, and before its values are read."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints import gguf_file
from fib_tools.capture.checkpoints.loading import load_model
from fib_tools.capture.checkpoints.opening import open_checkpoint
from fib_tools.errors import (
    ConfigError,
    FibError,
    FormatError,
    MissingDependencyError,
    OfflineError,
    PathError,
    RequestError,
)
from tiny_checkpoints import (
    DEEPSEEK,
    QWEN3_MOE,
    change_safetensors,
    make_llama,
    make_model,
    write_gguf,
    write_meta,
    write_safetensors,
)

Q = "model.layers.0.self_attn.q_proj.weight"


def _refusal(path: Path | str, kind: type[FibError] = FormatError, **options: Any) -> str:
    with pytest.raises(kind) as refused:
        load_model(open_checkpoint(path), **options)
    assert refused.value.where or kind in (RequestError, PathError)
    return refused.value.what


def _zeros(*shape: int) -> Any:
    import numpy as np

    return np.zeros(shape, dtype=np.float32)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(fields), encoding="utf-8")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.pop(Q))
    assert _refusal(tmp_path) == f"'{Q}': missing from the files"


def test_a_tensor_that_is_missing_beyond_the_cut_does_not_matter(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.pop(Q.replace("layers.0", "layers.2")))
    assert load_model(open_checkpoint(tmp_path), layers=2) is not None


@pytest.mark.parametrize("layers", [None, 1])
def test_a_tensor_too_much_is_named(tmp_path: Path, layers: int | None) -> None:
    import torch

    write_safetensors(make_llama(), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.zeros(3)}))
    what = _refusal(tmp_path, layers=layers)
    assert what == "'model.layers.0.extra.weight': left over: the model has no place for it"


def test_layers_for_multi_token_prediction_are_left_out(tmp_path: Path) -> None:
    import torch

    write_safetensors(make_model(DEEPSEEK), tmp_path)
    _edit_config(tmp_path, num_nextn_predict_layers=1)
    change_safetensors(tmp_path, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.zeros(3)}))
    assert load_model(open_checkpoint(tmp_path)) is not None


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.update({Q: tensors[Q][:32].clone()}))
    assert _refusal(tmp_path).startswith(f"'{Q}' (32, 64) should be (64, 64): ")


@pytest.mark.parametrize("projection", ["gate", "down"])
@pytest.mark.parametrize("expert", [1, 3])
def test_a_missing_expert_is_named(tmp_path: Path, projection: str, expert: int) -> None:
    name = f"model.layers.1.mlp.experts.{expert}.{projection}_proj.weight"
    write_safetensors(make_model(QWEN3_MOE), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.pop(name))
    assert re.match(rf"'{name}' \(\d+, \d+\) is missing: 'model.layers.1.mlp.experts", _refusal(tmp_path))


def test_a_misshapen_expert_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    write_safetensors(make_model(QWEN3_MOE), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.update({name: tensors[name][:, :32].clone()}))
    assert _refusal(tmp_path).startswith(f"'{name}' (32, 32) should be (32, 64): ")


def test_an_expert_too_much_is_named(tmp_path: Path) -> None:
    names = [f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in (3, 4)]
    write_safetensors(make_model(QWEN3_MOE), tmp_path)
    change_safetensors(tmp_path, lambda tensors: tensors.update({names[1]: tensors[names[0]].clone()}))
    assert _refusal(tmp_path).startswith(f"'{names[1]}' is too much: ")


def test_two_tensors_for_one_parameter_are_both_named(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    short = Q.removeprefix("model.")
    change_safetensors(tmp_path, lambda tensors: tensors.update({short: tensors[Q].clone()}))
    assert _refusal(tmp_path) == f"'{short}' and '{Q}' are both '{Q}' of the model"


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    assert re.fullmatch(
        r"'lm_head.weight' is there twice: in .*a.safetensors and in .*b.safetensors", _refusal(tmp_path)
    )


def _write_one(folder: Path, kind: str) -> Path:
    model = make_llama()
    if kind == "safetensors":
        return write_safetensors(model, folder) / "model.safetensors"
    return write_meta(model, folder) / "consolidated.00.pth" if kind == "pth" else write_gguf(model, folder / "m.gguf")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "gguf"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, kind: str, share: float) -> None:
    path = _write_one(tmp_path, kind)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(FormatError) as refused:
        open_checkpoint(path)
    assert str(path) in str(refused.value)


def _run_command(folder: Path) -> Any:
    """Make an object that writes a file when it is unpickled."""

    class Hostile:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return os.system, (f"touch {folder / 'ran'}",)

    return Hostile()


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import torch

    path = _write_one(tmp_path, "pth")
    torch.save({"output.weight": _run_command(tmp_path)}, path)
    assert _refusal(path).startswith("it holds more than tensors")
    assert not (tmp_path / "ran").exists()


def test_a_view_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    import torch

    path = _write_one(tmp_path, "pth")
    torch.save({"tok_embeddings.weight": torch.zeros(1).expand(1 << 30, 64)}, path)
    assert _refusal(path) == "'tok_embeddings.weight' is no plain tensor"


@pytest.mark.parametrize("content", [[1, 2], {1: 2}, {"norm.weight": "text"}])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    import torch

    path = _write_one(tmp_path, "pth")
    torch.save(content, path)
    assert _refusal(path) in ("it holds no dictionary of names to tensors", "'norm.weight' is no plain tensor")


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    write_meta(make_llama(), tmp_path, ranks=2)
    (tmp_path / "consolidated.00.pth").unlink()
    assert _refusal(tmp_path) == "'consolidated.00.pth' is not there"


def test_ranks_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_meta(make_llama(), tmp_path / "two", ranks=2)
    write_meta(make_llama(), tmp_path / "one")
    (tmp_path / "one" / "consolidated.00.pth").rename(tmp_path / "two" / "consolidated.01.pth")
    assert "do not fit one another" in _refusal(tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "kind"), [("../../etc/passwd", PathError), ("/etc/passwd", PathError), ("absent.safetensors", FormatError)]
)
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str, kind: type[FibError]) -> None:
    write_safetensors(make_llama(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {Q: name}}), encoding="utf-8")
    assert name.split("/", maxsplit=1)[0] in _refusal(tmp_path, kind)


def test_a_config_with_more_layers_than_tensors_is_refused_before_a_model_is_built(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    _edit_config(tmp_path, num_hidden_layers=10**9)
    assert _refusal(tmp_path, ConfigError) == "the config asks for 1000000000 layers, and the files hold 30 tensors"


def test_a_config_of_larger_sizes_is_refused_without_memory(tmp_path: Path) -> None:
    write_safetensors(make_llama(), tmp_path)
    _edit_config(tmp_path, vocab_size=10**9)
    assert "(96, 64)" in _refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "no_such_model"}, "transformers has no model_type 'no_such_model'"),
        ({"hidden_size": "many"}, "transformers refuses the config"),
        ({"model_type": "vit"}, "transformers has no language model class for 'vit'"),
        ({"model_type": "t5"}, "'t5' is an encoder with a decoder, and only models of a decoder alone are run here"),
        ({"num_attention_heads": 0}, "transformers "),
    ],
)
def test_a_config_that_is_no_language_model_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_safetensors(make_llama(), tmp_path)
    _edit_config(tmp_path, **change)
    assert _refusal(tmp_path, ConfigError).startswith(message)


def test_tables_that_only_a_config_asks_for_are_bounded(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "n_positions": 64, "vocab_size": 96}
    write_safetensors(make_model({"model_type": "gptj", **sizes}), tmp_path)
    _edit_config(tmp_path, n_positions=10**12)
    assert _refusal(tmp_path, ConfigError) == "the config asks for 128000000000000 bytes of computed tables"


def _write_metadata(path: Path, **changes: Any) -> Path:
    """Write the file of a tiny Llama anew, with other metadata and tensors."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    for name, value in changes.items():
        key = name.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((96, 64), dtype=np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SIZES = {
    "llama__block_count": 2,
    "llama__embedding_length": 64,
    "llama__feed_forward_length": 192,
    "llama__attention__head_count": 4,
    "llama__context_length": 512,
}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"architecture": "gemma3"}, ConfigError, "the architecture 'gemma3' is not read from GGUF"),
        ({"llama__expert_count": 8}, ConfigError, "llama.expert_used_count is None, and has to be one positive number"),
        ({"split__count": 3}, FormatError, "this is one of 3 parts of a model"),
        ({"llama__block_count": 0}, ConfigError, "llama.block_count is 0, and has to be one positive number"),
        ({"llama__embedding_length": "wide"}, ConfigError, "llama.embedding_length is wide"),
        ({}, ConfigError, "7 rotary factors do not fit heads of 16"),
    ],
)
def test_gguf_metadata_that_cannot_be_meant_is_named(
    tmp_path: Path, changes: dict[str, Any], kind: type[FibError], message: str
) -> None:
    path = _write_metadata(tmp_path / "model.gguf", **SIZES | changes)
    assert _refusal(path, kind).startswith(message)


def test_latent_attention_that_cannot_be_meant_is_named(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    sizes = {name.replace("llama", "deepseek2"): value for name, value in SIZES.items()}
    experts = ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_count")
    latent = {"attention.kv_lora_rank": 32, "rope.dimension_count": 16, "attention.key_length": 16}
    given = {**dict.fromkeys(experts, 2), **latent, "attention.value_length": 16}
    writer = GGUFWriter(tmp_path / "model.gguf", "deepseek2")
    for name, value in {**sizes, **{f"deepseek2.{name}": value for name, value in given.items()}}.items():
        writer.add_uint32(name.replace("__", "."), value)
    writer.add_float32("deepseek2.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", _zeros(96, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert _refusal(tmp_path / "model.gguf", ConfigError) == "keys of 16 are no wider than their rotary part of 16"


def test_a_half_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(make_model(DEEPSEEK), tmp_path / "model.gguf", is_absorbed=True)
    monkeypatch.setattr(gguf_file, "_HALVES", {"self_attn.k_b_proj": "k"})
    assert _refusal(path).startswith("halves of model.layers.0.self_attn.kv_b_proj of shapes ")


def test_gguf_files_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(make_llama(), tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fib-tools\[trace\]'"):
        open_checkpoint(path)


def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    assert _refusal(tmp_path) == "the folder has no safetensors, consolidated.*.pth or GGUF files"
    assert _refusal(tmp_path / "notes.txt") == "'notes.txt' is in no format that is read"
    assert "is not there" in _refusal(tmp_path / "absent", RequestError)


def test_a_model_that_is_not_in_the_cache_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "'some/model' are not in the hub's cache" in _refusal("some/model", OfflineError)
