from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fib_tools.errors import SourceError
from fib_tools.sources._digest import shorten, write_digest
from fib_tools.sources.flashinfer import load_traced_apis
from fib_tools.sources.registry import list_models
from fib_tools.sources.sglang import (
    LinearFact,
    SglangFacts,
    StackedParam,
    load_bundled_sglang,
    load_sglang,
)

LineOf = Callable[[Path, str], int]


@pytest.fixture
def facts(sglang_root: Path, flashinfer_root: Path) -> SglangFacts:
    return load_sglang(sglang_root, flashinfer_root=flashinfer_root)


def sites(root: Path, line_of: LineOf, *places: tuple[str, str]) -> tuple[str, ...]:
    return tuple(f"sglang/{file}:{line_of(root / 'python/sglang' / file, text)}" for file, text in places)


def test_calls_are_found_through_aliases_late_imports_lazy_imports_and_re_exports(
    facts: SglangFacts, sglang_root: Path, line_of: LineOf
) -> None:
    assert facts.find_call_sites("flashinfer.norm.rmsnorm") == sites(
        sglang_root,
        line_of,
        ("srt/late.py", "late.rmsnorm(x)"),
        ("srt/norm.py", "fi_norm(x)"),
        ("srt/user.py", "renamed(1)"),
    )


def test_calls_on_a_wrapper_are_found_wherever_it_was_kept(
    facts: SglangFacts, sglang_root: Path, line_of: LineOf
) -> None:
    assert facts.find_call_sites("flashinfer.decode.BatchDecodeWrapper.run") == sites(
        sglang_root, line_of, ("srt/attention.py", "wrapper.forward(2)"), ("srt/attention.py", "item.run(3)")
    )
    assert facts.find_call_sites("flashinfer.decode.BatchDecodeWrapper.plan") == sites(
        sglang_root, line_of, ("srt/attention.py", "wrapper.begin_forward(1)")
    )


def test_a_function_of_its_modules_name_is_found(facts: SglangFacts, sglang_root: Path, line_of: LineOf) -> None:
    assert facts.find_call_sites("flashinfer.xqa.xqa") == sites(
        sglang_root, line_of, ("srt/attention.py", "flashinfer.xqa(5)")
    )


def test_a_function_that_is_handed_on_counts_as_called(facts: SglangFacts, sglang_root: Path, line_of: LineOf) -> None:
    assert facts.find_call_sites("flashinfer.moe.fused") == sites(
        sglang_root, line_of, ("srt/modules.py", '{"fused": moe.fused}')
    )


def test_the_build_of_a_kernel_in_sgl_kernel_is_kept_apart(
    facts: SglangFacts, sglang_root: Path, line_of: LineOf
) -> None:
    place = sites(sglang_root, line_of, ("srt/norm.py", "silu_and_mul(x)"))
    assert facts.sgl_kernel_sites == {"flashinfer.activation.silu_and_mul": place}
    assert "flashinfer.activation.silu_and_mul" not in facts.call_sites
    assert facts.find_call_sites("flashinfer.activation.silu_and_mul") == place


def test_tests_and_mentions_are_no_calls(facts: SglangFacts) -> None:
    files = {site.rpartition(":")[0] for found in facts.call_sites.values() for site in found}
    assert files == {f"sglang/srt/{name}.py" for name in ("attention", "late", "modules", "norm", "user")}
    assert facts.find_call_sites("flashinfer.norm.untraced") == ()


def test_architectures_lead_to_their_classes(facts: SglangFacts, sglang_root: Path, line_of: LineOf) -> None:
    llama, phi, kimi = sites(
        sglang_root,
        line_of,
        ("srt/models/llama.py", "class LlamaForCausalLM"),
        ("srt/models/llama.py", "class Phi3ForCausalLM"),
        ("srt/models/kimi.py", "class KimiForCausalLM"),
    )
    assert facts.implementations == {"LlamaForCausalLM": llama, "Phi3ForCausalLM": phi, "KimiForCausalLM": kimi}
    assert facts.find_model_implementation(["Unknown", "Phi3ForCausalLM"]) == phi
    assert facts.find_model_implementation(["Unknown"]) is None


def test_linear_layers_are_found_in_the_model_file_and_in_those_it_imports(
    facts: SglangFacts, sglang_root: Path, line_of: LineOf
) -> None:
    llama = sglang_root / "python/sglang/srt/models/llama.py"
    base = sglang_root / "python/sglang/srt/models/base.py"
    attention = {"file": "sglang/srt/models/llama.py", "class_name": "LlamaAttention"}
    qkv, o, head = line_of(llama, "self.qkv_proj"), line_of(llama, "self.o_proj"), line_of(base, "lm_head")
    assert facts.find_linears("LlamaForCausalLM") == (
        LinearFact(**attention, line=qkv, attribute="qkv_proj", linear="QKVParallelLinear"),
        LinearFact(**attention, line=o, attribute="o_proj", linear="ReplicatedLinear"),
        LinearFact(**attention, line=o, attribute="o_proj", linear="RowParallelLinear"),
        LinearFact(
            file="sglang/srt/models/base.py", class_name="Base", line=head, attribute="lm_head", linear="ParallelLMHead"
        ),
    )
    assert facts.find_linears("Unknown") == ()


