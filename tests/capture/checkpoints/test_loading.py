from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fib_tools.capture.checkpoints.loading import load_model
from fib_tools.capture.checkpoints.opening import open_checkpoint
from fib_tools.errors import RequestError
from tiny_checkpoints import (
    DEEPSEEK,
    DEEPSEEK_V2,
    LLAMA,
    LLAMA3_ROPE,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    WIDE,
    logits,
    make_llama,
    make_model,
    write_gguf,
    write_meta,
    write_safetensors,
)


def _write(model: Any, folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    if kind == "safetensors":
        return write_safetensors(model, folder)
    return write_meta(model, folder) if kind == "pth" else write_gguf(model, folder / "model.gguf", "F16")


FORMATS = ("safetensors", "pth", "gguf")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_a_llama_answers_the_same_from_every_format(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = make_llama(**changes)
    checkpoint = open_checkpoint(_write(model, tmp_path, kind))
    loaded = load_model(checkpoint, dtype="float32")
    assert checkpoint.format == kind
    assert checkpoint.config.num_hidden_layers == LLAMA["num_hidden_layers"]
    assert logits(loaded).equal(logits(model))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_scaled_rotary_waves_are_those_of_the_config(tmp_path: Path, kind: str) -> None:
    model = make_llama(rope_parameters=LLAMA3_ROPE)
    loaded = load_model(open_checkpoint(_write(model, tmp_path, kind)), dtype="float32")
    assert logits(loaded).equal(logits(model))


def test_scaled_rotary_waves_are_read_from_gguf_as_factors(tmp_path: Path) -> None:
    import torch

    model = make_llama(rope_parameters=LLAMA3_ROPE)
    loaded = load_model(open_checkpoint(_write(model, tmp_path, "gguf")), dtype="float32")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    plain = make_llama(rope_parameters={**LLAMA3_ROPE, "rope_type": "default"})
    assert (logits(plain) - logits(model)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("kind", "weights", "answers"), [("Q8_0", 0.006, 0.05), ("Q6_K", 0.02, 0.2), ("Q4_K", 0.08, 0.6)]
)
def test_quantised_weights_are_wrong_by_their_rounding_only(
    tmp_path: Path, kind: str, weights: float, answers: float
) -> None:
    model = make_llama(**WIDE)
    loaded = load_model(open_checkpoint(write_gguf(model, tmp_path / "model.gguf", kind)), dtype="float32")
    true = model.state_dict()
    errors = {name: (value - true[name]).norm() / true[name].norm() for name, value in loaded.state_dict().items()}
    matrices = [error for name, error in errors.items() if "norm" not in name]
    assert all(weights / 4 < error < weights for error in matrices)
    assert (logits(loaded) - logits(model)).norm() < answers * logits(model).norm()


@pytest.mark.parametrize("fields", [QWEN3_MOE, DEEPSEEK], ids=lambda fields: fields["model_type"])
def test_experts_that_are_released_one_by_one_are_stacked(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = make_model(fields)
    checkpoint = open_checkpoint(write_safetensors(model, tmp_path))
    assert any(".experts.3.gate_proj.weight" in name for name in checkpoint.tensors)
    assert logits(load_model(checkpoint, dtype="float32")).equal(logits(model))


MAMBA = {
    "model_type": "mamba2",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "num_heads": 8,
    "head_dim": 16,
    "state_size": 16,
    "n_groups": 2,
}


@pytest.mark.parametrize(
    "fields",
    [
        {**LLAMA, "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16},
        {**LLAMA, "model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 4, "intermediate_size": 32},
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 96},
        MAMBA,
    ],
    ids=lambda fields: fields["model_type"],
)
def test_other_models_are_loaded_from_safetensors(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = make_model(fields)
    checkpoint = open_checkpoint(write_safetensors(model, tmp_path))
    assert logits(load_model(checkpoint, dtype="float32")).equal(logits(model))
    assert load_model(checkpoint, layers=1).config.num_hidden_layers == 1


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("fields", [QWEN2_MOE, QWEN3_MOE, MIXTRAL], ids=lambda fields: fields["model_type"])
def test_stacked_experts_of_gguf_are_the_same(tmp_path: Path, fields: dict[str, Any], kind: str) -> None:
    model = make_model(fields)
    loaded = load_model(open_checkpoint(write_gguf(model, tmp_path / "model.gguf", kind)), dtype="float32")
    assert logits(loaded).equal(logits(model))


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 1024,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}


@pytest.mark.parametrize("is_absorbed", [False, True], ids=["whole", "absorbed"])
@pytest.mark.parametrize(
    "fields",
    [DEEPSEEK_V2, DEEPSEEK, {**DEEPSEEK, "rope_parameters": YARN}, {**DEEPSEEK_V2, "rope_parameters": YARN}],
    ids=["v2", "v3", "v3-yarn", "v2-yarn"],
)
def test_latent_attention_of_gguf_is_the_same(tmp_path: Path, fields: dict[str, Any], *, is_absorbed: bool) -> None:
    model = make_model(fields)
    path = write_gguf(model, tmp_path / "model.gguf", is_absorbed=is_absorbed)
    loaded = load_model(open_checkpoint(path), dtype="float32")
    assert logits(loaded).equal(logits(model))


def test_a_matrix_of_one_row_may_be_a_vector_in_gguf(tmp_path: Path) -> None:
    model = make_model(QWEN2_MOE)
    loaded = load_model(open_checkpoint(write_gguf(model, tmp_path / "model.gguf", is_flat=True)), dtype="float32")
    assert logits(loaded).equal(logits(model))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_is_the_beginning_of_the_whole(tmp_path: Path, kind: str) -> None:
    import torch

    checkpoint = open_checkpoint(_write(make_llama(), tmp_path, kind))
    whole, cut = load_model(checkpoint, dtype="float32"), load_model(checkpoint, layers=1, dtype="float32")
    ids = torch.arange(3, 20)[None]
    inside = whole(input_ids=ids, output_hidden_states=True).hidden_states
    seen: list[torch.Tensor] = []
    cut.model.layers[0].register_forward_hook(lambda *call: seen.append(call[2]))
    cut(input_ids=ids)
    assert len(cut.model.layers) == 1
    assert seen[0].equal(inside[1])
    assert all(value.equal(whole.state_dict()[name]) for name, value in cut.state_dict().items())


def test_a_cut_of_mixed_layers_keeps_their_kinds(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(make_model(DEEPSEEK), tmp_path))
    cut = load_model(checkpoint, layers=2, dtype="float32")
    assert [type(layer.mlp).__name__ for layer in cut.model.layers] == ["DeepseekV3MLP", "DeepseekV3MoE"]


def test_layers_beyond_the_cut_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fib_tools.capture.checkpoints.stored import StoredTensor

    read = StoredTensor.read
    names: list[str] = []

    def note(stored: StoredTensor, dtype: Any) -> Any:
        names.append(stored.name)
        return read(stored, dtype)

    monkeypatch.setattr(StoredTensor, "read", note)
    checkpoint = open_checkpoint(write_safetensors(make_llama(), tmp_path))
    load_model(checkpoint, layers=1)
    assert len(names) == len(set(names)) == 12
    assert not any("layers.1." in name or "layers.2." in name for name in names)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dim", [0, 1], ids=["llama3", "llama2"])
def test_shards_of_model_parallel_ranks_are_joined(tmp_path: Path, ranks: int, dim: int) -> None:
    model = make_llama()
    loaded = load_model(open_checkpoint(write_meta(model, tmp_path, ranks=ranks, embedding_dim=dim)), dtype="float32")
    assert logits(loaded).equal(logits(model))


def test_sharded_safetensors_are_one_checkpoint(tmp_path: Path) -> None:
    model = make_llama()
    checkpoint = open_checkpoint(write_safetensors(model, tmp_path, shard="100KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert checkpoint.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert logits(load_model(checkpoint, dtype="float32")).equal(logits(model))


def test_weights_are_of_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    import torch

    checkpoint = open_checkpoint(write_safetensors(make_model(DEEPSEEK), tmp_path))
    kinds = {name: value.dtype for name, value in load_model(checkpoint, dtype=torch.bfloat16).state_dict().items()}
    odd = {name for name, kind in kinds.items() if kind != torch.bfloat16}
    assert odd == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)}


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_more_layers_than_there_are_cannot_be_had(tmp_path: Path, layers: int) -> None:
    checkpoint = open_checkpoint(write_safetensors(make_llama(), tmp_path))
    with pytest.raises(RequestError, match=f"the model has 3 layers, not {layers}; take --layers 1 to 3"):
        load_model(checkpoint, layers=layers)


def test_weights_of_integers_cannot_be_had(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(make_llama(), tmp_path))
    with pytest.raises(RequestError, match="'int8'"):
        load_model(checkpoint, dtype="int8")
