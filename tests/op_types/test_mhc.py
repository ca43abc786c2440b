from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.registry import get_kernel_type

TOKENS, HC, HIDDEN = 7, 4, 24
SMALL = {"hc": HC, "hidden_size": HIDDEN, "stream_dtype": "float32"}


def _config(*, iterations: int = 20, streams: int = HC) -> Any:
    return SimpleNamespace(
        hc_mult=streams, hc_sinkhorn_iters=iterations, hc_eps=1e-4, rms_norm_eps=1e-3, hidden_size=HIDDEN
    )


def _fill(module: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _streams(streams: int = HC) -> Any:
    import torch

    return torch.randn(TOKENS, streams, HIDDEN, generator=torch.Generator().manual_seed(4)) * 2


@pytest.mark.parametrize(("iterations", "streams"), [(1, 4), (2, 4), (20, 4), (5, 3)])
def test_projection_and_weights_are_the_hyper_connection_of_deepseek_v4(
    iterations: int, streams: int, run_reference: Callable[..., Any]
) -> None:
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    module = _fill(DeepseekV4HyperConnection(_config(iterations=iterations, streams=streams)))
    residual = _streams(streams)
    with torch.no_grad():
        expected = module(residual[None])
    width = streams * (2 + streams)
    project = get_kernel_type("mhc_prenorm_gemm").build({"n": width, "k": streams * HIDDEN, "dtype": "float32"})
    dot_mix, sqrsum = run_reference(project, residual.flatten(1), module.fn.data)
    constants = {"eps": 1e-3, "hc_eps": 1e-4, "sinkhorn_iters": iterations}
    weigh = get_kernel_type("mhc_pre_big_fuse").build({**SMALL, "hc": streams, **constants})
    post, comb, layer_input = run_reference(weigh, dot_mix, sqrsum, residual, module.scale.data, module.base.data)
    assert (tuple(post.shape), tuple(comb.shape)) == ((TOKENS, streams, 1), (TOKENS, streams, streams))
    torch.testing.assert_close(post[..., 0], expected[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(comb, expected[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer_input, expected[2][0], rtol=1e-5, atol=1e-5)


def test_weights_are_those_of_a_loop_over_scalars(try_kernel: Callable[..., Any]) -> None:
    """Plain Python in float64, written from the CUDA kernel: rows, then columns, as often as asked."""
    trial = try_kernel("mhc_pre_big_fuse", hidden_size=16, sinkhorn_iters=3, hc_eps=1e-3)
    inputs = {name: value.double().tolist() for name, value in trial.inputs.items()}
    outputs = {name: value.double().tolist() for name, value in trial.outputs.items()}
    scale, base = inputs["mhc_scale"], inputs["mhc_base"]
    for token, dots in enumerate(inputs["dot_mix"]):
        factor = (inputs["sqrsum"][token] / 64 + 1e-6) ** -0.5
        value = [dot * factor * scale[0 if i < 4 else 1 if i < 8 else 2] + base[i] for i, dot in enumerate(dots)]
        pre = [1 / (1 + math.exp(-x)) + 1e-3 for x in value[:4]]
        post = [2 / (1 + math.exp(-x)) for x in value[4:8]]
        rows = [[math.exp(x) for x in value[8 + 4 * i : 12 + 4 * i]] for i in range(4)]
        rows = [[x / sum(row) + 1e-3 for x in row] for row in rows]
        for step in range(3):
            if step:
                rows = [[x / (sum(row) + 1e-3) for x in row] for row in rows]
            sums = [sum(row[j] for row in rows) + 1e-3 for j in range(4)]
            rows = [[row[j] / sums[j] for j in range(4)] for row in rows]
        mixed = [sum(pre[i] * inputs["residual"][token][i][h] for i in range(4)) for h in range(16)]
        assert [item[0] for item in outputs["post_mix"][token]] == pytest.approx(post, rel=1e-5)
        for made, exact in zip(outputs["comb_mix"][token], rows, strict=True):
            assert made == pytest.approx(exact, rel=1e-5)
        assert outputs["layer_input"][token] == pytest.approx(mixed, rel=2**-8, abs=1e-4)


def test_streams_are_mixed_as_the_decoder_layer_of_deepseek_v4_mixes_them(run_reference: Callable[..., Any]) -> None:
    """A layer whose attention and experts give constants, and whose second mixing sees the first one's result."""
    import torch
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    layer = object.__new__(modeling.DeepseekV4DecoderLayer)
    torch.nn.Module.__init__(layer)
    output = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(5))
    layer.attn_hc = _fill(modeling.DeepseekV4HyperConnection(_config()))
    layer.ffn_hc = _fill(modeling.DeepseekV4HyperConnection(_config()))
    layer.input_layernorm = layer.post_attention_layernorm = torch.nn.Identity()
    layer.self_attn = lambda *_, **__: (output[None], None)
    layer.mlp = lambda *_, **__: -output[None]
    residual = _streams()
    definition = get_kernel_type("mhc_post").build(SMALL)
    with torch.no_grad():
        expected = modeling.DeepseekV4DecoderLayer.forward(layer, residual[None])[0]
        streams = residual
        for module, sublayer in ((layer.attn_hc, output), (layer.ffn_hc, -output)):
            post, comb, _ = module(streams[None])
            (streams,) = run_reference(definition, sublayer, streams, post[0], comb[0])
    torch.testing.assert_close(streams, expected, rtol=1e-5, atol=1e-5)


def test_an_old_stream_is_a_row_of_the_mixing_weights(run_reference: Callable[..., Any]) -> None:
    import torch

    definition = get_kernel_type("mhc_post").build({"hc": 2, "hidden_size": 1, "stream_dtype": "float32"})
    residual, x = torch.tensor([[[10.0], [100.0]]]), torch.tensor([[1.0]])
    comb, post = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[5.0, 7.0]])
    (streams,) = run_reference(definition, x, residual, post, comb)
    assert streams.flatten().tolist() == [10 + 300 + 5, 20 + 400 + 7]


def test_the_head_is_that_of_deepseek_v4(run_reference: Callable[..., Any]) -> None:
    import torch
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperHead

    module = _fill(DeepseekV4HyperHead(_config()))
    residual = _streams()
    with torch.no_grad():
        expected = module(residual[None])[0]
    definition = get_kernel_type("mhc_head").build({**SMALL, "eps": 1e-3, "hc_eps": 1e-4})
    (hidden,) = run_reference(definition, residual, module.hc_fn.data, module.hc_scale.data, module.hc_base.data)
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "name", "parameters"),
    [
        ("mhc_pre_big_fuse", "mhc_pre_big_fuse_hc4_h4096_mix24", {"hidden_size": 4096}),
        ("mhc_post", "mhc_post_hc4_h4096", {"hidden_size": 4096}),
        ("mhc_head", "mhc_head_hc4_h4096", {"hidden_size": 4096}),
        ("mhc_prenorm_gemm", "mhc_prenorm_gemm_n24_k16384", {"n": 24, "k": 16384}),
    ],
)
def test_every_kernel_conforms(
    kernel: str, name: str, parameters: dict[str, Any], check_conformance: Callable[..., None]
) -> None:
    check_conformance(kernel, name, **parameters)


def test_flashinfer_has_kernels_for_four_streams_only() -> None:
    for kernel in ("mhc_post", "mhc_pre_big_fuse"):
        kind = get_kernel_type(kernel)
        assert kind.find_fi_api({"hidden_size": 64}) == f"flashinfer.mhc.{kernel}"
        assert kind.find_fi_api({"hc": 2, "hidden_size": 64}) is None
        assert kind.find_template_call({"hc": 2, "hidden_size": 64}) is None


def test_constants_that_the_name_leaves_out_tell_kernels_apart() -> None:
    pre = get_kernel_type("mhc_pre_big_fuse").parameters
    assert pre.model_validate({"hidden_size": 8}).qualifier() == ""
    assert pre.model_validate({"hidden_size": 8, "sinkhorn_iters": 3}).qualifier() == "sinkhorniters3"
    with pytest.raises(ValidationError):
        pre.model_validate({"hidden_size": 8, "sinkhorn_iters": 0})
