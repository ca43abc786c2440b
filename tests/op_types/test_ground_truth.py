from __future__ import annotations

import ast
import importlib
import inspect
import sys
import types
from typing import Any

import pytest
import torch

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.base import KernelType
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type, list_kernel_types

HOPPER = 90
HEADS = {"num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64}
LATENT = {"num_qo_heads": 4, "head_dim_ckv": 512, "head_dim_kpe": 64, "sm_scale": 0.1}
EXPERTS = {"num_experts": 16, "top_k": 4, "num_local_experts": 8, "hidden_size": 256, "intermediate_size": 128}
DS = {"routing": "ds", "n_group": 4, "topk_group": 2}
DELTA = {"num_q_heads": 2, "num_v_heads": 4, "head_size": 128}

EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("rmsnorm", {"hidden_size": 64}),
    ("gemma_rmsnorm", {"hidden_size": 64}),
    ("fused_add_rmsnorm", {"hidden_size": 64}),
    ("gemma_fused_add_rmsnorm", {"hidden_size": 64}),
    ("rmsnorm_noweight", {"hidden_size": 64}),
    ("layernorm", {"hidden_size": 64}),
    ("layernorm", {"hidden_size": 64, "bias": False}),
    ("silu_and_mul", {"intermediate_size": 32}),
    ("gelu_and_mul", {"intermediate_size": 32}),
    ("gelu_tanh_and_mul", {"intermediate_size": 32}),
    ("rope_with_cos_sin_cache", {"head_dim": 64, "rotary_dim": 64}),
    ("merge_state", {"num_heads": 4, "head_dim": 64}),
    ("gqa_paged_decode", {**HEADS, "page_size": 1}),
    ("gqa_paged_decode", {**HEADS, "page_size": 16, "kv_dtype": "float8_e4m3fn", "window_left": 7}),
    ("gqa_paged_prefill", {**HEADS, "page_size": 1}),
    ("gqa_paged_prefill", {**HEADS, "page_size": 16, "causal": False, "logits_soft_cap": 30.0}),
    ("gqa_ragged_prefill", HEADS),
    ("mla_ragged_prefill", {"num_qo_heads": 4}),
    ("mla_paged_decode", {**LATENT, "page_size": 1}),
    ("mla_paged_decode", {**LATENT, "page_size": 64, "kv_dtype": "float8_e4m3fn"}),
    ("mla_paged_prefill", {**LATENT, "page_size": 64}),
    ("append_paged_kv_cache", {"num_kv_heads": 2, "head_dim": 64, "page_size": 16}),
    ("append_paged_mla_kv_cache", {"page_size": 1}),
    ("gemm_fp8_block", {"n": 256, "k": 256}),
    ("gemm_fp8_tensor", {"n": 32, "k": 64}),
    ("moe_routing", {"num_experts": 16, "top_k": 4, **DS}),
    ("moe_routing", {"num_experts": 16, "top_k": 4, "routing": "renormalize"}),
    ("moe_bf16", {**EXPERTS, "routing": "renormalize"}),
    ("top_k_sampling_from_probs", {"vocab_size": 128}),
    ("top_p_sampling_from_probs", {"vocab_size": 128}),
    ("top_k_top_p_sampling_from_probs", {"vocab_size": 128}),
    ("top_k_top_p_sampling_from_probs", {"vocab_size": 128, "filter_apply_order": "joint"}),
    ("min_p_sampling_from_probs", {"vocab_size": 128}),
    ("top_k_renorm_probs", {"vocab_size": 128}),
    ("top_p_renorm_probs", {"vocab_size": 128}),
    ("softmax_sampling", {"vocab_size": 128}),
    ("chain_speculative_sampling", {"vocab_size": 128}),
    ("gdn_decode", DELTA),
    ("gdn_prefill", DELTA),
    ("gdn_mtp", {**DELTA, "use_qk_l2norm": False}),
    ("kda_decode", {"num_heads": 2, "head_dim": 128}),
    ("mamba_ssu_decode", {"num_heads": 4, "head_dim": 64, "d_state": 128, "num_groups": 2}),
    ("mhc_pre_big_fuse", {"hidden_size": 32}),
    ("mhc_post", {"hidden_size": 32}),
    ("hash_topk", {"num_routed_experts": 16, "topk": 4, "vocab": 50}),
    ("gemm_nvfp4", {"n": 64, "k": 64}),
    ("nvfp4_quantize", {"hidden_size": 256}),
    ("mxfp8_quantize", {"hidden_size": 256}),
]
OF_SGLANG: list[tuple[str, dict[str, Any]]] = [
    ("moe_fp8_block_scale", {**EXPERTS, **DS}),
    ("moe_bf16", {**EXPERTS, "routing": "given"}),
    ("moe_routing", {"num_experts": 16, "top_k": 4, "routing": "sigmoid_bias"}),
    ("fp8_quantize_1x128", {"hidden_size": 256}),
    ("fp8_quantize_tensor", {"hidden_size": 256}),
    ("gemm_fp8_channel", {"n": 32, "k": 64}),
    ("rmsnorm_gated", {"hidden_size": 64}),
    ("relu2", {"intermediate_size": 32}),
    ("swiglu_oai", {"intermediate_size": 32}),
]
OF_TORCH: list[tuple[str, dict[str, Any]]] = [
    ("gemm", {"n": 32, "k": 64}),
    ("gemm", {"n": 32, "k": 64, "bias": True}),
    ("bmm", {"b": 2, "n": 32, "k": 64}),
    ("embedding", {"vocab_size": 100, "hidden_size": 16}),
    ("silu", {"intermediate_size": 32}),
    ("gelu", {"intermediate_size": 32}),
    ("gelu_tanh", {"intermediate_size": 32}),
    ("softmax", {"dim": 32}),
    ("topk", {"dim": 32, "k": 4}),
]

