from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fib_tools.op_types.registry import get_kernel_type

VOCAB = 128256
DRAWS = 20000

Run = Callable[..., Any]


@pytest.mark.parametrize(
    "kernel",
    [
        "top_k_sampling_from_probs",
        "top_p_sampling_from_probs",
        "top_k_top_p_sampling_from_probs",
        "min_p_sampling_from_probs",
        "top_k_renorm_probs",
        "top_p_renorm_probs",
        "softmax_sampling",
        "chain_speculative_sampling",
    ],
)
def test_a_sampler_conforms_under_its_canonical_name(kernel: str, check_conformance: Callable[..., None]) -> None:
    check_conformance(kernel, f"{kernel}_v{VOCAB}", vocab_size=VOCAB)


def test_the_joint_filter_is_in_the_name(check_conformance: Callable[..., None]) -> None:
    name = f"top_k_top_p_sampling_from_probs_joint_v{VOCAB}"
    check_conformance("top_k_top_p_sampling_from_probs", name, vocab_size=VOCAB, filter_apply_order="joint")


def _definition(kernel: str, vocab_size: int, **parameters: Any) -> Any:
    return get_kernel_type(kernel).build({"vocab_size": vocab_size, **parameters})


def _draw(run: Run, definition: Any, row: list[float], *per_row: tuple[str, float]) -> list[float]:
    """Draw from one row many times; the share of each token."""
    import torch

    probs = torch.tensor([row]).expand(DRAWS, -1)
    filters = [torch.full((DRAWS,), value, dtype=getattr(torch, dtype)) for dtype, value in per_row]
    samples = run(definition, probs, *filters)[0]
    shares: list[float] = (torch.bincount(samples, minlength=len(row)) / DRAWS).tolist()
    return shares


ROW = [0.05, 0.4, 0.1, 0.3, 0.15]


@pytest.mark.parametrize(
    ("kernel", "filters", "kept"),
    [
        ("top_k_sampling_from_probs", [("int32", 2)], {1, 3}),
        ("top_k_sampling_from_probs", [("int32", 1)], {1}),
        ("top_k_sampling_from_probs", [("int32", 0)], {0, 1, 2, 3, 4}),
        ("top_k_sampling_from_probs", [("int32", 5)], {0, 1, 2, 3, 4}),
        ("top_p_sampling_from_probs", [("float32", 0.39)], {1}),
        ("top_p_sampling_from_probs", [("float32", 0.41)], {1, 3}),
        ("top_p_sampling_from_probs", [("float32", 0.8)], {1, 3, 4}),
        ("top_p_sampling_from_probs", [("float32", 1.0)], {0, 1, 2, 3, 4}),
        ("top_p_sampling_from_probs", [("float32", 0.0)], {1}),
        ("min_p_sampling_from_probs", [("float32", 0.3)], {1, 3, 4}),
        ("min_p_sampling_from_probs", [("float32", 0.0)], {0, 1, 2, 3, 4}),
        ("top_k_top_p_sampling_from_probs", [("int32", 3), ("float32", 0.8)], {1, 3}),
        ("top_k_top_p_sampling_from_probs", [("int32", 3), ("float32", 0.9)], {1, 3, 4}),
    ],
)
def test_samples_follow_the_filtered_distribution_and_never_leave_it(
    kernel: str, filters: list[tuple[str, float]], kept: set[int], run_reference: Run
) -> None:
    shares = _draw(run_reference, _definition(kernel, 5), ROW, *filters)
    assert {token for token, share in enumerate(shares) if share > 0} == kept
    total = sum(ROW[token] for token in kept)
    for token in kept:
        wanted = ROW[token] / total
        # Four standard deviations of a share of that many draws.
        assert abs(shares[token] - wanted) <= 4 * (wanted * (1 - wanted) / DRAWS) ** 0.5


def test_jointly_top_p_sees_the_probabilities_that_were_given(run_reference: Run) -> None:
    definition = _definition("top_k_top_p_sampling_from_probs", 5, filter_apply_order="joint")
    shares = _draw(run_reference, definition, ROW, ("int32", 3), ("float32", 0.8))
    assert {token for token, share in enumerate(shares) if share > 0} == {1, 3, 4}


def test_a_tie_at_the_threshold_is_kept_whole(run_reference: Run) -> None:
    row = [0.3, 0.2, 0.2, 0.2, 0.1]
    by_k = _draw(run_reference, _definition("top_k_sampling_from_probs", 5), row, ("int32", 2))
    by_p = _draw(run_reference, _definition("top_p_sampling_from_probs", 5), row, ("float32", 0.35))
    assert [share > 0 for share in by_k] == [share > 0 for share in by_p] == [True, True, True, True, False]


