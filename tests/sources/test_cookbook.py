from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.errors import DocumentTooLargeError, FormatError, SourceError
from fib_tools.sources.cookbook import (
    Cookbook,
    ServingConfig,
    default_serving_config,
    find_serving_configs,
    load_bundled_cookbook,
    load_cookbook,
)
from fib_tools.sources.registry import find_model

KIMI = """\
vendor: moonshotai
families:
  - name: Kimi-K2
    description: Mixture of experts
    models:
      - name: Kimi-K2-Instruct
        model_path: moonshotai/Kimi-K2-Instruct
        attributes:
          llm: {thinking_capability: none, tool_parser: kimi_k2}
        hardware:
          H200:
            configurations:
              - name: default
                attributes: {nodes: multi, optimization: balanced, quantization: fp8}
                quantized_model_path: moonshotai/Kimi-K2-FP8
                engine:
                  env_vars: {}
                  tp: 16
                  dp: 4
                  ep:
                  enable_dp_attention: true
                  extra_args:
                    - --page-size 64
                    - --kv-cache-dtype=fp8_e4m3
                    - --attention-backend
                    - trtllm_mla
                    - --speculative-algo EAGLE
                    - --speculative-num-steps 3
                    - --trust-remote-code
              - name: apart
                prefill: {tp: 8}
                decode: {tp: 32, ep: 32}
          MI300X:
            configurations:
              - name: default
                engine: {tp: 8}
"""


def write_cookbook(folder: Path, text: str, *, version: str = "v0.5.10", name: str = "kimi.yaml") -> Path:
    path = folder / "data" / "models" / "generated" / version / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_clones_configuration_is_read_whole(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI)
    cookbook = load_cookbook(tmp_path)
    assert cookbook.findings == ()
    assert cookbook.models() == ("moonshotai/Kimi-K2-Instruct",)
    assert cookbook.configs[0] == ServingConfig(
        model="Kimi-K2-Instruct",
        repo_id="moonshotai/Kimi-K2-Instruct",
        quantized_repo_id="moonshotai/Kimi-K2-FP8",
        hardware="H200",
        tp=16,
        ep=1,
        dp=4,
        enable_dp_attention=True,
        quantization="fp8",
        page_size=64,
        kv_cache_dtype="fp8_e4m3",
        attention_backend="trtllm_mla",
        speculative={"algorithm": "EAGLE", "num-steps": "3"},
        extra_args=(
            *("--page-size", "64", "--kv-cache-dtype=fp8_e4m3", "--attention-backend", "trtllm_mla"),
            *("--speculative-algo", "EAGLE", "--speculative-num-steps", "3", "--trust-remote-code"),
        ),
        config_name="default",
        nodes="multi",
        optimization="balanced",
        sglang_version="v0.5.10",
        vendor="moonshotai",
        source="data/models/generated/v0.5.10/kimi.yaml",
    )


def test_prefill_and_decode_that_run_apart_are_two_configurations(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI)
    apart = [config for config in load_cookbook(tmp_path).configs if config.config_name == "apart"]
    assert [(config.phase, config.tp, config.ep) for config in apart] == [("prefill", 8, 1), ("decode", 32, 32)]


def test_only_nvidia_hardware_is_offered_unless_asked(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI)
    cookbook = load_cookbook(tmp_path)
    assert {config.hardware for config in find_serving_configs("kimi-k2", cookbook=cookbook)} == {"H200"}
    everything = find_serving_configs("kimi-k2", nvidia_only=False, cookbook=cookbook)
    assert {config.hardware for config in everything} == {"H200", "MI300X"}
    assert len(find_serving_configs("kimi-k2", hardware="h200", cookbook=cookbook)) == 3
    assert find_serving_configs("kimi-k2", hardware="B200", cookbook=cookbook) == ()


def test_the_newest_sglang_version_of_a_model_counts(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI.replace("tp: 16", "tp: 2"), version="v0.5.9")
    write_cookbook(tmp_path, KIMI, version="v0.5.10")
    found = find_serving_configs("kimi-k2", cookbook=load_cookbook(tmp_path))
    assert {config.sglang_version for config in found} == {"v0.5.10"}