def test_stacked_parameters_are_found(facts: SglangFacts, sglang_root: Path, line_of: LineOf) -> None:
    llama = sglang_root / "python/sglang/srt/models/llama.py"
    file = "sglang/srt/models/llama.py"
    assert facts.find_stacked("Phi3ForCausalLM") == (
        StackedParam(file=file, line=line_of(llama, ".q_proj"), parameter="qkv_proj", weight="q_proj", shard="q"),
        StackedParam(file=file, line=line_of(llama, "up_proj"), parameter="gate_up_proj", weight="up_proj", shard="1"),
    )


def test_a_second_reading_comes_from_the_cache(
    sglang_root: Path, flashinfer_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_sglang(sglang_root, cache_dir=tmp_path / "cache", flashinfer_root=flashinfer_root)
    monkeypatch.setattr("fib_tools.sources.sglang._scan", None)
    assert load_sglang(sglang_root, cache_dir=tmp_path / "cache", flashinfer_root=flashinfer_root) == first


def test_another_flashinfer_or_a_changed_sglang_is_read_anew(
    sglang_root: Path, flashinfer_root: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    load_sglang(sglang_root, cache_dir=cache, flashinfer_root=flashinfer_root)
    (sglang_root / "python" / "sglang" / "srt" / "modules.py").unlink()
    facts = load_sglang(sglang_root, cache_dir=cache, flashinfer_root=flashinfer_root)
    assert facts.find_call_sites("flashinfer.moe.fused") == ()
    (flashinfer_root / "flashinfer" / "xqa.py").unlink()
    facts = load_sglang(sglang_root, cache_dir=cache, flashinfer_root=flashinfer_root)
    assert facts.find_call_sites("flashinfer.xqa.xqa") == ()


def test_a_folder_without_sglang_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no sglang package here"):
        load_sglang(tmp_path)


def test_a_digest_says_the_same_with_fewer_call_sites(
    sglang_root: Path, flashinfer_root: Path, facts: SglangFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fib_tools.sources._digest.load_sglang", lambda _: facts)
    monkeypatch.setattr("fib_tools.sources._digest._SITES_PER_API", 2)
    write_digest(sglang_root, tmp_path / "digest.json")
    written = SglangFacts.model_validate_json((tmp_path / "digest.json").read_bytes())
    assert written == shorten(facts)
    assert (written.origin, written.version) == ("bundled", "1.2.3")
    assert written.find_call_sites("flashinfer.norm.rmsnorm") == facts.find_call_sites("flashinfer.norm.rmsnorm")[:2]
    assert written.model_files == facts.model_files
    assert json.loads((tmp_path / "digest.json").read_bytes())["flashinfer_version"] == "9.9.9"
    assert load_traced_apis(flashinfer_root).version == "9.9.9"


def test_a_digest_of_an_unknown_version_is_refused(
    sglang_root: Path, facts: SglangFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = facts.model_copy(update={"version": "unknown"})
    monkeypatch.setattr("fib_tools.sources._digest.load_sglang", lambda _: unknown)
    with pytest.raises(SourceError, match="does not say its version"):
        write_digest(sglang_root, tmp_path / "digest.json")
    assert not (tmp_path / "digest.json").exists()


def test_without_sglang_the_bundled_digest_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fib_tools.sources.sglang.find_package", lambda *_: None)
    facts = load_sglang()
    assert facts == load_bundled_sglang()
    assert (facts.version, facts.origin) == ("0.5.23", "bundled")
    assert len(facts.call_sites) == 63
    assert facts.find_call_sites("flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper.run")
    assert facts.find_call_sites("flashinfer.norm.rmsnorm")
    found = facts.find_model_implementation(["DeepseekV3ForCausalLM"])
    assert found is not None
    assert found.startswith("sglang/srt/models/deepseek_v2.py:")
    fused = {(linear.attribute, linear.linear) for linear in facts.find_linears("DeepseekV3ForCausalLM")}
    assert ("fused_qkv_a_proj_with_mqa", "ReplicatedLinear") in fused


def test_the_bundled_digest_serves_most_models_of_the_registry() -> None:
    facts = load_bundled_sglang()
    configs = {entry.slug: entry.config for entry in list_models() if entry.config_file}
    missing = {
        slug
        for slug, config in configs.items()
        if config is not None and facts.find_model_implementation(config.get("architectures") or ()) is None
    }
    assert missing == set()