each = pytest.mark.parametrize(("kernel_id", "parameters"), [*EXAMPLES, *OF_SGLANG, *OF_TORCH])


def _truth(kernel_id: str, parameters: dict[str, Any]) -> tuple[KernelType[Any], GroundTruth]:
    kernel = get_kernel_type(kernel_id)
    return kernel, kernel.find_ground_truth(parameters)


@each
def test_a_wrapper_takes_the_inputs_of_its_definition_in_order(kernel_id: str, parameters: dict[str, Any]) -> None:
    kernel, truth = _truth(kernel_id, parameters)
    assert truth.wrappers
    for wrapper in truth.wrappers:
        tree = ast.parse(wrapper.source)
        run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
        assert [argument.arg for argument in run.args.args] == list(kernel.build(parameters).inputs)


@each
def test_a_wrapper_uses_the_kernel_that_it_names_and_never_the_reference(
    kernel_id: str, parameters: dict[str, Any]
) -> None:
    kernel, truth = _truth(kernel_id, parameters)
    reference = kernel.build(parameters).reference
    for wrapper in truth.wrappers:
        roots = {line.split()[1].partition(".")[0] for line in wrapper.imports}
        assert roots <= {"flashinfer", "sglang", "sgl_kernel", "triton"}
        assert wrapper.kind == "torch" or roots
        assert wrapper.body.strip() not in reference
        compile(f"import torch\n{wrapper.function('kernel')}", "wrapper", "exec")


@each
def test_every_output_has_a_tolerance_that_says_where_it_comes_from(kernel_id: str, parameters: dict[str, Any]) -> None:
    kernel, _ = _truth(kernel_id, parameters)
    for name, spec in kernel.build(parameters).outputs.items():
        tolerance = kernel.find_tolerance(name, spec.dtype)
        assert tolerance.source
        assert 0 <= tolerance.rtol < 0.1
        assert 0.99 <= tolerance.hit_ratio <= 1
        assert bool(tolerance.rtol) or tolerance.how != "values" or tolerance.atol == 0


@pytest.mark.parametrize("kernel", list_kernel_types(), ids=lambda kernel: str(kernel.id))
def test_a_kernel_type_without_ground_truth_gives_a_reason(kernel: KernelType[Any]) -> None:
    known = dict([*EXAMPLES, *OF_SGLANG, *OF_TORCH])
    if kernel.ground_truth is None:
        assert kernel.find_ground_truth({}).reason
    elif kernel.id not in known:
        assert kernel.id in WITHOUT


WITHOUT = {
    "moe_nvfp4",
    "moe_mxfp4",
    "moe_w4a16",
    "moe_fp8_tensor",
    "kda_prefill",
    "dsa_sparse_attention",
    "dsv4_window_attention",
    "dsv4_compressed_attention",
}
"""Kernel types for which the reason why FlashInfer's kernel is not called is all there is."""


@pytest.mark.parametrize("kernel_id", ["nvfp4_quantize", "mxfp8_quantize"])
def test_a_kernel_of_blackwell_says_so(kernel_id: str) -> None:
    truth = get_kernel_type(kernel_id).find_ground_truth({"hidden_size": 256})
    assert truth.find(HOPPER) is None
    assert "Blackwell" in truth.reason


