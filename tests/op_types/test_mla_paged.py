from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from fib_tools.op_types.axes import choose_axes
from fib_tools.op_types.inputs import generate_inputs
from fib_tools.op_types.registry import get_kernel_type

HEADS, LATENT, ROTARY, NOPE = 3, 16, 8, 12
SMALL = {"num_qo_heads": HEADS, "head_dim_ckv": LATENT, "head_dim_kpe": ROTARY, "sm_scale": (NOPE + ROTARY) ** -0.5}
PLAIN = 192**-0.5


@pytest.mark.parametrize(
    ("kernel_id", "parameters", "name"),
    [
        ("mla_paged_decode", {"page_size": 1}, "mla_paged_decode_h16_ckv512_kpe64_ps1"),
        ("mla_paged_decode", {"page_size": 64, "sm_scale": 0.135}, "mla_paged_decode_h16_ckv512_kpe64_ps64"),
        (
            "mla_paged_decode",
            {"page_size": 64, "kv_dtype": "float8_e4m3fn"},
            "mla_paged_decode_h16_ckv512_kpe64_ps64_kvfp8",
        ),
        ("mla_paged_prefill", {"page_size": 1}, "mla_paged_prefill_causal_h16_ckv512_kpe64_ps1"),
        ("mla_paged_prefill", {"page_size": 1, "causal": False}, "mla_paged_prefill_full_h16_ckv512_kpe64_ps1"),
    ],
)
def test_the_name_is_the_canonical_one(kernel_id: str, parameters: dict[str, Any], name: str) -> None:
    assert get_kernel_type(kernel_id).build({"num_qo_heads": 16, "sm_scale": PLAIN, **parameters}).name == name


@pytest.mark.parametrize(
    ("kernel_id", "page_size", "inputs"),
    [
        ("mla_paged_decode", 1, "q_nope q_pe ckv_cache kpe_cache kv_indptr kv_indices sm_scale"),
        ("mla_paged_decode", 64, "q_nope q_pe ckv_cache kpe_cache kv_indptr kv_indices kv_last_page_len sm_scale"),
        ("mla_paged_prefill", 1, "q_nope q_pe ckv_cache kpe_cache qo_indptr kv_indptr kv_indices sm_scale"),
    ],
)
def test_the_interface_is_that_of_the_dataset(kernel_id: str, page_size: int, inputs: str) -> None:
    definition = get_kernel_type(kernel_id).build({**SMALL, "page_size": page_size})
    assert list(definition.inputs) == inputs.split()
    assert list(definition.outputs) == ["output", "lse"]
    assert definition.inputs["ckv_cache"].shape == ["num_pages", "page_size", "head_dim_ckv"]


@pytest.mark.parametrize("wrong", [{"sm_scale": None}, {"sm_scale": -1.0}, {"kv_dtype": "int8"}], ids=str)
def test_impossible_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get_kernel_type("mla_paged_decode").build({**SMALL, "page_size": 1, **wrong})


