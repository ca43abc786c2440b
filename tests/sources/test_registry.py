from __future__ import annotations

import hashlib

import pytest

from fib_tools.errors import UnknownModelError
from fib_tools.sources.config_text import parse_config
from fib_tools.sources.registry import find_model, find_nearest_names, fold_name, get_model, list_models


@pytest.mark.parametrize(
    ("name", "repo_id"),
    [
        ("kimi-k2", "moonshotai/Kimi-K2-Instruct"),
        ("Kimi_K2", "moonshotai/Kimi-K2-Instruct"),
        ("kimi-k2-instruct", "moonshotai/Kimi-K2-Instruct"),
        ("moonshotai/Kimi-K2", "moonshotai/Kimi-K2-Instruct"),
        ("MOONSHOTAI/kimi-k2-instruct", "moonshotai/Kimi-K2-Instruct"),
        ("kimi-k2-thinking", "moonshotai/Kimi-K2-Thinking"),
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("deepseek_v3", "deepseek-ai/DeepSeek-V3"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama31-8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        ("qwen3-30b-moe", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        ("qwen3-30b-moe-fp8", "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8"),
        ("llama-3.1-70b-fp8", "RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8"),
        ("gpt-oss-120b", "openai/gpt-oss-120b"),
        ("glm-4.5", "zai-org/GLM-4.5"),
        ("glm45", "zai-org/GLM-4.5"),
        ("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct"),
        ("Qwen/Qwen3-VL-4B-Thinking", "Qwen/Qwen3-VL-4B-Thinking"),
    ],
)
def test_a_model_is_found_by_any_way_to_write_its_name(name: str, repo_id: str) -> None:
    assert get_model(name).repo_id == repo_id


def test_a_strangers_copy_of_a_model_is_another_model() -> None:
    assert find_model("someone/kimi-k2") is None


def test_an_unknown_name_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownModelError, match="deepseek-v3") as caught:
        get_model("deepsek-v3")
    assert caught.value.nearest[0] == "deepseek-v3"


def test_a_name_like_no_other_has_no_nearest_names() -> None:
    assert find_nearest_names("0000") == ()


def test_every_slug_repository_and_alias_leads_to_its_own_model() -> None:
    for entry in list_models():
        for name in (entry.slug, entry.repo_id, *entry.aliases):
            assert find_model(name) == entry, name


def test_no_two_models_share_a_name() -> None:
    names = [fold_name(name) for entry in list_models() for name in {entry.slug, entry.repo_id}]
    assert len(names) == len(set(names))


def test_every_sibling_is_written_as_a_repository() -> None:
    assert all(sibling.count("/") == 1 for entry in list_models() for sibling in entry.siblings)


def test_every_bundled_config_has_the_bytes_its_provenance_names() -> None:
    bundled = [entry for entry in list_models() if entry.config_file is not None]
    assert len(bundled) == 48
    for entry in bundled:
        assert entry.provenance is not None
        assert entry.config_bytes is not None
        assert hashlib.sha256(entry.config_bytes).hexdigest() == entry.provenance.sha256, entry.slug
        assert "@" in entry.provenance.found_at


def test_every_bundled_config_passes_the_check_for_configs_from_outside() -> None:
    for entry in list_models():
        if entry.config_bytes is not None:
            assert parse_config(entry.config_bytes, where=entry.slug) == entry.config


def test_a_model_known_by_name_only_has_no_config() -> None:
    entry = get_model("Kimi-K2-Thinking")
    assert entry.config is None
    assert entry.provenance is None


def test_a_caller_that_changes_a_config_changes_its_own_copy() -> None:
    config = get_model("llama-3.1-8b").config
    assert config is not None
    config["hidden_size"] = 0
    assert get_model("llama-3.1-8b").config != config