def test_fp8_latents_run_on_hopper_alone() -> None:
    _, truth = _truth("mla_paged_decode", {**LATENT, "page_size": 1, "kv_dtype": "float8_e4m3fn"})
    assert truth.find(HOPPER) is not None
    assert truth.find(100) is None


def test_flashinfer_merges_as_many_heads_as_a_block_has_threads_for() -> None:
    kernel, fits = _truth("merge_state", {"num_heads": 64, "head_dim": 128})
    _, too_many = _truth("merge_state", {"num_heads": 128, "head_dim": 128})
    assert [wrapper.kind for wrapper in fits.wrappers] == ["flashinfer", "sglang"]
    assert [wrapper.kind for wrapper in too_many.wrappers] == ["sglang"]
    assert "threads" in too_many.reason
    assert kernel.find_fi_api({"num_heads": 64, "head_dim": 128}) is not None
    assert kernel.find_fi_api({"num_heads": 128, "head_dim": 128}) is None


def test_sglang_merges_states_with_natural_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, truth = _truth("merge_state", {"num_heads": 4, "head_dim": 64})
    definition = kernel.build({"num_heads": 4, "head_dim": 64})
    inputs = list(generate_inputs(definition, choose_axes(definition)).values())
    compiled: Any = types.ModuleType("sgl_kernel")
    compiled.merge_state_v2 = _merge_natural
    monkeypatch.setitem(sys.modules, "sgl_kernel", compiled)
    want = _load(definition.reference)(*inputs)
    for ours, value in zip(_load(truth.wrappers[1].source)(*inputs), want, strict=True):
        torch.testing.assert_close(ours, value)


