from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from fib_tools.op_types.registry import get_kernel_type

FORMATS = ("moe_fp8_block_scale", "moe_fp8_tensor", "moe_nvfp4", "moe_mxfp4", "moe_bf16", "moe_w4a16")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
INT4 = (0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
SMALL: dict[str, Any] = {
    "num_experts": 16,
    "num_local_experts": 8,
    "hidden_size": 256,
    "intermediate_size": 192,
    "top_k": 4,
    "routing": "renormalize",
}
KIMI: dict[str, Any] = {
    "num_experts": 384,
    "num_local_experts": 48,
    "hidden_size": 7168,
    "intermediate_size": 2048,
    "top_k": 8,
    "routing": "ds",
    "n_group": 1,
    "topk_group": 1,
}


def _assert_one_rounding(actual: Any, exact: Any) -> None:
    assert exact.abs().max() > 0.05
    assert ((actual.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


def _unpack(packed: Any, table: tuple[float, ...]) -> Any:
    import torch

    codes = packed.contiguous().view(torch.uint8).long()
    return torch.tensor(table, dtype=torch.float64)[torch.stack([codes % 16, codes // 16], dim=-1).flatten(-2)]


def _blown_up(scale: Any, shape: Any) -> Any:
    """Repeat each scale over its block, from the ratio of the sizes."""
    import torch

    rows, columns = (torch.arange(size) for size in shape[-2:])
    side = 128 if scale.shape[-2] != shape[-2] else 1
    width = {True: 128, False: next(w for w in (16, 32, 128) if -(-shape[-1] // w) == scale.shape[-1])}[side == 128]
    return scale[..., rows // side, :][..., columns // width]


def _float64(kernel: str, inputs: Mapping[str, Any], name: str) -> Any:
    """Decode a weight or the activations by table."""
    import torch

    value, scale = inputs[name], inputs.get(f"{name}_scale")
    if value.dtype == torch.int8:
        value = _unpack(value, INT4 if kernel == "moe_w4a16" else E2M1)
    value = value.to(torch.float64)
    if scale is None:
        return value
    if scale.dtype == torch.int8:
        scale = torch.exp2(scale.contiguous().view(torch.uint8).double() - 127)
    scale = scale.double()
    if name == "hidden_states" and kernel == "moe_fp8_block_scale":
        return value * scale.T.repeat_interleave(128, dim=1)[:, : value.shape[1]]
    return value * _blown_up(scale, value.shape)


def _dense(kernel: str, trial: Any, activate: Callable[[Any, Any], Any], top_k: int) -> Any:
    """Compute every local expert for every token in float64, and weight them by a dense matrix."""
    import torch

    inputs = trial.inputs
    x = _float64(kernel, inputs, "hidden_states")
    w1, w2 = _float64(kernel, inputs, "gemm1_weights"), _float64(kernel, inputs, "gemm2_weights")
    first = torch.einsum("th,eoh->teo", x, w1) + inputs.get("gemm1_bias", torch.zeros(())).double()
    inner = w1.shape[1] // 2
    scales = [value.double()[None, :, None] for name, value in inputs.items() if name.startswith("output")] or [1.0] * 3
    up, gate = first[..., :inner] * scales[0], first[..., inner:] * scales[1]
    second = torch.einsum("tei,ehi->teh", activate(up, gate), w2) * scales[2]
    second = second + inputs.get("gemm2_bias", torch.zeros(())).double()
    logits = inputs["routing_logits"].double()
    chosen = torch.zeros_like(logits)
    for token, row in enumerate(logits.tolist()):
        best = sorted(range(len(row)), key=lambda expert: -row[expert])[:top_k]
        chosen[token, best] = torch.softmax(logits[token, best], dim=0)
    offset = inputs["local_expert_offset"]
    weights = chosen[:, offset : offset + w1.shape[0]] * inputs["routed_scaling_factor"]
    return torch.einsum("te,teh->th", weights, second)


def _swiglu(up: Any, gate: Any) -> Any:
    import torch

    return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("kernel", FORMATS)
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 224, "intermediate_size": 80}])
def test_a_format_is_within_one_rounding_of_dense_float64(
    kernel: str, sizes: dict[str, int], try_kernel: Callable[..., Any]
) -> None:
    """The second sizes leave short blocks behind, of 128 as of 32."""
    trial = try_kernel(kernel, **{**SMALL, **sizes})
    _assert_one_rounding(trial.outputs["output"], _dense(kernel, trial, _swiglu, 4))


@pytest.mark.parametrize(
    ("activation", "limit"),
    [("swiglu", 1.0), ("swiglu_oai", None), ("swiglu_oai", 0.5), ("gelu", None), ("gelu_tanh", None)],
)
def test_an_activation_is_within_one_rounding_of_dense_float64(
    activation: str, limit: float | None, try_kernel: Callable[..., Any]
) -> None:
    import torch

    def activate(up: Any, gate: Any) -> Any:
        bound = 7.0 if activation == "swiglu_oai" and limit is None else limit
        if bound is not None:
            up, gate = up.clamp(-bound, bound), gate.clamp(max=bound)
        if activation == "swiglu_oai":
            return (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
        if activation == "swiglu":
            return up * gate / (1 + torch.exp(-gate))
        return up * torch.nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")

    trial = try_kernel("moe_mxfp4", **SMALL, activation=activation, swiglu_limit=limit, expert_bias=True)
    _assert_one_rounding(trial.outputs["output"], _dense("moe_mxfp4", trial, activate, 4))


@pytest.mark.parametrize("kernel", ["moe_bf16", "moe_nvfp4", "moe_fp8_tensor"])
def test_relu2_has_no_gate(kernel: str, try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel(kernel, **{**SMALL, "num_experts": 8, "top_k": 8}, activation="relu2")
    inputs = trial.inputs
    assert tuple(inputs["gemm1_weights"].shape)[:2] == (8, 192)
    x = _float64(kernel, inputs, "hidden_states")
    w1, w2 = _float64(kernel, inputs, "gemm1_weights"), _float64(kernel, inputs, "gemm2_weights")
    after, before, last = [inputs[name].double() for name in inputs if name.startswith("output")] or [torch.ones(8)] * 3
    weights = torch.softmax(inputs["routing_logits"].double(), dim=1) * inputs["routed_scaling_factor"]
    exact = torch.zeros(4, 256, dtype=torch.float64)
    for expert in range(8):
        inner = (x @ w1[expert].T * before[expert]).clamp(min=0) ** 2 * after[expert]
        exact += weights[:, expert, None] * (inner @ w2[expert].T * last[expert])
    _assert_one_rounding(trial.outputs["output"], exact)


def test_devices_add_up_to_the_whole(try_kernel: Callable[..., Any], run_reference: Callable[..., Any]) -> None:
    whole = try_kernel("moe_bf16", **{**SMALL, "num_local_experts": 16, "routing": "default"})
    assert whole.inputs["local_expert_offset"] == 0
    part = get_kernel_type("moe_bf16").build({**SMALL, "routing": "default"})
    total = 0.0
    for offset in (0, 8):
        cut = {name: value[offset : offset + 8] for name, value in whole.inputs.items() if name.startswith("gemm")}
        inputs = {**whole.inputs, **cut, "local_expert_offset": offset}
        total = total + run_reference(part, *inputs.values())[0].double()
    difference = (total - whole.outputs["output"].double()).abs().max()
    assert difference <= 2**-6 * whole.outputs["output"].double().abs().max()


def test_a_token_of_another_device_gets_nothing(
    try_kernel: Callable[..., Any], run_reference: Callable[..., Any]
) -> None:
    trial = try_kernel("moe_fp8_block_scale", **SMALL)
    logits = trial.inputs["routing_logits"].clone()
    logits[1, 8:] = -50.0
    inputs = {**trial.inputs, "routing_logits": logits, "local_expert_offset": 8}
    (output,) = run_reference(trial.definition, *inputs.values())
    assert (output[1] == 0).all()
    assert (output[0] != 0).any()


def _block_config(**more: Any) -> Any:
    return SimpleNamespace(
        hidden_size=64,
        intermediate_size=48,
        moe_intermediate_size=48,
        num_experts=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        hidden_act="silu",
        norm_topk_prob=True,
        router_jitter_noise=0.01,
        input_jitter_noise=0.0,
        **more,
    )


def _fill(module: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.copy_((torch.randn(tensor.shape, generator=generator) * 0.2).bfloat16())
    return module.eval().double()


def _up_first(gate_up: Any) -> Any:
    """Turn [gate; up] rows into [up; gate]."""
    import torch

    gate, up = gate_up.chunk(2, dim=1)
    return torch.cat([up, gate], dim=1).bfloat16()


def _run_block(
    run_reference: Callable[..., Any], logits: Any, hidden: Any, weights: list[Any], **parameters: Any
) -> Any:
    build = {"num_experts": 8, "num_local_experts": 8, "hidden_size": 64, "intermediate_size": 48, "top_k": 2}
    definition = get_kernel_type("moe_bf16").build({**build, **parameters})
    inputs = [logits[0].detach().float(), *logits[1:], hidden.bfloat16(), *weights, 0, 1.0]
    return run_reference(definition, *inputs)[0]


@pytest.fixture
def hidden() -> Any:
    """Tokens that bfloat16 holds exactly."""
    import torch

    return torch.randn(10, 64, generator=torch.Generator().manual_seed(4)).bfloat16().double()


def test_renormalize_is_the_block_of_qwen3(run_reference: Callable[..., Any], hidden: Any) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter

    router, experts = _fill(Qwen3MoeTopKRouter(_block_config())), _fill(Qwen3MoeExperts(_experts_config()))
    logits, weights, ids = router(hidden)
    exact = experts(hidden, ids, weights).detach()
    given = [_up_first(experts.gate_up_proj.detach()), experts.down_proj.detach().bfloat16()]
    _assert_one_rounding(_run_block(run_reference, [logits], hidden, given, routing="renormalize"), exact)


def _experts_config(**more: Any) -> Any:
    return _block_config(_experts_implementation="eager", **more)


def test_clamped_swiglu_is_the_block_of_deepseek_v4(run_reference: Callable[..., Any], hidden: Any) -> None:
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts, DeepseekV4TopKRouter

    config = _experts_config(swiglu_limit=1.0, scoring_func="sqrtsoftplus", routed_scaling_factor=1.0)
    router, experts = _fill(DeepseekV4TopKRouter(config)), _fill(DeepseekV4Experts(config))
    logits, weights, ids = router(hidden)
    exact = experts(hidden, ids, weights).detach()
    bias = router.e_score_correction_bias.bfloat16()
    assert torch.equal(bias.double(), router.e_score_correction_bias)
    given = [_up_first(experts.gate_up_proj.detach()), experts.down_proj.detach().bfloat16()]
    ours = _run_block(run_reference, [logits, bias], hidden, given, routing="sqrtsoftplus_bias", swiglu_limit=1.0)
    _assert_one_rounding(ours, exact)


def test_given_experts_are_those_of_the_hash_block_of_deepseek_v4(
    run_reference: Callable[..., Any], hidden: Any
) -> None:
    """The choice is an input, from the kernel that looks experts up by token id."""
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts, DeepseekV4HashRouter

    config = _experts_config(swiglu_limit=1.0, scoring_func="sqrtsoftplus", routed_scaling_factor=1.0, vocab_size=20)
    router, experts = _fill(DeepseekV4HashRouter(config)), _fill(DeepseekV4Experts(config))
    router.tid2eid.copy_(torch.rand(20, 8, generator=torch.Generator().manual_seed(5)).argsort(dim=1)[:, :2])
    logits, weights, ids = router(hidden, torch.arange(10) * 2)
    exact = experts(hidden, ids, weights).detach()
    choose = get_kernel_type("hash_topk").build({"num_routed_experts": 8, "topk": 2, "vocab": 20})
    choice = run_reference(choose, logits.float(), torch.arange(10) * 2, router.tid2eid.int())
    given = [_up_first(experts.gate_up_proj.detach()), experts.down_proj.detach().bfloat16()]
    ours = _run_block(run_reference, list(choice), hidden, given, routing="given", swiglu_limit=1.0)
    _assert_one_rounding(ours, exact)


def test_given_experts_need_no_logits_and_half_of_the_made_ones_are_local(try_kernel: Callable[..., Any]) -> None:
    trial = try_kernel("moe_mxfp4", {"seq_len": 8}, **{**SMALL, "routing": "given"})
    assert trial.definition.name == "moe_mxfp4_given_topk4_e8_h256_i192"
    assert list(trial.definition.inputs)[:3] == ["topk_weights", "topk_ids", "hidden_states"]
    first = trial.inputs["local_expert_offset"]
    rows = trial.inputs["topk_ids"].tolist()
    assert all(len(set(row)) == 4 and 0 <= min(row) <= max(row) < 16 for row in rows)
    assert all(first <= row[0] < first + 8 for row in rows[::2])
    assert trial.outputs["output"].abs().amax(dim=1)[::2].min() > 0.01


def test_llama4_weights_the_input_as_the_block_of_llama4_does(run_reference: Callable[..., Any], hidden: Any) -> None:
    import torch
    from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextExperts

    config = _block_config()
    config.num_experts_per_tok = 1
    router, experts = _fill(Llama4Router(config)), _fill(Llama4TextExperts(config))
    logits = torch.nn.functional.linear(hidden, router.weight)
    scores = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0) * torch.sigmoid(logits)
    routed_in = hidden.repeat(8, 1) * scores.T.reshape(-1, 1)
    exact = experts(routed_in).reshape(8, 10, 64).sum(dim=0).detach()
    given = [_up_first(experts.gate_up_proj.detach().mT), experts.down_proj.detach().mT.bfloat16()]
    _assert_one_rounding(_run_block(run_reference, [logits], hidden, given, routing="llama4", top_k=1), exact)


def test_swiglu_oai_with_biases_is_the_block_of_gpt_oss(run_reference: Callable[..., Any], hidden: Any) -> None:
    """The checkpoint's rows alternate gate and up; ours are all of up, then all of gate."""
    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssTopKRouter

    config = _experts_config(swiglu_alpha=1.702, swiglu_limit=7.0)
    router, experts = _fill(GptOssTopKRouter(config)), _fill(GptOssExperts(config))
    logits, weights, ids = router(hidden)
    exact = experts(hidden, ids, weights).detach()
    rows, bias = experts.gate_up_proj.detach().mT, experts.gate_up_proj_bias.detach()
    given = [
        torch.cat([rows[:, 1::2], rows[:, ::2]], dim=1).bfloat16(),
        torch.cat([bias[:, 1::2], bias[:, ::2]], dim=1).float(),
        experts.down_proj.detach().mT.bfloat16(),
        experts.down_proj_bias.detach().float(),
    ]
    ours = _run_block(
        run_reference, [logits], hidden, given, routing="renormalize", activation="swiglu_oai", expert_bias=True
    )
    _assert_one_rounding(ours, exact)


def test_the_interface_is_that_of_the_dataset() -> None:
    parameters = {**KIMI, "num_experts": 256, "num_local_experts": 32, "n_group": 8, "topk_group": 4}
    definition = get_kernel_type("moe_fp8_block_scale").build(parameters)
    assert definition.name == "moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048"
    assert list(definition.axes) == [
        "seq_len",
        "num_experts",
        "num_local_experts",
        "hidden_size",
        "intermediate_size",
        "gemm1_out_size",
        "num_hidden_blocks",
        "num_intermediate_blocks",
        "num_gemm1_out_blocks",
    ]
    assert list(definition.const_axes.values()) == [256, 32, 7168, 2048, 4096, 56, 16, 32]
    specs = {**definition.inputs, **definition.outputs}
    assert {name: (spec.shape and " ".join(spec.shape), spec.dtype.value) for name, spec in specs.items()} == {
        "routing_logits": ("seq_len num_experts", "float32"),
        "routing_bias": ("num_experts", "bfloat16"),
        "hidden_states": ("seq_len hidden_size", "float8_e4m3fn"),
        "hidden_states_scale": ("num_hidden_blocks seq_len", "float32"),
        "gemm1_weights": ("num_local_experts gemm1_out_size hidden_size", "float8_e4m3fn"),
        "gemm1_weights_scale": ("num_local_experts num_gemm1_out_blocks num_hidden_blocks", "float32"),
        "gemm2_weights": ("num_local_experts hidden_size intermediate_size", "float8_e4m3fn"),
        "gemm2_weights_scale": ("num_local_experts num_hidden_blocks num_intermediate_blocks", "float32"),
        "local_expert_offset": (None, "int32"),
        "routed_scaling_factor": (None, "float32"),
        "output": ("seq_len hidden_size", "bfloat16"),
    }
    assert list(definition.inputs)[-2:] == ["local_expert_offset", "routed_scaling_factor"]


@pytest.mark.parametrize("kernel", FORMATS)
def test_every_format_is_described_and_accepted_by_flashinfer_bench(kernel: str) -> None:
    from flashinfer_bench.data import Definition as PeerDefinition

    from fib_tools.model.base import to_document

    definition = get_kernel_type(kernel).build(KIMI)
    peer = PeerDefinition.model_validate(to_document(definition))
    assert list(peer.inputs) == list(definition.inputs)
    named = {**definition.axes, **definition.inputs, **definition.outputs}
    assert [name for name, item in named.items() if not item.description] == []
    assert definition.description
    assert definition.description.isascii()


@pytest.mark.parametrize("kernel", FORMATS)
def test_kimi_k2_runs_at_full_size_on_shared_weights(kernel: str, try_kernel: Callable[..., Any]) -> None:
    import torch

    started = time.process_time()
    trial = try_kernel(kernel, **KIMI)
    assert time.process_time() - started < 10
    assert tuple(trial.inputs["gemm1_weights"].shape)[:2] == (48, 4096)
    output = trial.outputs["output"].float()
    assert (tuple(output.shape), trial.outputs["output"].dtype) == ((4, 7168), torch.bfloat16)
    assert torch.isfinite(output).all()
    assert 0.01 < output.square().mean().sqrt().item() < 30