@pytest.mark.parametrize("spelled", [{"kv_dtype": "bfloat16"}, {"kv_dtype": None}, {"sm_scale": 0.07216878}], ids=str)
def test_a_default_that_is_spelled_out_gives_the_same_parameters(spelled: dict[str, Any]) -> None:
    kernel = get_kernel_type("mla_paged_decode")
    plain = {"num_qo_heads": 16, "page_size": 1, "sm_scale": PLAIN}
    assert kernel.parameters.model_validate({**plain, **spelled}) == kernel.parameters.model_validate(plain)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize(
    ("kernel_id", "causal", "queries"),
    [
        ("mla_paged_decode", False, [1, 1, 1]),
        ("mla_paged_prefill", True, [4, 0, 5]),
        ("mla_paged_prefill", False, [4, 2, 5]),
    ],
)
def test_latent_attention_is_attention_with_expanded_heads(
    kernel_id: str, *, causal: bool, queries: list[int], dtype: str, page_size: int
) -> None:
    """Queries before absorption against keys and values after expansion: what the model computes without latents.

    The value projection is the identity on a part of the latent, so that outputs compare without another rounding.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q_dtype = "float32" if dtype == "float32" else "bfloat16"
    mask = {} if kernel_id == "mla_paged_decode" else {"causal": causal}
    parameters = {**SMALL, "page_size": page_size, "dtype": q_dtype, "kv_dtype": dtype, **mask}
    definition = get_kernel_type(kernel_id).build(parameters)
    pages = [9, 0, 2] if page_size == 1 else [2, 0, 1]
    last = [min(5, page_size), 0, 2 if page_size > 1 else 1]
    inputs, up, plain_q = _inputs(definition, pages, last, queries)
    namespace: dict[str, Any] = {}
    exec(definition.reference, namespace)  # noqa: S102  # the reference is what is under test
    output, lse = namespace["run"](*inputs.values())
    row = 0
    for sequence, count in enumerate(queries):
        ckv, kpe = (_tokens(inputs, name, sequence, pages, last) for name in ("ckv", "kpe"))
        held = len(ckv)
        keys = torch.cat([torch.einsum("kc,hcn->hkn", ckv, up), kpe.expand(HEADS, -1, -1)], dim=-1)
        query = torch.cat([plain_q[row : row + count], inputs["q_pe"][row : row + count].double()], dim=-1)
        seen = torch.ones(count, held, dtype=torch.bool)
        seen = seen.tril(diagonal=held - count) if causal else seen
        bias = torch.zeros(count, held, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        query, scale = query.transpose(0, 1), SMALL["sm_scale"]
        if held and count:
            exact = scaled_dot_product_attention(query, keys, ckv.expand(HEADS, -1, -1), attn_mask=bias, scale=scale)
            exact = exact.nan_to_num(0.0).transpose(0, 1)
        else:
            exact = torch.zeros(count, HEADS, LATENT, dtype=torch.float64)
        sums = torch.logsumexp(query @ keys.transpose(1, 2) * scale + bias, dim=-1).transpose(0, 1) / math.log(2)
        tolerance = 1e-5 if q_dtype == "float32" else 2**-8
        torch.testing.assert_close(output[row : row + count].double(), exact, rtol=tolerance, atol=2e-6)
        torch.testing.assert_close(lse[row : row + count].double(), sums, rtol=1e-5, atol=1e-5)
        row += count


def _inputs(definition: Any, pages: list[int], last: list[int], queries: list[int]) -> tuple[dict[str, Any], Any, Any]:
    """Make inputs whose absorbed query is exact: small integers times powers of two survive bfloat16."""
    import torch

    sizes = {"batch_size": 3, "len_indptr": 4, "num_kv_indices": sum(pages), "total_q": sum(queries)}
    inputs = generate_inputs(definition, choose_axes(definition, sizes), seed=7)
    inputs["kv_indptr"] = torch.tensor([0, *pages]).cumsum(0).int()
    if "qo_indptr" in inputs:
        inputs["qo_indptr"] = torch.tensor([0, *queries]).cumsum(0).int()
    if "kv_last_page_len" in inputs:
        inputs["kv_last_page_len"] = torch.tensor(last).int()
    generator = torch.Generator().manual_seed(1)
    up = torch.randint(-1, 2, (HEADS, LATENT, NOPE), generator=generator).double() / 4
    plain_q = torch.randint(-2, 3, (sum(queries), HEADS, NOPE), generator=generator).double()
    absorbed = torch.einsum("qhn,hcn->qhc", plain_q, up)
    inputs["q_nope"] = absorbed.to(inputs["q_nope"].dtype)
    assert torch.equal(inputs["q_nope"].double(), absorbed)
    return inputs, up, plain_q


def _tokens(inputs: dict[str, Any], name: str, sequence: int, pages: list[int], last: list[int]) -> Any:
    cache, first = inputs[f"{name}_cache"], sum(pages[:sequence])
    rows = [cache[int(page)] for page in inputs["kv_indices"][first : first + pages[sequence]]]
    if rows:
        rows[-1] = rows[-1][: last[sequence]]
    import torch

    joined = torch.cat(rows) if rows else cache[0][:0]
    return joined.double() * inputs.get(f"{name}_scale", 1.0)