def test_a_field_nobody_knows_here_is_a_finding(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI.replace("env_vars: {}", "warp_factor: 9"))
    cookbook = load_cookbook(tmp_path)
    assert len(cookbook.configs) == 4
    assert [finding.check for finding in cookbook.findings] == ["cookbook.unknown_field"]
    assert "warp_factor" in cookbook.findings[0].message


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("vendor: moonshotai", "vendor: [", 2, "not YAML"),
        ("tp: 16", "tp: sixteen", 18, "tp: Input should be a valid integer"),
        ("tp: 16", "tp: 0", 18, "greater than or equal to 1"),
        ("tp: 16", "tp: 99999999999999999999", 18, "less than or equal to 4096"),
        ("model_path: moonshotai/Kimi-K2-Instruct", "path: x", 6, "model_path: Field required"),
        ("attributes: {nodes: multi, optimization: balanced, quantization: fp8}", "attributes: *x", 15, "aliases"),
        ("env_vars: {}", "env_vars: !!python/object/apply:os.system [ls]", 18, "not YAML"),
        ("env_vars: {}", "env_vars: " + "[" * 40 + "]" * 40, 18, "nested deeper"),
        ("env_vars: {}", "env_vars: " + "[" * 100_000, 18, "nested deeper"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    path = write_cookbook(tmp_path, KIMI.replace(old, new, 1))
    with pytest.raises(FormatError, match=message) as caught:
        load_cookbook(tmp_path)
    assert caught.value.where is not None
    found = caught.value.where.removeprefix(f"{path}:")
    assert abs(int(found) - line) <= 1


def test_a_bomb_of_aliases_is_refused(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(9)]
    write_cookbook(tmp_path, "\n".join(levels))
    with pytest.raises(FormatError, match="aliases are not read"):
        load_cookbook(tmp_path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI + "#" * (2 << 20))
    with pytest.raises(DocumentTooLargeError):
        load_cookbook(tmp_path)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b\n", "vendor: x\nfamilies: 3\n", "\0"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    write_cookbook(tmp_path, text)
    with pytest.raises(FormatError):
        load_cookbook(tmp_path)


def test_a_folder_that_is_no_cookbook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="clone of sgl-cookbook"):
        load_cookbook(tmp_path)


def test_a_link_is_no_file_of_the_cookbook(tmp_path: Path) -> None:
    path = write_cookbook(tmp_path, KIMI)
    path.with_name("other.yaml").symlink_to(path)
    assert len(load_cookbook(tmp_path).configs) == 4


def test_the_bundled_cookbook_knows_how_kimi_k2_is_served() -> None:
    found = find_serving_configs("kimi-k2")
    assert {(config.tp, config.ep, config.dp) for config in found} == {(8, 1, None), (8, 4, None), (8, 1, 4)}
    assert all(config.source.startswith("sgl-cookbook@7b5bd9c") for config in found)
    assert all(config.is_nvidia for config in found)


def test_the_bundled_cookbook_is_whole() -> None:
    cookbook = load_bundled_cookbook()
    assert len(cookbook.configs) == 538
    assert sum(config.enable_dp_attention for config in cookbook.configs) == 48
    assert sum(bool(config.kv_cache_dtype) for config in cookbook.configs) == 50
    assert {config.hardware for config in cookbook.configs if not config.is_nvidia} == {
        *("MI300X", "MI325X", "MI350X", "MI355X"),
    }


def test_the_registry_knows_every_language_model_of_the_bundled_cookbook() -> None:
    cookbook = load_bundled_cookbook()
    models = {config.repo_id for config in cookbook.configs if config.kind == "llm"}
    assert {name for name in models if find_model(name) is None} == set()


def test_a_model_without_an_entry_is_served_as_its_sibling() -> None:
    assert {config.repo_id for config in find_serving_configs("deepseek-v3")} == {"deepseek-ai/DeepSeek-R1-0528"}


def test_a_model_without_entry_and_siblings_has_no_configuration_but_the_default() -> None:
    assert find_serving_configs("llama-3.1-8b") == ()
    default = default_serving_config("llama-3.1-8b")
    assert (default.tp, default.ep, default.dp, default.source) == (1, 1, None, "default")
    assert default.repo_id == "meta-llama/Llama-3.1-8B-Instruct"
    assert default_serving_config("acme/x").repo_id == "acme/x"


def test_a_model_the_registry_does_not_know_is_found_by_its_repository(tmp_path: Path) -> None:
    write_cookbook(tmp_path, KIMI.replace("Kimi-K2-Instruct", "Kimi-K9"))
    cookbook: Cookbook = load_cookbook(tmp_path)
    assert len(find_serving_configs("moonshotai/kimi-k9", cookbook=cookbook)) == 3
    assert len(find_serving_configs("kimi-k9", cookbook=cookbook)) == 3
    assert find_serving_configs("else/kimi-k9", cookbook=cookbook) == ()