def _merge_natural(
    v_a: torch.Tensor, s_a: torch.Tensor, v_b: torch.Tensor, s_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    merged = torch.logaddexp(s_a, s_b)
    parts = [v.float() * torch.exp(s - merged)[..., None] for v, s in ((v_a, s_a), (v_b, s_b))]
    return (parts[0] + parts[1]).to(v_a.dtype), merged


@pytest.mark.parametrize(("groups", "top_k", "api"), [(1, 1, "fused_topk_deepseek"), (1, 8, "moe_fused_gate")])
def test_flashinfer_refuses_one_group_with_several_experts(groups: int, top_k: int, api: str) -> None:
    parameters = {"num_experts": 384, "top_k": top_k, "routing": "ds", "n_group": groups}
    kernel, truth = _truth("moe_routing", parameters)
    assert [wrapper.api.rpartition(".")[2] for wrapper in truth.wrappers] == [api]
    assert (kernel.find_fi_api(parameters) is None) == (api == "moe_fused_gate")


def test_each_gpu_gets_the_best_kernel_that_it_has() -> None:
    _, truth = _truth("gemm_fp8_block", {"n": 256, "k": 256})
    chosen = {capability: truth.find(capability) for capability in (80, 90, 100)}
    assert chosen[80] is None
    assert chosen[90] is not None
    assert chosen[90].api.endswith("fp8_blockscale_gemm_sm90")
    assert chosen[100] is not None
    assert chosen[100].api.endswith("gemm_fp8_nt_groupwise")


@pytest.mark.filterwarnings("ignore")  # flashinfer's imports warn about one another
@pytest.mark.parametrize(
    ("kernel_id", "parameters"),
    [(kernel_id, parameters) for kernel_id, parameters in EXAMPLES if kernel_id.startswith(("gqa", "mla"))],
)
def test_a_planned_kernel_takes_what_setup_made(
    kernel_id: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, truth = _truth(kernel_id, parameters)
    definition = kernel.build(parameters)
    inputs = list(generate_inputs(definition, choose_axes(definition)).values())
    wrapper = truth.wrappers[0]
    assert wrapper.has_setup
    calls = _watch(wrapper, monkeypatch)
    namespace: dict[str, Any] = {}
    exec(compile(wrapper.source, "source", "exec"), namespace)  # noqa: S102  # our own source
    state = namespace["setup"](*inputs)
    assert calls == ["__init__", "plan"]
    namespace["run"](*inputs, state=state)
    assert calls == ["__init__", "plan", "run"]
    namespace["run"](*inputs)
    assert calls[3:] == ["__init__", "plan", "run"]
    assert len(namespace["WORKSPACES"]) == 1


@pytest.mark.parametrize(
    ("lengths", "backend"), [((5, 3), "auto"), ((8, 0), "fa2")], ids=["keys for all", "none for one"]
)
def test_prefill_leaves_fa3_alone_where_a_sequence_has_no_keys(
    lengths: tuple[int, int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, truth = _truth("gqa_paged_prefill", {**HEADS, "page_size": 1, "causal": False})
    definition = kernel.build({**HEADS, "page_size": 1, "causal": False})
    inputs = generate_inputs(definition, choose_axes(definition, {"len_indptr": 3, "num_kv_indices": 8}))
    inputs["kv_indptr"] = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
    asked = []

    class Planned:
        def __init__(self, _workspace: torch.Tensor, **options: Any) -> None:
            asked.append(options["backend"])

        def plan(self, *_: Any, **__: Any) -> None:
            pass

    package: Any = types.ModuleType("flashinfer")
    package.BatchPrefillWithPagedKVCacheWrapper = Planned
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    namespace: dict[str, Any] = {}
    exec(compile(truth.wrappers[0].source, "source", "exec"), namespace)  # noqa: S102  # our own source
    namespace["setup"](*inputs.values())
    assert asked == [backend]


@pytest.mark.parametrize(("kernel_id", "parameters"), OF_TORCH)
def test_torch_agrees_with_the_reference(kernel_id: str, parameters: dict[str, Any]) -> None:
    kernel, truth = _truth(kernel_id, parameters)
    definition = kernel.build(parameters)
    inputs = generate_inputs(definition, choose_axes(definition)).values()
    got, want = (_load(source)(*inputs) for source in (truth.wrappers[0].source, definition.reference))
    for have, must in zip(*(each if isinstance(each, tuple) else (each,) for each in (got, want)), strict=True):
        torch.testing.assert_close(have.float(), must.float(), rtol=2**-6, atol=2**-6)


def _load(source: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(source, "source", "exec"), namespace)  # noqa: S102  # our own source
    return namespace["run"]


@pytest.mark.filterwarnings("ignore")  # flashinfer's imports warn about one another
@pytest.mark.parametrize(("kernel_id", "parameters"), EXAMPLES)
def test_every_call_fits_flashinfers_signature(
    kernel_id: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, truth = _truth(kernel_id, parameters)
    definition = kernel.build(parameters)
    inputs = generate_inputs(definition, choose_axes(definition)).values()
    for wrapper in (wrapper for wrapper in truth.wrappers if wrapper.kind == "flashinfer"):
        calls = _watch(wrapper, monkeypatch)
        _load(wrapper.source)(*inputs)
        assert calls


@pytest.mark.filterwarnings("ignore")  # flashinfer's imports warn about one another
def test_flashinfers_experts_are_called_as_the_definition_describes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, truth = _truth("moe_fp8_block_scale", {**EXPERTS, **DS})
    definition = kernel.build({**EXPERTS, **DS})
    assert [wrapper.kind for wrapper in truth.wrappers] == ["flashinfer", "sglang"]
    assert truth.find(HOPPER) is truth.wrappers[1]
    assert truth.find(100) is truth.wrappers[0]
    calls = _watch(truth.wrappers[0], monkeypatch)
    _load(truth.wrappers[0].source)(*generate_inputs(definition, choose_axes(definition)).values())
    assert calls == ["trtllm_fp8_block_scale_moe"]
    _, bare = _truth("moe_fp8_block_scale", {**EXPERTS, "routing": "sqrtsoftplus_bias"})
    assert [wrapper.kind for wrapper in bare.wrappers] == ["sglang"]


@pytest.mark.parametrize(
    ("kernel_id", "parameters", "word"),
    [
        ("gdn_decode", {**DELTA, "head_size": 64}, "128"),
        ("gdn_prefill", {**DELTA, "dtype": "float16"}, "bfloat16"),
        ("kda_decode", {"num_heads": 2, "head_dim": 96}, "96"),
        ("kda_decode", {"num_heads": 2, "head_dim": 128, "state_dtype": "float32"}, "bfloat16"),
        ("mamba_ssu_decode", {"num_heads": 6, "head_dim": 64, "d_state": 128, "num_groups": 2}, "heads a group"),
        ("mamba_ssu_decode", {"num_heads": 4, "head_dim": 80, "d_state": 128, "num_groups": 2}, "80"),
        ("mhc_post", {"hidden_size": 32, "hc": 2}, "four streams"),
        ("mhc_pre_big_fuse", {"hidden_size": 36}, "multiples of 8"),
        ("hash_topk", {"num_routed_experts": 64, "topk": 40, "vocab": 50}, "32"),
        ("gemm_nvfp4", {"n": 48, "k": 64}, "multiples"),
        ("mxfp8_quantize", {"hidden_size": 40}, "whole blocks"),
    ],
)
def test_a_kernel_that_lacks_the_sizes_says_so(kernel_id: str, parameters: dict[str, Any], word: str) -> None:
    _, truth = _truth(kernel_id, parameters)
    assert truth.wrappers == ()
    assert word in truth.reason


@pytest.mark.filterwarnings("ignore")  # flashinfer's imports warn about one another
def test_a_value_a_head_is_spread_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"num_heads": 4, "head_dim": 64, "d_state": 128, "num_groups": 2}
    kernel, truth = _truth("mamba_ssu_decode", parameters)
    definition = kernel.build(parameters)
    inputs = generate_inputs(definition, choose_axes(definition))
    plain = [value.contiguous() for value in inputs.values()]
    seen: dict[str, Any] = {}

    def look(*given: Any, **more: Any) -> Any:
        seen.update(zip(("state", "x", "dt", "A", "B", "C", "D"), given, strict=True), **more)
        return torch.ones_like(seen["x"])

    monkeypatch.setattr("flashinfer.mamba.selective_state_update", look)
    plain[-1][0] = -1
    output, state = _load(truth.wrappers[0].source)(*plain)
    assert seen["A"].stride() == (1, 0, 0)
    assert seen["D"].stride() == seen["dt_bias"].stride() == (1, 0)
    assert seen["dt"].stride()[1:] == (1, 0)
    for name, value in (("A", inputs["A"]), ("D", inputs["D"]), ("dt", inputs["dt"])):
        assert torch.equal(seen[name], value)
    assert state.data_ptr() != plain[0].data_ptr()
    assert not output[0].any()
    assert output[1:].all()


_HELPERS = {
    "choose": "flashinfer.fused_moe.fused_topk_deepseek",
    "interleave": "flashinfer.nvfp4_block_scale_interleave",
}
"""What a wrapper calls beside its kernel, by a word in its source."""


def _watch(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put something in the place of every kernel a wrapper names, that checks how it is called and computes nothing."""
    compiled: Any = types.ModuleType("sgl_kernel")
    compiled.topk_softmax = lambda *out, renormalize: out[1].zero_() if renormalize else None
    monkeypatch.setitem(sys.modules, "sgl_kernel", compiled)
    calls: list[str] = []
    names = [wrapper.api, *(name for word, name in _HELPERS.items() if word in wrapper.body)]
    for api in names:
        owner_name, _, name = api.rpartition(".")
        owner: Any = importlib.import_module(owner_name)
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, _fake_class(real, calls) if inspect.isclass(real) else _fake(real, calls))
    return calls


def _return_row(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    return torch.zeros(1, 1)


def _return_rows(count: int) -> Any:
    return lambda *_args, **_kwargs: (torch.zeros(1, 1),) * count


def _return_codes(x: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(x), 8, dtype=torch.uint8), torch.zeros(len(x) * 8, dtype=torch.uint8)


_RETURNED: dict[str, Any] = {
    "chain_speculative_sampling": _return_rows(3),
    "gated_delta_rule_decode_pretranspose": _return_rows(2),
    "chunk_gated_delta_rule": _return_rows(2),
    "gated_delta_rule_mtp": _return_rows(2),
    "recurrent_kda": _return_rows(2),
    "selective_state_update": lambda _state, x, *_args, **_kwargs: torch.zeros_like(x),
    "block_scale_interleave": lambda scale: torch.zeros(128 * -(-scale.shape[1] // 4) * 4),
    "nvfp4_quantize": _return_codes,
    "mxfp8_quantize": _return_codes,
}
"""What a kernel returns, where not one row."""


def _fake(real: Any, calls: list[str]) -> Any:
    signature = inspect.signature(real)

    def check(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        calls.append(real.__name__)
        return _RETURNED.get(real.__name__, _return_row)(*args, **kwargs)

    return check


def _fake_class(real: Any, calls: list[str]) -> Any:
    def bound(name: str) -> Any:
        check = _fake(getattr(real, name), calls)
        return lambda self, *args, **kwargs: (check(self, *args, **kwargs), None)[name == "__init__"]

    return type(real.__name__, (), {name: bound(name) for name in ("__init__", "plan", "run")})
