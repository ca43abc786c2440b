from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from fib_tools.evaluate.judge.sampling import (
    DrawVerdict,
    catch_distribution,
    choose_sample_rows,
    find_batched_inputs,
    gather_draws,
    judge_chains,
    judge_tokens,
    judge_tokens_alike,
    repeat_rows,
)
from fib_tools.model.definition import Definition
from fib_tools.op_types.registry import get_kernel_type

ROWS, DRAWS, TOKENS = 4, 4096, 500


def _distribution(seed: int = 0, tokens: int = TOKENS, *, scale: float = 2.0, kept: int | None = None) -> torch.Tensor:
    logits = scale * torch.randn(ROWS, tokens, generator=torch.Generator().manual_seed(seed))
    probs = torch.softmax(logits.double(), dim=-1)
    if kept is not None:
        probs = torch.where(probs >= probs.topk(kept, dim=-1).values[:, -1:], probs, 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def _draw(probs: torch.Tensor, seed: int = 0, count: int = DRAWS) -> torch.Tensor:
    return torch.multinomial(probs, count, replacement=True, generator=torch.Generator().manual_seed(seed))


def test_honest_samplers_pass_with_two_hundred_seeds() -> None:
    for seed in range(200):
        probs = _distribution(seed, kept=(None, 1, 2, 40)[seed % 4])
        verdict = judge_tokens(_draw(probs, seed), probs)
        assert verdict.is_right, verdict.message


def test_honest_samplers_of_flat_distributions_pass() -> None:
    for seed in range(20):
        probs = _distribution(seed, 20_000, scale=0.0)
        verdict = judge_tokens(_draw(probs, seed), probs)
        assert verdict.is_right, verdict.message


def _sharpen(probs: torch.Tensor) -> torch.Tensor:
    return _draw(probs**1.25 / (probs**1.25).sum(dim=-1, keepdim=True))


def _ignore_the_filter(probs: torch.Tensor) -> torch.Tensor:
    return _draw(probs + 0.01 / TOKENS)


def _take_the_likeliest(probs: torch.Tensor) -> torch.Tensor:
    return probs.argmax(dim=-1, keepdim=True).expand(-1, DRAWS)


def _repeat_one_draw_in_a_call(probs: torch.Tensor) -> torch.Tensor:
    return _draw(probs, count=16).repeat_interleave(DRAWS // 16, dim=-1)


def _see_the_first_half(probs: torch.Tensor) -> torch.Tensor:
    half = probs.clone()
    half[:, TOKENS // 2 :] = 0
    return _draw(half)


def _see_every_other_token(probs: torch.Tensor) -> torch.Tensor:
    half = probs.clone()
    half[:, ::2] *= 0.7
    return _draw(half)


def _leave_out_the_rare(probs: torch.Tensor) -> torch.Tensor:
    return _draw(torch.where(probs >= probs.median(dim=-1, keepdim=True).values, probs, 0.0))


def _give_no_tokens(probs: torch.Tensor) -> torch.Tensor:
    return torch.full((len(probs), DRAWS), TOKENS)


@pytest.mark.parametrize(
    "sampler",
    [
        _sharpen,
        _ignore_the_filter,
        _take_the_likeliest,
        _repeat_one_draw_in_a_call,
        _see_the_first_half,
        _see_every_other_token,
        _leave_out_the_rare,
        _give_no_tokens,
    ],
)
def test_a_biased_sampler_is_caught(sampler: Any) -> None:
    probs = _distribution(scale=1.0, kept=300)
    assert not judge_tokens(sampler(probs), probs).is_right


def test_a_sampler_that_knows_one_token_of_each_bin_is_caught() -> None:
    probs = _distribution(tokens=20_000, scale=0.0)
    few = torch.zeros_like(probs)
    few[:, ::7] = 1
    assert not judge_tokens(_draw(few), probs).is_right


def test_tokens_that_may_not_be_drawn_are_named() -> None:
    probs = _distribution(kept=50)
    draws = _draw(probs)
    draws[2, :10] = int((probs[2] == 0).nonzero()[0])
    verdict = judge_tokens(draws, probs)
    assert verdict.message.startswith("row 2 of 4, 4096 draws: share of tokens that have probability 0")
    assert [share > 1 for share in verdict.shares] == [False, False, True, False]


def test_four_draws_at_a_threshold_are_forgiven() -> None:
    probs = _distribution(kept=50)
    draws = _draw(probs)
    draws[2, :4] = int((probs[2] == 0).nonzero()[0])
    assert judge_tokens(draws, probs).is_right


def test_a_batch_of_a_large_vocabulary_is_judged_in_well_under_a_second() -> None:
    probs = _distribution(tokens=128_256, scale=1.0)
    draws = _draw(probs)
    start = time.perf_counter()
    assert judge_tokens(draws, probs).is_right
    assert time.perf_counter() - start < 2  # on one slow core; a GPU takes milliseconds


def test_two_samples_of_tokens_are_compared() -> None:
    for seed in range(100):
        probs = _distribution(seed)
        verdict = judge_tokens_alike(_draw(probs, 2 * seed), _draw(probs, 2 * seed + 1), TOKENS)
        assert verdict.is_right, verdict.message
    probs = _distribution()
    for wrong in (_see_the_first_half, _see_every_other_token, _give_no_tokens):
        assert not judge_tokens_alike(wrong(probs), _draw(probs, 7), TOKENS).is_right


def _chains(seed: int, stop: float = 0.5, rows: int = ROWS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.arange(4) + 10 * torch.arange(rows).view(rows, 1, 1) + torch.zeros(rows, DRAWS, 4, dtype=torch.long)
    alive = (torch.rand(rows, DRAWS, 3, generator=generator) > stop).long().cumprod(dim=-1)
    held = torch.cat([torch.ones(rows, DRAWS, 1, dtype=torch.long), alive], dim=-1)
    length = held.sum(dim=-1, keepdim=True)
    last = torch.randint(0, 64, (rows, DRAWS, 1), generator=generator)
    tokens = torch.where(torch.arange(4) == length - 1, last, tokens)
    return torch.where(held > 0, tokens, -1)


DRAFTED = torch.arange(3) + 10 * torch.arange(ROWS).view(ROWS, 1)


def test_honest_chains_pass_with_two_hundred_seeds() -> None:
    for seed in range(200):
        verdict = judge_chains(_chains(2 * seed, rows=2), _chains(2 * seed + 1, rows=2), drafted=DRAFTED[:2])
        assert verdict.is_right, verdict.message


def _with(chains: torch.Tensor, row: int, column: int, value: int) -> torch.Tensor:
    changed = chains.clone()
    changed[row, :, column] = value
    return changed


@pytest.mark.parametrize(
    "wrong",
    [
        _chains(3, stop=0.56),
        _with(_chains(3), 1, 0, 63),
        _with(_chains(3), 1, 0, -1),
        _with(_chains(3), 2, 3, -2),
        torch.where(torch.arange(4) == 0, _chains(3), -1),
    ],
    ids=["stops early", "not the draft", "hole", "no token", "never accepts"],
)
def test_wrong_chains_are_caught(wrong: torch.Tensor) -> None:
    assert not judge_chains(wrong, _chains(1), drafted=DRAFTED).is_right


def test_what_follows_a_refusal_is_told_apart() -> None:
    wanted = (torch.arange(64) >= 48).expand(ROWS, 4, 64)
    short = _chains(3)
    length = (short >= 0).sum(dim=-1, keepdim=True)
    short = torch.where(torch.arange(4) == length - 1, short % 48, short)
    assert not judge_chains(short, _chains(1), wanted=wanted).is_right
    assert judge_chains(_chains(3), _chains(1), wanted=wanted).is_right


def _sampler(kernel: str = "top_k_sampling_from_probs", tokens: int = 128) -> Definition:
    return get_kernel_type(kernel).build({"vocab_size": tokens})


def _load(source: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102  # our own reference
    return namespace["run"]


def test_a_plan_cuts_the_draws_into_calls_that_fit() -> None:
    plan = choose_sample_rows(64, 4 * 128_256, seed=1)
    assert len(plan.rows) == 4
    assert plan.repeat * plan.calls >= 4096
    assert plan.batch * 4 * 128_256 <= 1 << 29
    assert plan.rows != choose_sample_rows(64, 4 * 128_256, seed=2).rows
    assert choose_sample_rows(1, 16).rows == (0,)
    assert choose_sample_rows(2, 16).repeat == 4096


def test_rows_are_repeated_and_their_draws_come_back_by_row() -> None:
    definition = _sampler()
    batched = find_batched_inputs(definition)
    assert batched == ("probs", "top_k")
    inputs = {"probs": torch.arange(12.0).view(6, 2), "top_k": torch.arange(6), "scale": 3}
    plan = choose_sample_rows(6, 8, seed=3, draws=10, byte_budget=160)
    made = repeat_rows(inputs, plan.rows, plan.repeat, batched=batched)
    assert made["scale"] == 3
    assert made["probs"].shape == (plan.batch, 2)
    drawn = gather_draws(torch.stack([made["top_k"]] * plan.calls), plan)
    assert drawn.shape == (4, plan.calls * plan.repeat)
    assert torch.equal(drawn, torch.tensor(plan.rows).unsqueeze(-1).expand_as(drawn))


@pytest.mark.parametrize(
    "kernel", ["top_k_sampling_from_probs", "top_p_sampling_from_probs", "min_p_sampling_from_probs"]
)
def test_the_reference_gives_away_what_it_draws_from(kernel: str) -> None:
    definition = _sampler(kernel)
    parameter = {"top_k": torch.tensor([3, 128, 1, 20]), "top_p": torch.full((4,), 0.7), "min_p": torch.full((4,), 0.1)}
    inputs = {"probs": _distribution(tokens=128).float()}
    inputs.update({name: parameter[name] for name in definition.inputs if name in parameter})
    run = _load(definition.reference)
    probs = catch_distribution(run, inputs)
    assert probs is not None
    assert probs.dtype == torch.float64
    assert torch.allclose(probs.sum(dim=-1), torch.ones(4, dtype=torch.float64))
    draw = torch.multinomial
    many = repeat_rows(inputs, range(4), 1024, batched=find_batched_inputs(definition))
    plan = choose_sample_rows(4, 1, draws=1024)
    assert judge_tokens(gather_draws(run(*many.values())[None], plan), probs).is_right
    assert torch.multinomial is draw


def test_a_reference_that_draws_row_by_row_is_seen_too() -> None:
    def run(probs: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.multinomial(row, 1) for row in probs])

    probs = _distribution()
    caught = catch_distribution(run, {"probs": probs})
    assert caught is not None
    assert torch.equal(caught, probs / probs.sum(dim=-1, keepdim=True))


def test_a_reference_that_draws_otherwise_gives_nothing_away() -> None:
    def by_rank(probs: torch.Tensor) -> torch.Tensor:
        order = probs.argsort(dim=-1, descending=True)
        return order.gather(-1, torch.multinomial(probs.gather(-1, order), 1)).squeeze(-1)

    def by_gumbel(probs: torch.Tensor) -> torch.Tensor:
        return (probs.log() - torch.rand_like(probs).log().neg().log()).argmax(dim=-1)

    torch.manual_seed(0)
    for run in (by_rank, by_gumbel):
        assert catch_distribution(run, {"probs": _distribution()}) is None


def test_the_chain_sampler_is_judged_by_its_own_draws() -> None:
    definition = _sampler("chain_speculative_sampling", 32)
    draft = torch.softmax(torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    target = torch.softmax(torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    ids = torch.multinomial(draft.view(6, 32), 1, generator=torch.Generator().manual_seed(2)).view(2, 3).int()
    inputs = {"draft_probs": draft, "draft_token_ids": ids, "target_probs": target}
    run = _load(definition.reference)
    many = repeat_rows(inputs, range(2), DRAWS, batched=find_batched_inputs(definition))

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return run(*many.values()).view(2, DRAWS, 4)

    assert catch_distribution(run, inputs) is None
    assert judge_chains(draw(1), draw(2), drafted=ids).is_right
    greedy = {**many, "target_probs": many["target_probs"] ** 2}
    greedy["target_probs"] = greedy["target_probs"] / greedy["target_probs"].sum(dim=-1, keepdim=True)
    assert not judge_chains(run(*greedy.values()).view(2, DRAWS, 4), draw(2), drafted=ids).is_right


def test_a_verdict_says_how_near_it_was() -> None:
    probs = _distribution()
    verdict = judge_tokens(_draw(probs), probs)
    assert isinstance(verdict, DrawVerdict)
    assert len(verdict.shares) == ROWS
    assert verdict.message.endswith("of its bound, within bounds")