def test_each_row_has_its_own_threshold(run_reference: Run) -> None:
    import torch

    probs = torch.tensor([ROW, ROW])
    kept = run_reference(_definition("top_k_renorm_probs", 5), probs, torch.tensor([1, 3], dtype=torch.int32))[0]
    assert (kept > 0).sum(dim=-1).tolist() == [1, 3]


def test_renormalised_top_k_is_exact(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("top_k_renorm_probs", vocab_size=1000)
    probs, top_k = trial.inputs["probs"], trial.inputs["top_k"]
    for row, k, output in zip(probs, top_k.tolist(), trial.outputs["renormalized"], strict=True):
        values, tokens = row.double().topk(k)
        expected = torch.zeros_like(output).index_put((tokens,), (values / values.sum()).float())
        assert torch.equal(output, expected)


def test_renormalised_top_p_is_the_smallest_head_that_reaches_p(try_kernel: Callable[..., Any]) -> None:
    import torch

    trial = try_kernel("top_p_renorm_probs", vocab_size=1000)
    rows = zip(
        trial.inputs["probs"].double(), trial.inputs["top_p"].tolist(), trial.outputs["renormalized"], strict=True
    )
    for row, p, output in rows:
        kept = output > 0
        assert row[kept].sum() >= p
        assert row[kept].sum() - row[kept].min() < p
        assert row[kept].min() > row[~kept].max()
        torch.testing.assert_close(output[kept].double(), row[kept] / row[kept].sum(), rtol=1e-7, atol=0)


def test_top_p_stops_at_the_token_that_reaches_p(run_reference: Run) -> None:
    shares = _draw(run_reference, _definition("top_p_sampling_from_probs", 3), [0.5, 0.25, 0.25], ("float32", 0.5))
    # FlashInfer's kernel stops there too; the reference in its trace template takes one token more.
    assert [share > 0 for share in shares] == [True, False, False]


def test_softmax_is_that_of_torch_in_float64(try_kernel: Callable[..., Any], ulps: Callable[..., float]) -> None:
    import torch

    trial = try_kernel("softmax_sampling", vocab_size=1000)
    logits, temperature = (value.double() for value in trial.inputs.values())
    assert ulps(trial.outputs["output"], torch.softmax(logits / temperature[:, None], dim=-1)) <= 0.5


def test_a_seed_repeats_the_samples(try_kernel: Callable[..., Any]) -> None:
    first, second = (try_kernel("top_k_sampling_from_probs", vocab_size=1000).outputs["samples"] for _ in range(2))
    assert first.equal(second)


def _chain(run: Run, draft: list[list[float]], tokens: list[int], target: list[list[float]]) -> Any:
    import torch

    definition = _definition("chain_speculative_sampling", len(target[0]))
    return run(
        definition,
        torch.tensor([draft]).expand(DRAWS, -1, -1),
        torch.tensor([tokens], dtype=torch.int32).expand(DRAWS, -1),
        torch.tensor([target]).expand(DRAWS, -1, -1),
    )[0]


def test_a_drafted_token_that_the_target_wants_more_is_always_accepted(run_reference: Run) -> None:
    uniform = [0.25] * 4
    output = _chain(run_reference, [uniform, uniform], [2, 1], [[0, 0, 1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    assert output.unique(dim=0).tolist() == [[2, 1, 3]]


def test_after_a_rejection_one_token_is_drawn_and_the_rest_is_padding(run_reference: Run) -> None:
    uniform = [0.25] * 4
    output = _chain(run_reference, [uniform, uniform], [2, 1], [[0.5, 0.5, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    assert output[:, 1:].unique().tolist() == [-1]
    assert output[:, 0].unique().tolist() == [0, 1]


def test_speculative_tokens_are_distributed_as_the_target_s(run_reference: Run) -> None:
    import torch

    draft, target = [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]
    drafted = torch.multinomial(
        torch.tensor(draft), DRAWS, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    output = run_reference(
        _definition("chain_speculative_sampling", 3),
        torch.tensor([[draft]]).expand(DRAWS, -1, -1),
        drafted.to(torch.int32)[:, None],
        torch.tensor([[target, target]]).expand(DRAWS, -1, -1),
    )[0]
    shares = torch.bincount(output[:, 0].long(), minlength=3) / DRAWS
    torch.testing.assert_close(shares, torch.tensor(target), rtol=0, atol=0.015)
    accepted = (output[:, 1] >= 0).float().mean()
    torch.testing.assert_close(accepted, torch.tensor(0.2 + 0.3 + 0.1), rtol=0, atol=0.015)
